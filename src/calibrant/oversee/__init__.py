"""Floor 3: techniques that oversee: critique and revise."""
