"""Pure tensor functions: log-probs, losses, KL. Tensors in, tensors out."""
