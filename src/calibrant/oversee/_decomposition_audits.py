"""Which steps to audit under a budget, and what that gains.

Rates that a policy goes by are those of other tasks (folds of whole clusters), so that no task decides about
its own audits. All policies play the same trees on the same answers, so differences are paired by task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from calibrant.core import Estimate, point, unknown
from calibrant.data.task_tree import Layout
from calibrant.maths.decomposition import audited_accuracies, best_audits, greedy_audits
from calibrant.oversee._decomposition_metrics import Flags, Sample, between, less
from calibrant.oversee._decomposition_play import Panel, Step, is_right
from calibrant.stats import rate
from calibrant.stats._sample import Better, Floats
from calibrant.stats.bounded import bounded_mean

Policy = Literal["uniform", "root_first", "leaves_first", "suspicious", "gain", "optimum"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
BY_RATES: tuple[Policy, ...] = ("gain", "optimum")
Advice = Policy | Literal["none"]
FOLDS = 5
_LEVEL = 0.95
Suspicions = Sequence[dict[str, float | None]]


class Audit(NamedTuple):
    """An audited step that was shown the right answers of its parts."""

    kind: str
    cluster: str
    right: bool | None
    """Before the audit; None: there was no answer."""
    rejected: bool | None
    """None: the auditor did not say."""
    after: bool | None
    """Whether what stands after the audit is right."""


class Plan(NamedTuple):
    """Which steps of one task are audited by a policy under a budget."""

    task: int
    policy: Policy
    budget: int
    nodes: frozenset[str]
    expected: float | None
    """What that gains, by the formula and other tasks' rates; None where the auditor said too little."""


def audited(panel: Panel, steps: Sequence[tuple[Step, str | None]]) -> list[Audit]:
    """Every step with an answer, audited once."""
    held = [(step, answer) for step, answer in steps if answer is not None]
    rejected = dict(zip(held, panel.rejects(held), strict=True))
    after = dict(zip(held, panel.after_audit(held), strict=True))
    found = []
    for step, answer in steps:
        tree = panel.layouts[step.task]
        node = tree.nodes[step.node]
        one = (step, answer) if answer is not None else None
        found.append(
            Audit(
                node.group,
                tree.cluster,
                is_right(answer, node.answer),
                None if one is None else rejected[one],
                None if one is None else is_right(after[one], node.answer),
            )
        )
    return found


def auditor_metrics(audits: Sequence[Audit], kinds: Sequence[str]) -> dict[str, Estimate]:
    """What the auditor misses and rejects without need, and what an audit of a step is worth."""
    n = len(audits)
    held = [one for one in audits if one.right is not None]
    wrong = [one for one in held if not one.right]
    right = [one for one in held if one.right]
    found, spoiled = [one for one in wrong if one.rejected], [one for one in right if one.rejected]
    rates = {
        "miss_rate": _rate([(_not(one.rejected), one) for one in wrong], n, "no step was wrong"),
        "false_alarm_rate": _rate([(one.rejected, one) for one in right], n, "no step was right"),
        "no_verdict_share": _rate([(one.rejected is None, one) for one in held], n, "no step was answered"),
        "repair_rate": _rate([(one.after, one) for one in found], n, "no wrong step was rejected", "higher"),
        "spoiled_rate": _rate([(_not(one.after), one) for one in spoiled], n, "no right step was rejected"),
        "step_gain": _gain(audits),
    }
    return rates | {f"step_gain/{kind}": _gain([one for one in audits if one.kind == kind]) for kind in kinds}


def _not(flag: bool | None) -> bool | None:
    return None if flag is None else not flag


def _rate(
    values: Sequence[tuple[bool | None, Audit]], n: int, none: str, better: Better = "lower"
) -> Estimate:
    if not values:
        return unknown(none, n=n, unit="step")
    clusters = [one.cluster for _, one in values]
    return rate([value for value, _ in values], clusters=clusters, better=better, unit="step")


