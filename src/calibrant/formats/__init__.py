"""Floor 1: foreign file formats, in and out."""
