"""References: what a study names, checked and opened."""