def _gain(audits: Sequence[Audit]) -> Estimate:
    before, after = (between([getattr(one, name) for one in audits]) for name in ("right", "after"))
    ends = less(after, before)
    return bounded_mean(
        *ends, clusters=[one.cluster for one in audits], bounds=(-1.0, 1.0), better="higher", unit="step",
        null_value=0.0,
    )  # fmt: skip


class Settings(NamedTuple):
    """What is compared."""

    policies: tuple[Policy, ...]
    budgets: tuple[int, ...]
    draws: int
    most_sets: int


def plans(
    sample: Sample, audits: Sequence[Audit], suspicions: Suspicions | None, settings: Settings, seed: int
) -> list[Plan]:
    """What every policy audits, task by task; 'uniform' several times, by lot."""
    rng = np.random.default_rng(seed)
    names = sorted(set(sample.clusters))
    fold_of = dict(zip(names, (rng.permutation(len(names)) % FOLDS).tolist(), strict=True))
    rates = [_Rates([one for one in audits if fold_of[one.cluster] != fold]) for fold in range(FOLDS)]
    by_shape: dict[tuple[object, ...], _Worth] = {}
    found = []
    for at, tree in enumerate(sample.layouts):
        fold = fold_of[tree.cluster]
        if (tree.shape, fold) not in by_shape:
            by_shape[tree.shape, fold] = _Worth(tree, rates[fold], settings.most_sets)
        worth = by_shape[tree.shape, fold]
        sets: list[tuple[Policy, int, list[int]]] = []
        for budget in settings.budgets:
            for policy in settings.policies:
                if policy == "uniform":
                    most = min(budget, len(tree.nodes))
                    lots = [rng.choice(len(tree.nodes), most, replace=False) for _ in range(settings.draws)]
                    sets += [(policy, budget, lot.tolist()) for lot in lots]
                    continue
                scores = suspicions[at] if suspicions else {}
                if policy in BY_RATES:
                    chosen = worth.best(policy, budget) if rates[fold].known else None
                else:
                    chosen = _ranked(tree, policy, scores)[:budget]
                if chosen is not None:
                    sets.append((policy, budget, chosen))
        gains = worth.gains([chosen for _, _, chosen in sets])
        places = list(tree.nodes)
        for (policy, budget, chosen), gain in zip(sets, gains, strict=True):
            expected = gain if rates[fold].known else None
            found.append(Plan(at, policy, budget, frozenset(places[one] for one in chosen), expected))
    return found


class _Worth:
    """What audits of one shape of tree are worth by the formula, at given rates."""

    def __init__(self, tree: Layout, rates: _Rates, most_sets: int) -> None:
        self._tree = [(parts, needs) for parts, needs, _ in tree.shape]
        self._before, self._after = (np.array([rates(kind)[i] for _, _, kind in tree.shape]) for i in (0, 1))
        self._most, self._known = most_sets, dict[tuple[Policy, int], list[int] | None]()

    def best(self, policy: Policy, budget: int) -> list[int] | None:
        """Places by greatest gain one by one, or of the best set; None where there are too many sets."""
        if (policy, budget) not in self._known:
            told = (self._tree, self._before, self._after, budget)
            self._known[policy, budget] = (
                greedy_audits(*told) if policy == "gain" else best_audits(*told, self._most)
            )
        return self._known[policy, budget]

    def gains(self, sets: Sequence[list[int]]) -> list[float]:
        """What each set of places adds to the accuracy of the root."""
        flags = np.zeros((len(sets) + 1, len(self._tree)), dtype=bool)
        for row, chosen in enumerate(sets):
            flags[row, chosen] = True
        values = audited_accuracies(self._tree, self._before, self._after, flags)
        return [float(value) for value in values[:-1] - values[-1]]


