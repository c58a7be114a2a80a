"""Figures of decomposition: accuracies, error rates of steps, and the formula of independent errors.

The formula takes each kind's error rate from steps that were shown the right answers of their parts, so it
knows nothing of how errors come together. Its difference to what was measured has an interval from whole
clusters, drawn with replacement: the rates, and so the formula, are reckoned anew in each draw. Its spread is
at least the one that independent errors have by chance, as draws hold no pair of errors that was never seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from calibrant.core import Estimate, point, unknown
from calibrant.data.task_tree import Layout, Needs
from calibrant.maths.decomposition import enough, node_accuracies
from calibrant.oversee._decomposition_null import Group, spreads
from calibrant.oversee._decomposition_play import Answer, is_right
from calibrant.stats import rate
from calibrant.stats._sample import Better, Floats
from calibrant.stats.bounded import bounded_mean

RESAMPLES = 1000
_LEVEL = 0.95
_ALIKE = 1e-12
Flags = dict[str, bool | None]


class Sample:
    """What every step was worth, task by task."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        direct: Sequence[Answer],
        own: Sequence[Flags],
        played: Sequence[Flags],
    ) -> None:
        """``own``: right where the parts' right answers were shown; ``played``: right with those given."""
        self.layouts, self.own, self.played = list(layouts), list(own), list(played)
        self.direct = [is_right(one, _truth(tree)) for one, tree in zip(direct, layouts, strict=True)]
        self.clusters = [tree.cluster for tree in layouts]
        self.whole = [flags[tree.root] for flags, tree in zip(played, layouts, strict=True)]
        self.kinds = sorted({group for tree in layouts for _, _, group in tree.shape})

    def mean(
        self,
        ends: tuple[Floats, Floats],
        *,
        better: Better = "higher",
        null: float | None = None,
        least: float = 0.0,
        level: float = _LEVEL,
    ) -> Estimate:
        """Mean over tasks of scores from ``least`` to 1 that lie between two ends (T,)."""
        return bounded_mean(
            *ends, clusters=self.clusters, bounds=(least, 1.0), better=better, unit="task", null_value=null,
            level=level,
        )  # fmt: skip


def _truth(tree: Layout) -> str:
    return tree.nodes[tree.root].answer


def between(flags: Sequence[bool | None]) -> tuple[Floats, Floats]:
    """Least and most of each: what failed is anything."""
    return (
        np.array([0.0 if one is None else float(one) for one in flags]),
        np.array([1.0 if one is None else float(one) for one in flags]),
    )


