"""Colour keys of the drawings: hex values that nobody would choose, replaced by the page's variables."""

from __future__ import annotations

INK, MUTED, HAIR, PAPER, LIMIT = "#010a01", "#010a02", "#010a03", "#010a04", "#010a05"
STAGES = ("#010b00", "#010b01", "#010b02", "#010b03", "#010b04")
