"""Calibrant: train, understand, attack, oversee, defend and gate language models, with evidence."""

__version__ = "0.1.0"
