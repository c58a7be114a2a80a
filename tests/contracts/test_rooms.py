"""In a wing a file without an underscore is a technique or a behaviour; all else is machinery and says so."""

from __future__ import annotations

from pathlib import Path

import calibrant
from calibrant.app.catalog import BEHAVIOURS, TECHNIQUES

SRC = Path(calibrant.__file__).parent
WINGS = ("train", "understand", "attack", "oversee", "defend", "measure", "govern")
EXCEPTIONS = {
    "defend/defended.py": "a model behind guards: what stack files and `defended:` references name",
    "govern/policy.py": "what a policy file holds: people write those",
    "govern/intent.py": "what [intent] holds: people write that",
}
"""File -> why it has no underscore."""


def test_a_file_without_an_underscore_is_in_the_catalogue():
    listed = {entry.target.partition(":")[0] for entry in [*TECHNIQUES.values(), *BEHAVIOURS.values()]}
    found = {
        path.relative_to(SRC).as_posix(): f"calibrant.{wing}.{path.stem}"
        for wing in WINGS
        for path in (SRC / wing).glob("*.py")
        if not path.name.startswith("_")
    }
    assert len(found) > 40
    machinery = {file for file, module in found.items() if module not in listed}
    assert machinery == EXCEPTIONS.keys(), "begin its name with '_', put it in a sub-package, or list it here"
    assert all(EXCEPTIONS.values())
