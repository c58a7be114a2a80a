"""Floor 4: the catalogue, the openers, the one door (execute) and studies."""
