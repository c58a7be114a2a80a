"""Language models: local weights, APIs, scripted replies."""
