"""Servers: doors over ``app``, which the command line starts."""
