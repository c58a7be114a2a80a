"""Names and where they lead."""

from __future__ import annotations

import importlib.metadata

import pytest

from calibrant.app import catalog
from calibrant.core import LM, ConfigError, Frozen


@pytest.mark.parametrize("name", sorted(catalog.TECHNIQUES))
def test_every_technique_is_there_with_a_version_and_a_config(name):
    found = catalog.find_technique(name)
    assert found.version >= 1 and found.config is not None and issubclass(found.config, Frozen)
    assert found.config() is not None or name == "attack.persona"


@pytest.mark.parametrize("name", sorted(catalog.BEHAVIOURS))
def test_every_behaviour_is_there(name):
    assert callable(catalog.find_behaviour(name).function)


def test_inputs_are_what_the_function_takes():
    found = catalog.find_technique("measure.capability")
    assert list(found.inputs) == ["model", "items", "before"]
    assert found.inputs["before"] == catalog.Parameter(LM, required=False)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("calibrant.core:LMM", "has no 'LMM' (did you mean 'LM'?)"),
        ("no.such:thing", "PYTHONPATH"),
        ("calibrant.no_such:thing", "pip install"),
        ("calibrant.core", "names no function"),
    ],
)
def test_what_cannot_be_loaded(target, said):
    with pytest.raises(ConfigError) as caught:
        catalog.load(target)
    assert said in str(caught.value)


def test_an_error_inside_a_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_made.py").write_text("undefined_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NameError):
        catalog.load("half_made:thing")


def test_other_packages_add_names_by_entry_points(monkeypatch):
    entry = importlib.metadata.EntryPoint(
        "other.rain", "calibrant.attack.encode:encode", "calibrant.techniques"
    )
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == entry.group else [])
    assert catalog.find_technique("other.rain").function.__name__ == "encode"
    assert "other.rain" not in catalog.behaviours()
