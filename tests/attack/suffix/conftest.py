"""The tiny models of tests/models, for what reads their weights."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("tiny_models", Path(__file__).parents[2] / "models" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_models = module_from_spec(_spec)
_spec.loader.exec_module(_models)

tiny, chatml, lm = _models.tiny, _models.chatml, _models.lm
