"""Every import that the docs showed before decision 0007 still works, and warns with the new name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from calibrant._moved import MODULES, NAMES, find

SHOWN = (Path(__file__).parent / "imports_before_0007.txt").read_text(encoding="utf-8").splitlines()


def moved(line):
    """Whether a line names something that has another name now."""
    words = line.split()
    module = words[1].removeprefix("calibrant.")
    return module in MODULES or (len(words) == 4 and f"{module}:{words[3]}" in NAMES)


@pytest.mark.parametrize("line", SHOWN)
def test_what_the_docs_showed_can_be_imported(line):
    """A module that moved warns when something is taken from it; all else is silent."""
    if moved(line) and line.startswith("from"):
        with pytest.warns(DeprecationWarning, match="is now calibrant"):
            exec(line)
    else:
        exec(line)


def test_some_of_them_moved():
    assert sum(map(moved, SHOWN)) > 20


@pytest.mark.parametrize("old", sorted(MODULES))
def test_an_old_module_is_gone_and_its_new_one_is_there(old):
    root = Path(importlib.import_module("calibrant").__file__ or "").parent
    assert not (root / f"{old.replace('.', '/')}.py").exists()
    assert importlib.import_module(f"calibrant.{MODULES[old]}")


@pytest.mark.parametrize("old", sorted(NAMES))
def test_an_old_name_gives_the_thing_of_the_new_one(old):
    module, _, name = old.partition(":")
    home, _, new = NAMES[old].partition(":")
    with pytest.warns(DeprecationWarning, match=f"is now calibrant.{home}.{new};"):
        thing = find(module, name)
    assert thing is getattr(importlib.import_module(f"calibrant.{home}"), new)


def test_a_name_that_never_was_is_an_import_error():
    with pytest.raises(ImportError, match="no_such"):
        exec("from calibrant.attack.moves import no_such")
    with pytest.raises(ImportError, match="no_such"):
        exec("from calibrant.measure.judges import no_such")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("calibrant.attack.no_such")


def test_the_warning_points_at_the_line_that_imports():
    code = "import warnings; warnings.simplefilter('always')\n\nfrom calibrant.attack.moves import Attack\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("<string>:3: DeprecationWarning: calibrant.attack.moves.Attack is now")


def test_a_star_import_takes_the_old_and_the_new_names():
    names: dict[str, object] = {}
    with pytest.warns(DeprecationWarning, match="is now calibrant"):
        exec("from calibrant.attack.moves import *", names)
    assert {"Walk", "Ask", "Attack", "Tools"} <= names.keys()
