"""The testbed (wind tunnel): a make-believe world with known ground truth, and models trained on it."""
