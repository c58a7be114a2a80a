"""Sparse autoencoders of published weights, on stories like those that they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import OpenLM, Quiet
from calibrant.data.rows import Prompts
from calibrant.ledger import Ledger
from calibrant.understand.sae import SAE, sae

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_learned_weights_are_told_from_random_ones_by_the_loss(tmp_path: Path, real_data: Path) -> None:
    """The study, on 60 of its 700 stories: the loss comes back over both ablations; with random weights
    there is none to bring back. Variance explained is high on both sides, and tells nothing."""
    study = load_study("sae_stories")
    openers = Openers(Ledger(tmp_path / "ledger"), given=study.given)
    model = openers.open("given:model", OpenLM).load()
    stories = openers.open("given:texts", Prompts).load()
    assert len(stories.rows) == 400
    some = Prompts(rows=stories.rows[:60])
    run = Quiet(0, tmp_path / "run")
    config = SAE(k=16, expansion=8, tokens=60_000, features=5, contexts=3)
    found = sae(model, some, config, run)
    metrics = found.metrics
    for over in ("zero", "mean"):
        assert metrics[f"ce_recovered/{over}"].low > 0.5
    assert metrics["ce_recovered/zero"].value > metrics["ce_recovered/mean"].value
    assert metrics["l0"].value <= 16
    assert 0.0 <= metrics["dead_share"].value < 0.5
    random = metrics["random/ce_recovered/mean"]
    assert random.value is None or random.low < metrics["ce_recovered/mean"].low
    assert metrics["random/explained_variance"].value > 0.5
    pages = json.loads((tmp_path / "run" / "artifacts" / "features.json").read_text(encoding="utf-8"))
    assert len(pages["features"]) == 5
    assert all(len(page["contexts"]) == 3 for page in pages["features"])
    shown = [
        token["token"] for page in pages["features"] for one in page["contexts"] for token in one["tokens"]
    ]
    assert any(token.startswith(" ") and token.strip() for token in shown)
