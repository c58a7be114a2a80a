"""Attempts from and for other tools. Pure: file contents in, file contents out."""
