"""Goodhart watch on simulated runs: a planted hump stops them near its peak, a steady rise does not.

A simulated run moves away from its start in even steps of sqrt(KL); at each look the rollouts have a sampled
KL and noisy gold scores, as real ones do.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from calibrant.core import Chat, Identity, NumericalError, Scores, Watcher, point, resolve
from calibrant.core.errors import ConfigError
from calibrant.measure import goodhart_watch as watching
from calibrant.measure.goodhart_watch import GoodhartWatchConfig, Look, goodhart_watch
from calibrant.stats import gao
from calibrant.stats.gao import GaoFit

REPLIES = 16
CHATS = tuple(Chat.ask(f"prompt {i // 2}") for i in range(REPLIES))
PEAK, TOP = math.e, math.e / 2
"""Of the hump below: d* = exp(1 / .5 - 1), R* = .5 d*."""


def hump(d):
    """Gao's RL form with alpha = 1, beta = .5."""
    return d * (1 - 0.5 * math.log(d)) if d > 0 else 0.0


def rises(d):
    return 0.5 * d


def flat(d):
    return 0.0


class Read:
    """A gold reward that reads the score off the reply."""

    identity = Identity(name="gold", kind="reward", parts={"read": "1"})

    def score(self, chats, replies):
        return Scores(mean=tuple(float(reply) for reply in replies))


def rollouts(d, gold, rng, noise=0.3, std=None, exact=False):
    """One look at distance d: k1 sums with mean d^2 and variance 2 d^2, as between two near Gaussians."""
    kl = d * d + (0 if exact else math.sqrt(2) * d) * rng.standard_normal(REPLIES)
    texts = tuple(repr(float(x)) for x in gold + noise * rng.standard_normal(REPLIES))
    spread = None if std is None else (std,) * REPLIES
    return SimpleNamespace(
        chats=CHATS, texts=texts, scores=Scores(mean=(d,) * REPLIES, std=spread), kl=kl.tolist()
    )


def simulate(curve, seed, looks=40, far=8.0, watch=None, noise=0.3, **settings):
    """Distance at which the run was stopped, or None; and the watcher."""
    rng = np.random.default_rng(seed)
    watch = watch or goodhart_watch(Read(), GoodhartWatchConfig(**settings))
    for step in range(looks):
        d = far * step / (looks - 1)
        if watch.see(10 * step, None, rollouts(d, curve(d), rng, noise)).answer == "no":
            return d, watch
    return None, watch


@pytest.fixture
def quick(monkeypatch):
    """Fewer draws, and no band nor interval of a look, which decide nothing: for hundreds of runs."""
    monkeypatch.setattr(gao, "DRAWS", 300)
    monkeypatch.setattr(gao, "_GRID", 2)
    monkeypatch.setattr(watching, "mean", lambda values, **_: point(sum(values) / len(values)))


def test_a_hump_is_stopped_near_its_peak(quick):
    """20 runs that would end at R(8) = -.32, 1.68 below the top of 1.36. Regret = top less R where stopped.

    In 60 runs each, 'may fall' stopped at sqrt(KL) 2.7 to 3.7: regret .007, worst .08. 'falls' stopped at
    3.3 to 5.5: regret .22, worst .56. The peak is at 2.72.
    """
    for rule, mean, worst in (("may fall", 0.03, 0.15), ("falls", 0.3, 0.8)):
        stops = [simulate(hump, seed, stop_when=rule)[0] for seed in range(20)]
        assert None not in stops
        regrets = [TOP - hump(d) for d in stops]
        assert np.mean(regrets) < mean
        assert max(regrets) < worst
        if rule == "falls":
            assert min(stops) > PEAK


def test_a_steady_rise_is_not_stopped(quick):
    """80 runs of 20 looks: 'may fall' stops one in fifty for nothing (6 would be too many), 'falls' none."""
    stopped = [simulate(rises, seed, looks=20)[0] is not None for seed in range(80)]
    assert sum(stopped) <= 5
    assert not any(simulate(rises, seed, looks=20, stop_when="falls")[0] for seed in range(15))