def less(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Ends of the difference."""
    return one[0] - other[1], one[1] - other[0]


def metrics(sample: Sample, errors: Sequence[float]) -> dict[str, Estimate]:
    """All figures but those of audits."""
    whole, direct = between(sample.whole), between(sample.direct)
    return {
        "accuracy/direct": sample.mean(direct),
        "accuracy/decomposed": sample.mean(whole),
        "gain": sample.mean(less(whole, direct), null=0.0, least=-1.0),
        **_steps(sample),
        **_formula(sample),
        **{f"formula/error_{error:g}": _at_error(sample, error) for error in errors},
    }


def _at_error(sample: Sample, error: float) -> Estimate:
    found = [node_accuracies(_tree(tree), np.full(len(tree.shape), 1 - error))[-1] for tree in sample.layouts]
    told = "exact, if every step had this error rate and erred independently"
    return point(float(np.mean(found)), unit="root accuracy", n=len(found), reason=told)


def _tree(tree: Layout) -> list[tuple[tuple[int, ...], Needs]]:
    return [(parts, needs) for parts, needs, _ in tree.shape]


def _steps(sample: Sample) -> dict[str, Estimate]:
    """Error rates of steps, and what happens above a wrong part."""
    wrong: dict[str, list[tuple[bool | None, str]]] = defaultdict(list)
    absorbed: list[tuple[bool | None, str]] = []
    disturbed: list[tuple[bool | None, str]] = []
    unanswered: list[tuple[bool | None, str]] = []
    for tree, own, played, cluster in zip(
        sample.layouts, sample.own, sample.played, sample.clusters, strict=True
    ):
        for name, node in tree.nodes.items():
            step = own[name]
            wrong[node.group].append((None if step is None else not step, cluster))
            unanswered.append((played[name] is None, cluster))
            parts = [played[part] for part in node.parts]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts) or all(known):
                continue
            if not enough(node.needs, known):
                absorbed.append((played[name], cluster))
            elif step:
                disturbed.append((None if played[name] is None else not played[name], cluster))
    every = [one for kind in sample.kinds for one in wrong[kind]]
    n = len(every)
    found = {"own_error_rate": _rate(every, "lower", n)}
    found |= {f"own_error_rate/{kind}": _rate(wrong[kind], "lower", n) for kind in sample.kinds}
    found["absorbed_rate"] = _rate(absorbed, "none", n, "no step had too few right parts")
    if any(needs != "all" for tree in sample.layouts for _, needs, _ in tree.shape):
        found["disturbed_rate"] = _rate(
            disturbed, "lower", n, "no step had wrong parts among enough right ones"
        )
    found["unanswered_share"] = _rate(unanswered, "lower", n)
    return found


def _rate(values: Sequence[tuple[bool | None, str]], better: Better, n: int, none: str = "") -> Estimate:
    if not values:
        return unknown(none or "there is no such step", n=n, unit="step")
    return rate([v for v, _ in values], clusters=[c for _, c in values], better=better, unit="step")


class _Tables:
    """Sums by task: steps by kind, and right ones by column: the root, then each height."""

    def __init__(self, sample: Sample) -> None:
        layouts, kinds = sample.layouts, sample.kinds
        self.shapes = list(dict.fromkeys(tree.shape for tree in layouts))
        places = {shape: at for at, shape in enumerate(self.shapes)}
        self.shape_of = np.array([places[tree.shape] for tree in layouts])
        first = [layouts[int(np.flatnonzero(self.shape_of == at)[0])] for at in range(len(self.shapes))]
        self.kind_at = [np.array([kinds.index(kind) for _, _, kind in shape]) for shape in self.shapes]
        self.heights = [[tree.height[name] for name in tree.nodes] for tree in first]
        self.columns = ["root", *(f"height_{at}" for at in range(1 + max(map(max, self.heights))))]
        size, wide = (len(layouts), len(kinds)), (len(layouts), len(self.columns))
        self.steps, self.wrong, self.lost = np.zeros(size), np.zeros(size), np.zeros(size)
        self.nodes, self.right, self.open = np.zeros(wide), np.zeros(wide), np.zeros(wide)
        for at, tree in enumerate(layouts):
            for name, node in tree.nodes.items():
                kind, own, played = kinds.index(node.group), sample.own[at][name], sample.played[at][name]
                self.steps[at, kind] += 1
                self.wrong[at, kind] += own is False
                self.lost[at, kind] += own is None
                for column in (1 + tree.height[name], *([0] if name == tree.root else [])):
                    self.nodes[at, column] += 1
                    self.right[at, column] += played is True
                    self.open[at, column] += played is None

    def rates(self, weights: Floats, lost: float | None) -> Floats:
        """(r, K) error rates; what failed counts as wrong by ``lost``, or not at all for None."""
        counts = weights @ (self.steps - self.lost if lost is None else self.steps)
        wrong = weights @ (self.wrong + (0.0 if lost is None else lost * self.lost))
        whole = wrong.sum(1, keepdims=True) / np.maximum(counts.sum(1, keepdims=True), 1.0)
        return np.where(counts > 0, wrong / np.maximum(counts, 1.0), whole)

    def formula(self, weights: Floats, rates: Floats) -> Floats:
        """(r, columns) mean accuracy by the formula."""
        total = np.zeros((len(weights), len(self.columns)))
        for at, shape in enumerate(self.shapes):
            mine = weights[:, self.shape_of == at].sum(1)
            tree = [(parts, needs) for parts, needs, _ in shape]
            found = node_accuracies(tree, 1.0 - rates[:, self.kind_at[at]])
            total[:, 0] += mine * found[:, -1]
            for place, height in enumerate(self.heights[at]):
                total[:, 1 + height] += mine * found[:, place]
        return total / np.maximum(weights @ self.nodes, 1.0)

    def measured(self, weights: Floats, lost: float | None) -> Floats:
        """(r, columns) share of right steps."""
        counts = weights @ (self.nodes - self.open if lost is None else self.nodes)
        return (weights @ (self.right + (0.0 if lost is None else lost * self.open))) / np.maximum(
            counts, 1.0
        )

    def chance(self, rates: Floats) -> tuple[Floats, float]:
        """Spread of the excess by column, and of ``joint``, where all err independently at ``rates`` (K,).

        Of tasks that were answered throughout; 0 where there are none.
        """
        whole = (self.lost.sum(1) == 0) & (self.open.sum(1) == 0)
        sizes = [int((whole & (self.shape_of == at)).sum()) for at in range(len(self.shapes))]
        groups = [
            Group(
                [(parts, needs) for parts, needs, _ in shape], self.kind_at[at], self.heights[at], sizes[at]
            )
            for at, shape in enumerate(self.shapes)
            if sizes[at]
        ]
        return spreads(groups, rates, len(self.columns)) if groups else (np.zeros(len(self.columns)), 0.0)

    def joint(self, weights: Floats, rates: Floats) -> Floats:
        """(r,) mean over tasks of the covariance of two steps' errors, over all pairs of steps of a task."""
        whole = (self.lost.sum(1) == 0) & (self.steps.sum(1) > 1)
        steps, wrong, some = self.steps[whole], self.wrong[whole], weights[:, whole]
        off = wrong.sum(1) - rates @ steps.T
        squares = rates**2 @ steps.T + (1 - 2 * rates) @ wrong.T
        count = steps.sum(1)
        pairs = (off**2 - squares) / (count * (count - 1))
        return np.asarray((some * pairs).sum(1) / np.maximum(some.sum(1), 1.0))


def _formula(sample: Sample) -> dict[str, Estimate]:
    """Accuracy by height beside the formula's, the excess, and how much errors come together."""
    clusters = sorted(set(sample.clusters))
    n, k = len(sample.layouts), len(clusters)
    if k == 1:
        none = unknown("one cluster shows nothing of how clusters differ", n=n, unit="task")
        return {"formula/root": none, "excess/root": none, "joint_error_excess": none}
    tables = _Tables(sample)
    codes = {name: at for at, name in enumerate(clusters)}
    drawn = np.random.default_rng(0).multinomial(k, [1 / k] * k, RESAMPLES)
    weights = np.concatenate([np.ones((1, n)), drawn[:, [codes[one] for one in sample.clusters]]])
    rates = [tables.rates(weights, lost) for lost in (None, 0.0, 1.0)]
    formula = [tables.formula(weights, one) for one in (rates[0], rates[2], rates[1])]
    measured = [tables.measured(weights, lost) for lost in (None, 0.0, 1.0)]
    excess = [one - other for one, other in zip(measured, (formula[0], formula[2], formula[1]), strict=True)]
    chance, joint_chance = tables.chance(rates[0][0])
    found: dict[str, Estimate] = {}
    for at, column in enumerate(tables.columns):
        unit, size = ("task" if column == "root" else "step"), int(tables.nodes[:, at].sum())
        lost = int(tables.open[:, at].sum())
        parts = {"formula": (formula, (0.0, 1.0), None), "excess": (excess, (-1.0, 1.0), 0.0)}
        if column != "root":
            parts["accuracy"] = (measured, (0.0, 1.0), None)
        for name, (table, bounds, null) in parts.items():
            least = float(chance[at]) if name == "excess" else 0.0
            one = _drawn([side[:, at] for side in table], k, bounds, null, least)
            better: Better = "higher" if name == "accuracy" else "none"
            found[f"{name}/{column}"] = one.model_copy(
                update={"n": size, "missing": lost, "unit": unit, "better": better}
            )
    steps = int(tables.steps.sum())
    if not ((tables.lost.sum(1) == 0) & (tables.steps.sum(1) > 1)).any():
        found["joint_error_excess"] = unknown("no task has two steps that were all answered", n=steps)
        return found
    joint = tables.joint(weights, rates[0])
    whole = _drawn([joint] * 3, k, (-0.25, 1.0), 0.0, joint_chance)
    gone = int((tables.lost.sum(1) > 0).sum())
    if gone:
        told = f"{gone} of {n} tasks have a step without an answer, and were left out: no end holds them"
        whole = whole.model_copy(update={"low": None, "high": None, "reason": told})
    found["joint_error_excess"] = whole.model_copy(update={"n": n, "missing": gone, "unit": "task"})
    return found


def _drawn(
    sides: Sequence[Floats], k: int, bounds: tuple[float, float], null: float | None, least: float = 0.0
) -> Estimate:
    """What stands first in each of three rows, with the spread of the draws that follow it.

    The rows are of what is known, and with what failed at its least and at its most. The interval is
    Student's t by the draws' standard deviation, which is taken for no less than ``least``. Where no draw
    differs, the ends allow for clusters that differ unseen.
    """
    known, low, high = sides
    times = float(stdtrit(k - 1, (1 + _LEVEL) / 2)) * math.sqrt(k / (k - 1))
    unseen = 1.0 - ((1 - _LEVEL) / 2) ** (1 / k)
    deviations = [max(least, float(side[1:].std())) for side in (known, low, high)]
    reach = [times * spread if spread > _ALIKE else unseen for spread in deviations]
    value: float | None = float(known[0])
    reason = (
        "all clusters agree: the ends allow for clusters that differ unseen"
        if deviations[0] <= _ALIKE
        else ""
    )
    moved = max(float(known[0] - low[0]), float(high[0] - known[0]))
    if moved > reach[0]:
        value, reason = None, f"what gave no answer could move {float(known[0]):.3f} by {moved:.3f}"
    return Estimate(
        value=value,
        low=max(bounds[0], min(float(low[0]) - reach[1], float(known[0]))),
        high=min(bounds[1], max(float(high[0]) + reach[2], float(known[0]))),
        clusters=k,
        method="cluster bootstrap, student-t",
        reason=reason,
        null_value=null,
    )