class _Rates:
    """Kind -> chance that a step is right, before and after an audit; half a right and half a wrong one are
    added, so that no rate is 0 or 1.

    Where an audit left no answer, what it would have left is taken from right steps where the step was right,
    and from wrong ones where it was wrong: an auditor may be silent on just those.
    """

    def __init__(self, audits: Sequence[Audit]) -> None:
        self._steps: dict[tuple[str, bool], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for one in audits:
            if one.right is not None:
                for kind in (one.kind, ""):
                    counts = self._steps[kind, one.right]
                    counts[0] += 1
                    counts[1] += one.after is not None
                    counts[2] += one.after is True
        sides = [self._steps["", right] for right in (True, False)]
        self.known = sides[0][1] + sides[1][1] > 0 and all(2 * side[1] >= side[0] for side in sides)
        """Whether at least half of the right steps and of the wrong ones have an answer after their audit."""

    def __call__(self, kind: str) -> tuple[float, float]:
        if not any(self._steps[kind, right][0] for right in (True, False)):
            kind = ""
        n = before = after = 0.0
        for right in (True, False):
            held, said, well = self._steps[kind, right]
            _, all_said, all_well = self._steps["", right]
            n, before = n + held, before + held * right
            after += held * (well / said if said else all_well / max(all_said, 1.0))
        return (before + 0.5) / (n + 1), (after + 0.5) / (n + 1)


def _ranked(tree: Layout, policy: Policy, suspicion: dict[str, float | None]) -> list[int]:
    """Places in the order in which they are audited; what the monitor could not score comes first."""
    names = list(tree.nodes)
    if policy == "root_first":
        return sorted(range(len(names)), key=lambda at: tree.depth[names[at]])
    if policy == "leaves_first":
        return sorted(range(len(names)), key=lambda at: tree.height[names[at]])
    scores = [suspicion.get(name) for name in names]
    return sorted(range(len(names)), key=lambda at: -np.inf if scores[at] is None else -(scores[at] or 0.0))


def audit_metrics(
    sample: Sample, made: Sequence[Plan], played: Sequence[Flags], settings: Settings, audits: Sequence[Audit]
) -> tuple[dict[str, Estimate], dict[int, tuple[Advice, str]]]:
    """Figures by policy and budget, and for each budget what is recommended, and why."""
    roots: dict[tuple[Policy, int], dict[int, list[bool | None]]] = defaultdict(lambda: defaultdict(list))
    expected: dict[tuple[Policy, int], list[float | None]] = defaultdict(list)
    for plan, flags in zip(made, played, strict=True):
        roots[plan.policy, plan.budget][plan.task].append(flags[sample.layouts[plan.task].root])
        expected[plan.policy, plan.budget].append(plan.expected)
    tried = {key: _ends(by_task, len(sample.layouts)) for key, by_task in roots.items()}
    ends = {key: pair for key, pair in tried.items() if pair is not None}
    before, found = between(sample.whole), {}
    advice: dict[int, tuple[Advice, str]] = {}
    for budget in settings.budgets:
        made_by = {policy: ends[policy, budget] for policy in settings.policies if (policy, budget) in ends}
        count = np.array([min(budget, len(tree.nodes)) for tree in sample.layouts])
        for policy in settings.policies:
            name = f"{policy}/at_{budget}"
            if policy not in made_by:
                heard = all(one is not None for tries in expected.values() for one in tries)
                told = f"a tree has more than {settings.most_sets} sets of audits to try"
                if policy == "gain" or not heard:
                    told = f"there are no rates to go by: {_silent(audits)[1]}"
                for metric in ("audited_accuracy", "audit_gain", "expected_gain"):
                    found[f"{metric}/{name}"] = unknown(told, n=len(sample.layouts), unit="task")
                continue
            after = made_by[policy]
            gain = less(after, before)
            found[f"audited_accuracy/{name}"] = sample.mean(after)
            found[f"audit_gain/{name}"] = sample.mean(gain, null=0.0, least=-1.0)
            per = (gain[0] / count, gain[1] / count)
            found[f"gain_per_audit/{name}"] = sample.mean(per, null=0.0, least=-1.0)
            if policy != "suspicious":  # the formula knows no scores
                found[f"expected_gain/{name}"] = _expected(
                    expected[policy, budget], len(sample.layouts), audits
                )
            for other, word in (("uniform", "over_uniform"), ("optimum", "over_optimum")):
                if other in made_by and other != policy:
                    versus = less(after, made_by[other])
                    found[f"{word}/{name}"] = sample.mean(versus, null=0.0, least=-1.0)
        advice[budget] = _advised(sample, made_by, before, budget)
    return found, advice


def _silent(audits: Sequence[Audit]) -> tuple[int, str]:
    """How many answered steps have no answer after their audit, and in words."""
    answered = [one for one in audits if one.right is not None]
    silent = sum(one.after is None for one in answered)
    return silent, f"{silent} of {len(answered)} steps have no answer after an audit"


def _expected(gains: Sequence[float | None], n: int, audits: Sequence[Audit]) -> Estimate:
    """What the formula says of a policy; unknown where the auditor said too little."""
    known = [gain for gain in gains if gain is not None]
    count, silent = _silent(audits)
    if len(known) < len(gains):
        return unknown(f"there are no rates to go by: {silent}", n=n, unit="root accuracy")
    told = f"by the formula, at the rates of other tasks{f'; {silent}' if count else ''}"
    return point(float(np.mean(known)), unit="root accuracy", n=n, reason=told)


def _ends(by_task: dict[int, list[bool | None]], n: int) -> tuple[Floats, Floats] | None:
    """Least and most of each task, over its draws; None where a task has none."""
    if len(by_task) < n:
        return None
    pairs = [between(by_task[at]) for at in range(n)]
    return np.array([low.mean() for low, _ in pairs]), np.array([high.mean() for _, high in pairs])


def _advised(
    sample: Sample, made_by: dict[Policy, tuple[Floats, Floats]], before: tuple[Floats, Floats], budget: int
) -> tuple[Advice, str]:
    """The policy that beats uniform audits by most, of those that are shown to; else uniform. 'none' where
    the one that is left is shown to do harm.

    The intervals are Bonferroni's over all that are compared, so that none is named by chance in over 5 %.
    """
    name, told = _beats_uniform(sample, made_by, budget)
    if name in made_by:
        level = 1 - (1 - _LEVEL) / len(made_by)
        gain = sample.mean(less(made_by[name], before), null=0.0, least=-1.0, level=level)
        if gain.high is not None and gain.high < 0:
            harm = f"[{gain.low:.3f}, {gain.high:.3f}]"
            return (
                "none",
                f"no audit is better: {name} audits change accuracy by {harm}",
            )
    return name, told


def _beats_uniform(
    sample: Sample, made_by: dict[Policy, tuple[Floats, Floats]], budget: int
) -> tuple[Policy, str]:
    others: list[Policy] = [name for name in reversed(POLICIES) if name in made_by and name != "uniform"]
    if "uniform" not in made_by or not others:
        return "uniform", "nothing was compared with uniform audits"
    level = 1 - (1 - _LEVEL) / len(others)
    best: tuple[float, Policy, str] | None = None
    for name in others:
        over = sample.mean(less(made_by[name], made_by["uniform"]), null=0.0, least=-1.0, level=level)
        if (
            over.value is not None
            and over.low is not None
            and over.low > 0
            and (not best or over.value > best[0])
        ):
            told = f"{over.value:+.3f} over uniform audits [{over.low:.3f}, {over.high:.3f}]"
            best = (over.value, name, f"{told}, corrected for {len(others)} policies")
    if best is None:
        return "uniform", f"no policy is shown to beat uniform audits at a budget of {budget}"
    return best[1], best[2]
