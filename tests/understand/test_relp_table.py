"""The table of RelP less AtP: what it says of intervals, of planted models, and of nulls."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.testbed.circuits import open_contrasts, open_plant

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import relp_table
from relp_table import MEASURES, Draw, agreement, gains, main, planted, said, table


def test_an_interval_that_holds_0_is_no_gain():
    assert said([0.1, -0.2, 0.15, -0.1]).startswith("no gain: -0.01 [-0.")
    assert said([0.5, 0.6, 0.55, 0.58]).startswith("+0.56 [0.")
    assert said([-0.5, -0.6, -0.55, -0.58]).startswith("a loss: -0.56 [-0.")
    wide = said([-0.9, 0.9, 0.8, -0.7]).partition("[")[2].rstrip("]").split(", ")
    assert -2 <= float(wide[0]) < 0 < float(wide[1]) <= 2  # a difference of two correlations
    assert said([0.5, float("nan")]) == "unknown: 1 draws"


def test_agreement_is_the_correlation_over_cells_of_each_end():
    exact = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    found = agreement(np.array([[0.0, 1.0, 2.0, 30.0], [1.0, 2.0, 3.0, 4.0]]), exact)
    assert tuple(found) == MEASURES
    assert found["Spearman, denoise"] == pytest.approx(1)
    assert found["Pearson, denoise"] == pytest.approx(np.corrcoef([0, 1, 2, 30], [0, 1, 2, 3])[0, 1])
    assert np.isnan(found["Spearman, noise"]) and np.isnan(found["Pearson, noise"])


def test_relp_is_nearer_where_the_last_norm_saturates():
    """At the clean run what the heads write is most of the last norm, whose scale RelP keeps."""
    draws = planted("induction?negative=1", 2)
    found = [gains(draw, "z") for draw in draws]
    assert draws[0].contrasts != draws[1].contrasts
    assert min(one["Pearson, noise"] for one in found) > 0.1


def test_a_draw_where_nothing_is_testable_is_left_out(monkeypatch):
    null = Draw(open_plant("induction", {"removed": "1"}), open_contrasts("induction", {"n": "8"}))
    assert gains(null, "z") is None
    monkeypatch.setattr(relp_table, "SITES", ("z",))
    *_, row = table("a null", [null, null])
    assert row == f"| `z` | {' | '.join(['unknown: 0 draws'] * 4)} | 0 |"


def test_lessons_tell_what_comes_next():
    """Every target follows from an earlier occurrence of the word before it; at no fixed distance."""
    ids, after = relp_table.lesson(24, 12, 40, torch.Generator().manual_seed(0))
    distances = set()
    for row, targets in zip(ids.tolist(), after.tolist(), strict=True):
        assert any(target != -100 for target in targets)
        for at, target in enumerate(targets):
            if target == -100:
                continue
            earlier = [place for place in range(at) if row[place] == row[at]]
            assert earlier and row[earlier[-1] + 1] == target
            distances.add(at - earlier[-1])
    assert len(distances) > 5


def test_one_draw_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--draws", "1"])
    assert "two draws" in capsys.readouterr().err