def test_noise_alone(quick):
    """A gold reward that does not move: 'may fall' always stops, for no rise is shown; 'falls' rarely."""
    assert all(simulate(flat, seed, looks=20)[0] for seed in range(15))
    fell = [simulate(flat, seed, looks=20, stop_when="falls")[0] is not None for seed in range(30)]
    assert sum(fell) <= 5


def test_yes_while_it_rises_and_the_reason_says_what_was_seen():
    stopped, watch = simulate(rises, 0, noise=0.05)
    assert stopped is None
    verdict = watch.verdict()
    assert verdict.answer == "yes"
    assert verdict.score == pytest.approx(0.5, abs=0.05)
    distance, slope = watch.looks[-1].sqrt_kl, watch.looks[-1].slope
    assert verdict.reason == f"step 390, sqrt(KL) = {distance:.2f}: the slope of 'gold' is {slope}"
    assert len(watch.looks) == 40
    assert watch.looks[0].sqrt_kl == 0
    assert watch.looks[-1].proxy == pytest.approx(8)


def test_no_verdict_before_there_is_enough():
    watch = goodhart_watch(Read(), GoodhartWatchConfig(min_points=5, patience=1))
    assert watch.verdict().answer == "unknown"
    rng, told = np.random.default_rng(0), []
    for step, d in enumerate((0, 0.2, 0.4, 1, 2, 3, 4, 5)):
        told.append(watch.see(step, None, rollouts(d, -d, rng, exact=True)))
    assert [verdict.answer for verdict in told] == ["unknown"] * 7 + ["no"]
    assert "closer than 0.5" in told[1].reason
    assert "3 of 5 looks" in told[5].reason
    assert "may fall" in told[7].reason


def test_patience_counts_looks_on_end():
    watch, rng = goodhart_watch(Read(), GoodhartWatchConfig(min_points=5)), np.random.default_rng(0)
    told = [watch.see(step, None, rollouts(step, -step, rng, exact=True)) for step in range(9)]
    assert [verdict.answer for verdict in told] == ["unknown"] * 7 + ["no"] * 2
    assert "1 of 3" in told[5].reason
    assert "2 of 3" in told[6].reason


def test_a_resumed_run_decides_alike(tmp_path):
    """Half the looks, state through JSON, the other half: the same looks, verdict and file."""
    _, whole = simulate(hump, 3, looks=20)
    rng, first = np.random.default_rng(3), goodhart_watch(Read())
    second = goodhart_watch(Read())
    for step in range(20):
        d = 8.0 * step / 19
        if step == 12:
            second.restore(json.loads(json.dumps(first.state())))
        verdict = (first if step < 12 else second).see(10 * step, None, rollouts(d, hump(d), rng))
        if verdict.answer == "no":
            break
    assert second.looks == whole.looks
    assert second.verdict() == whole.verdict()
    for name, watch in (("a", whole), ("b", second)):
        watch.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_step_seen_again_replaces_what_followed():
    rng, watch = np.random.default_rng(0), goodhart_watch(Read())
    for step in (0, 10, 20, 30):
        watch.see(step, None, rollouts(step / 10, 1.0, rng))
    watch.see(20, None, rollouts(5.0, 2.0, rng))
    assert [look.step for look in watch.looks] == [0, 10, 20]
    assert watch.looks[-1].proxy == pytest.approx(5.0)


def test_the_file_holds_all_that_a_figure_needs(tmp_path):
    _, watch = simulate(hump, 1, stop_when="falls", patience=15)
    watch.write(tmp_path / "goodhart.json")
    found = json.loads((tmp_path / "goodhart.json").read_text())
    assert [Look.model_validate(look) for look in found["looks"]] == watch.looks
    assert found["verdict"]["answer"] == "no"
    assert found["gold"] == "'gold'"
    assert found["config"]["stop_when"] == "falls"
    fit = GaoFit.model_validate(found["fits"]["rl"])
    assert fit.at == watch.looks[-1].sqrt_kl
    assert fit.slope.high == watch.looks[-1].slope.high
    assert fit.peak_sqrt_kl.low < PEAK < (fit.peak_sqrt_kl.high or math.inf)
    assert len(fit.sqrt_kl) == len(fit.low)
    assert found["fits"]["best-of-n"]["form"] == "best-of-n"
    goodhart_watch().write(tmp_path / "empty.json")
    empty = json.loads((tmp_path / "empty.json").read_text())
    assert empty["fits"] == {"best-of-n": None, "rl": None}


