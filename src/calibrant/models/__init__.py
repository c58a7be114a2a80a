"""Floor 2: models you can talk to: local weights, APIs, scripted replies."""
