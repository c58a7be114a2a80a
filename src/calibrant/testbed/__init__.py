"""Floor 3: the wind tunnel: a make-believe world with known truth, and models that live in it."""