def test_gold_has_an_interval_over_prompts():
    rng, watch = np.random.default_rng(0), goodhart_watch(Read())
    watch.see(0, None, rollouts(0.0, 1.0, rng))
    gold = watch.looks[0].gold
    assert (gold.n, gold.clusters) == (REPLIES, REPLIES // 2)
    assert gold.low < 1 < gold.high


def test_an_ensemble_stands_in_for_gold():
    """Proxy d, disagreement d^2 / 8: the pessimistic reward d - d^2 / 8 turns at d = 4."""
    rng, watch = np.random.default_rng(0), goodhart_watch(config=GoodhartWatchConfig(form="best-of-n"))
    assert watch.identity.name == "goodhart watch on the ensemble's disagreement"
    for step in range(40):
        d = 8 * step / 39
        if watch.see(step, None, rollouts(d, 0.0, rng, std=d * d / 8)).answer == "no":
            break
    assert d == pytest.approx(4, abs=1)
    assert watch.looks[5].gold.value == pytest.approx(
        watch.looks[5].proxy - watch.looks[5].disagreement, abs=1e-12
    )


def test_what_cannot_be_known_is_unknown():
    """No gold and no ensemble; a gold that fails; one score missing; no KL; a NaN. None of them is 'yes'."""

    class Broken(Read):
        def score(self, chats, replies):
            raise NumericalError("a weight is NaN")

    class Hole(Read):
        def score(self, chats, replies):
            return Scores(mean=(math.nan, *super().score(chats, replies).mean[1:]))

    rng = np.random.default_rng(0)
    for watch, words in (
        (goodhart_watch(), "no gold reward, and the proxy is no ensemble"),
        (goodhart_watch(Broken()), "the gold reward failed: a weight is NaN"),
        (goodhart_watch(Hole()), "15 of 16 replies have a gold score"),
    ):
        for step in range(20):
            verdict = watch.see(step, None, rollouts(float(step), float(step), rng))
            assert verdict.answer == "unknown"
            assert words in verdict.reason
        assert len(watch.looks) == 20
    watch, odd = goodhart_watch(Read()), rollouts(1.0, 1.0, rng)
    for change, words in (({"kl": None}, "no replies"), ({"kl": [math.nan] * REPLIES}, "KL nan")):
        verdict = watch.see(0, None, SimpleNamespace(**{**vars(odd), **change}))
        assert (verdict.answer, words in verdict.reason) == ("unknown", True)
    assert watch.looks == []


def test_a_failed_look_neither_stops_nor_clears_a_run():
    """Two looks against, one without gold, one against: that makes three on end."""
    rng, watch = np.random.default_rng(0), goodhart_watch(Read(), GoodhartWatchConfig(min_points=5))
    for step in range(7):
        watch.see(step, None, rollouts(step, -step, rng, exact=True))
    lost = rollouts(7, -7, rng)
    lost.texts = ("nan", *lost.texts[1:])
    assert watch.see(7, None, lost).answer == "unknown"
    assert watch.see(8, None, rollouts(8, -8, rng, exact=True)).answer == "no"


def test_identity_follows_gold_and_settings():
    class Other(Read):
        identity = Identity(name="gold", kind="reward", parts={"read": "2"})

    watches = [
        goodhart_watch(), goodhart_watch(Read()), goodhart_watch(Other()),
        goodhart_watch(Read(), GoodhartWatchConfig(patience=2)),
    ]  # fmt: skip
    assert len({watch.identity.digest for watch in watches}) == 4
    assert all(isinstance(watch, Watcher) for watch in watches)
    assert goodhart_watch(Read()).identity == watches[1].identity
    with pytest.raises(ConfigError, match="min_points"):
        resolve(GoodhartWatchConfig, {"min_points": 2})
