"""Encodings of text, their decodings, and what rewrites text."""
