"""Judges: who says what a reply was."""
