"""Encodings of text, their decodings, and rewriting."""
