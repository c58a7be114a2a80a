"""Floor 1: pure tensor functions: log-probs, losses, KL. Tensors in, tensors out."""
