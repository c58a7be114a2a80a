"""Floor 3: techniques that attack: persona, encodings."""
