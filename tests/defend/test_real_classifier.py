"""Classifiers of real texts: the figures of docs/defend.train_classifier.md.

``-m real`` needs $CALIBRANT_DATA; with ``-m real_model`` also $CALIBRANT_MODELS, which holds Qwen2.5-Coder
0.5B and, for the encoder, all-minilm-l6-v2. About five minutes of one core.
"""

from __future__ import annotations

import csv
import json

import pytest

from calibrant.core import Chat, Goal, Quiet
from calibrant.data.rows import Goals, LabelledText, LabelledTexts
from calibrant.defend.train_classifier import TrainClassifier, train_classifier
from calibrant.models.encoder import open_encoder
from calibrant.models.open_model import OpenModel

SHORT = 150
"""Characters of the longest text that a language model reads here, on one core."""


def flagged(folder):
    """Prompt -> whether people flagged it for any category."""
    lines = (folder / "moderation/samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return {row["prompt"]: any(v == 1 for k, v in row.items() if k != "prompt") for row in rows}


def safe(folder):
    """The safe prompts of XSTest, and their types."""
    with (folder / "xstest/prompts.csv").open(encoding="utf-8", newline="") as file:
        return {row["prompt"]: row["type"] for row in csv.DictReader(file) if row["label"] == "safe"}


def wild(folder):
    return json.loads((folder / "jailbreak_prompts/inthewild.json").read_text(encoding="utf-8"))


def table(yes, no, longest=None):
    """Texts as rows; XSTest's types are templates."""
    rows = [(text, True, "") for text in yes] + [
        (text, False, kind) for text, kind in (no.items() if isinstance(no, dict) else ((t, "") for t in no))
    ]
    return LabelledTexts(
        rows=tuple(
            LabelledText(id=str(at), prompt=Chat.ask(text), label=label, template=kind)
            for at, (text, label, kind) in enumerate(rows)
            if text.strip() and (longest is None or len(text) <= longest)
        )
    )


def goals(texts):
    """Benign requests, in clusters where they have a type."""
    named = texts.items() if isinstance(texts, dict) else ((text, "") for text in texts)
    return Goals(
        rows=tuple(
            Goal(id=f"g{at}", text=text, harmful=False, cluster=kind) for at, (text, kind) in enumerate(named)
        )
    )


def moderation(folder, longest=None):
    texts = flagged(folder)
    data = table([t for t, y in texts.items() if y], [t for t, y in texts.items() if not y], longest)
    return {"texts": data, "benign": goals(safe(folder))}


def jailbreaks(folder, longest=None):
    """Against the safe prompts of XSTest; the benign set is of texts that nobody flagged."""
    plain = [text for text, yes in flagged(folder).items() if not yes and text.strip()]
    kept = [text for text in plain if longest is None or len(text) <= longest]
    return {"texts": table(dict.fromkeys(wild(folder)), safe(folder), longest), "benign": goals(kept)}


def mixed(folder, longest=None):
    """Jailbreaks against both kinds of benign texts, which are as long; nothing is left for a benign set."""
    plain = {text: "" for text, yes in flagged(folder).items() if not yes}
    return {"texts": table(dict.fromkeys(wild(folder)), {**plain, **safe(folder)}, longest)}


def trained(data, config=TrainClassifier(), **readers):
    return train_classifier(**data, **readers, config=config, run=Quiet()).metrics


def near(estimate, value, by=0.02):
    return abs(estimate.value - value) < by and estimate.low <= estimate.value <= estimate.high


@pytest.mark.real
def test_ngrams_tell_flagged_texts_somewhat(real_data):
    found = trained(moderation(real_data))
    assert near(found["auroc"], 0.749) and found["auroc"].low > 0.6
    assert found["false_alarm_rate"].low < 0.05 < found["false_alarm_rate"].high
    assert near(found["detection_rate"], 0.275, 0.04) and near(found["over_refusal_rate"], 0.064, 0.03)


@pytest.mark.real
def test_jailbreaks_against_short_questions_teach_length(real_data):
    """The page's warning: nearly perfect on held-out texts, and most ordinary longer texts are blocked."""
    found = trained(jailbreaks(real_data))
    assert found["auroc"].low > 0.97
    assert found["over_refusal_rate"].low > 0.3


@pytest.mark.real
def test_jailbreaks_are_told_from_texts_as_long(real_data):
    found = trained(mixed(real_data))
    assert found["auroc"].low > 0.95 and found["detection_rate"].low > 0.9
    assert found["false_alarm_rate"].low < 0.05


@pytest.mark.real
@pytest.mark.real_model
def test_an_encoder_tells_flagged_texts_a_little_better(real_data, real_models):
    folder = real_models / "all-minilm-l6-v2"
    if not folder.is_dir():
        pytest.skip("needs all-minilm-l6-v2 in CALIBRANT_MODELS")
    config = TrainClassifier(features="encoder")
    found = trained(moderation(real_data), config, encoder=open_encoder(folder))
    assert near(found["auroc"], 0.789) and near(found["over_refusal_rate"], 0.012, 0.02)


@pytest.mark.real
@pytest.mark.real_model
def test_a_language_models_states_tell_short_flagged_texts(real_data, real_models):
    """95 texts: n-grams tell nothing in so few."""
    data = {"texts": moderation(real_data, SHORT)["texts"]}
    model = OpenModel.from_folder(real_models / "qwen2.5-coder-0.5b-instruct")
    assert near(trained(data, TrainClassifier(features="model"), model=model)["auroc"], 0.82, 0.03)
    assert trained(data)["auroc"].low < 0.5
