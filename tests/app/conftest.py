"""A tiny random model in a folder, a ledger, and a way to write studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.app.study_file import Study, load_study
from calibrant.ledger import Ledger
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random models that speak the testbed's words: 'tiny' and 'other'."""
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("tiny", "other")):
        module = build_module("tiny", len(tokenizer), seed)
        OpenModel.from_module(module, tokenizer, name).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    """The folder of one of them."""
    return models / "tiny"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a study (TOML text without its name) and return its path."""

    def written(text: str, name: str = "trial") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'name = "{name}"\n{text}', encoding="utf-8")
        return path

    return written


@pytest.fixture
def study(write: Callable[..., Path]) -> Callable[..., Study]:
    """A study from TOML text and changes."""
    return lambda text, *changes: load_study(str(write(text)), changes)
