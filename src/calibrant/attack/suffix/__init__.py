"""Search for token suffixes by the weights of a model."""
