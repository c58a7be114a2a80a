"""What a run prints of each job: its headline, and what that leaves out."""

from __future__ import annotations

import pytest

from calibrant.app.listing import beside
from calibrant.core import Estimate, Record


@pytest.mark.parametrize(
    ("technique", "metrics", "said"),
    [
        (
            "measure.eval_log",
            {"lost_rate": 0.0, "mean_score/hit": 0.25},
            "mean_score/hit 0.250 [0.150, 0.350]",
        ),
        (
            "oversee.critique_revise",
            {"harm_change": -0.5, "helpful_change/round_1": -0.6},
            "helpful_change/round_1 -0.600 [-0.700, -0.500]",
        ),
        ("oversee.critique_revise", {"harm_change": -0.5}, ""),
        ("oversee.constitution_audit", {"defects_found": 1.0}, "1 gap; 17 of 18 undecided"),
        ("measure.refusal", {"harm_rate": 0.5}, ""),
    ],
)
def test_what_a_headline_leaves_out(technique, metrics, said):
    reason = "1 gap; 17 of 18 undecided" if technique.endswith("audit") else ""
    found = {
        name: Estimate(value=value, low=value - 0.1, high=value + 0.1, n=10, reason=reason)
        for name, value in metrics.items()
    }
    record = Record(technique=technique, version=1, job="0" * 64, result="", status="finished", metrics=found)
    assert beside(record) == said
