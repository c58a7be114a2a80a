"""Judges: who says what a reply was."""

from typing import Any

from calibrant._moved import find


def __getattr__(name: str) -> Any:
    return find("measure.judges", name)
