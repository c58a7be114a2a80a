"""Colour keys of the drawings: hex values that nobody would choose, replaced by the page's variables."""

from __future__ import annotations

INK, MUTED, HAIR, PAPER, LIMIT = "#010a01", "#010a02", "#010a03", "#010a04", "#010a05"
STAGES = ("#010b00", "#010b01", "#010b02", "#010b03", "#010b04")
HEAT = ("#010c00", "#010c01", "#010c02", "#010c03", "#010c04", "#010c05")
"""From little to much, one hue: ink can be read on the first four, paper on the others."""
