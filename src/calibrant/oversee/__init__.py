"""Techniques that oversee: critique and revise."""
