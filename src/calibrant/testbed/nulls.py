"""Null models: the same architecture with random weights, as controls."""

from __future__ import annotations

from collections.abc import Mapping

from calibrant.core import Identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name
from calibrant.testbed.raise_model import SIZES, build_module
from calibrant.testbed.tokens import build_tokenizer


def open_null(name: str, options: Mapping[str, str]) -> OpenModel:
    """A model of the size ``name`` with random weights; ``?seed=1`` draws others."""
    check_name("null", name, SIZES, "size")
    tokenizer = build_tokenizer()
    module = build_module(name, len(tokenizer), int(options.get("seed", "0")))
    identity = Identity(name=f"testbed:null/{name}", parts={"null": name, **options})
    return OpenModel(module, tokenizer, identity=identity)
