"""Cards and trained judges on disk: what is written is read, what is broken says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from calibrant.core import InputError
from calibrant.data.cards import CardRow, JudgeCard, read_card, write_card
from calibrant.data.judge_folder import CARD, WEIGHTS, read_head, write_head
from calibrant.data.judge_head import JudgeHead


def row(target, family, found, positives, cleared, negatives):
    return CardRow(
        target=target, family=family, found=found, positives=positives, cleared=cleared, negatives=negatives
    )


CARD_ = JudgeCard(
    judge="j" * 64,
    integrity="yes",
    rows=(row("a", "plain", 9, 10, 18, 20), row("a", "persona", 1, 4, 5, 5), row("b", "plain", 2, 2, 3, 4)),
)


def test_a_card_survives_the_disk(tmp_path):
    write_card(CARD_, tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == CARD_
    assert read_card(tmp_path / "card.json").digest == CARD_.digest


def test_errors_add_up_what_was_asked_for_and_nothing_else():
    one = CARD_.errors("plain", "a")
    assert (one.found, one.positives, one.cleared, one.negatives) == (9, 10, 18, 20)
    both = CARD_.errors(target="a")
    assert (both.found, both.positives, both.cleared, both.negatives) == (10, 14, 23, 25)
    assert CARD_.errors("plain").positives == 12
    assert CARD_.errors("gradient", "a") is None
    assert CARD_.errors("plain", "c") is None
    assert CARD_.targets == ("a", "b")


@pytest.mark.parametrize("text", ["", "[]", '{"judge": "x"}', '{"version": 2}', "no json"])
def test_what_is_no_card_says_so(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(InputError, match="is no judge's card"):
        read_card(tmp_path / "card.json")


HEAD = JudgeHead(
    question="did it?",
    model="m" * 64,
    site="hook_embed",
    pool="mean",
    threshold=0.4,
    mean=(0.1, 0.2),
    std=(1.0, 2.0),
    weight=(0.5, -0.25),
    bias=0.125,
)


def test_a_head_survives_the_disk_exactly(tmp_path):
    write_head(HEAD, tmp_path / "judge")
    assert read_head(tmp_path / "judge") == HEAD
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == [CARD, WEIGHTS]


def broken(tmp_path, **arrays):
    write_head(HEAD, tmp_path)
    whole = {"mean": HEAD.mean, "std": HEAD.std, "weight": HEAD.weight, "bias": (HEAD.bias,)}
    save_file({k: np.array(v, np.float64) for k, v in (whole | arrays).items()}, tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mean": (1.0,)}, "differ in length"),
        ({"std": (1.0, 0.0)}, "not above 0"),
        ({"weight": (float("nan"), 1.0)}, "not finite"),
        ({"bias": (1.0, 2.0)}, "no trained judge"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(tmp_path, arrays, said):
    broken(tmp_path, **arrays)
    with pytest.raises(InputError, match=said):
        read_head(tmp_path)


def test_a_folder_without_a_judge_says_so(tmp_path):
    with pytest.raises(InputError, match="no trained judge"):
        read_head(tmp_path)
    write_head(HEAD, tmp_path)
    (tmp_path / CARD).write_text(json.dumps({"question": "?"}))
    with pytest.raises(InputError, match="no trained judge"):
        read_head(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="no trained judge"):
        read_head(tmp_path)
