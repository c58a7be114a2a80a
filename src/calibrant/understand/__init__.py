"""Floor 3: techniques that look inside: lenses."""
