"""Floor 5: the command line: parse and render, no logic."""
