"""Calibrate instruments on planted circuits and nulls: what each finds, misses and makes up; the rule, too.

For every case of ``plants`` (a model whose circuit is known, or a null) and every seed:

1. Each instrument scores each head, or another ``site`` of each layer; one is found where its effect is
   beyond chance, corrected for looking at all, and above ``floor``. AUROC and average precision need no
   threshold. So do AtP*, RelP and two parts of path patching, which have no vote in the rule.
2. The same on held-out pairs: do the intervals of the two agree, and the order of the heads? And on the same
   pairs said otherwise: does the order hold?
3. The rule of triangulation judges true claims (the planted heads that work for the answer), false ones (as
   many others; one planted head and another; with one that works against it), and any on nulls.

The card, 'instruments.json', holds the counts.

    calibrant show understand.calibrate
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from calibrant.core import (
    Estimate,
    Frozen,
    InputError,
    OpenLM,
    Quiet,
    Result,
    Run,
    digest,
    technique,
    unknown,
)
from calibrant.data.instrument_card import InstrumentCard, InstrumentRow, RuleRow
from calibrant.data.planted import Planted, Plants
from calibrant.ledger.lines import Lines, replay
from calibrant.stats import mean
from calibrant.stats.proportion import proportion_interval
from calibrant.understand._cards import rule_errors
from calibrant.understand._cells import Cell, Cells, cells_of
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._evidence import INSTRUMENTS, Evidence, measured, total_effect
from calibrant.understand._methods import METHODS, method_sweeps, methods_of, sweeps_of
from calibrant.understand._rule import Finding, Rule, idle_reason, ruled
from calibrant.understand._scores import Scored, Table, scored
from calibrant.understand.triangulate import other_sets

Kind = Literal["true", "false", "null"]
TRIED = (*INSTRUMENTS, *METHODS)
"""All that is scored, in the card's order."""
_CASES = 3  # raised when a case comes out otherwise: what a killed run has kept is then not used


class Calibration(Frozen):
    """How much is drawn, and what counts as found."""

    seeds: int = Field(default=8, ge=2)
    """Draws of every case where something is planted."""
    null_seeds: int = Field(default=16, ge=2)
    """Draws of every null: they are cheap, and a small rate needs many."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the corruption's effect that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find in a sweep over all heads that is accepted."""
    rule: Rule = Rule()
    """Thresholds of the rule of triangulation."""
    site: Literal["z", "attn_out", "mlp_out"] = "z"
    """Heads, or what attention or MLP of each layer adds. The rule is tried on heads alone."""


class CalibrationResult(Result):
    """``auroc/INSTRUMENT/POINT``, ``power/...``, ``false_positive_rate/INSTRUMENT/POINT`` (sweeps with any
    false find), ``stability/...`` and ``paraphrase/...`` (rank correlations), ``rule/...``. Artefact
    'instruments.json', the card."""

    card: InstrumentCard = Field(exclude=True, repr=False)
    """The counts."""


class Judged(Frozen):
    """What the rule said of one claim."""

    claim: Kind
    finding: Finding


class Case(Frozen):
    """One case, as it is kept in the work folder."""

    key: str
    """Digest of plants, seed, point and settings."""
    point: str
    null: str
    planted: int
    scored: tuple[Scored, ...]
    judged: tuple[Judged, ...]


@technique(version=2)
def calibrate(plants: Plants, config: Calibration = Calibration(), run: Run = Quiet()) -> CalibrationResult:
    """Run every instrument and the rule on every case; a killed run goes on where it stopped.

    Raises:
        InputError: plants without cases.
    """
    nulls = [bool(planted.null) for planted in plants.cases(run.seed)]
    whole = sum(config.null_seeds if null else config.seeds for null in nulls)
    if not nulls:
        raise InputError(f"'{plants.identity.name}' has no cases", hint="testbed:plants/induction has")
    with Lines(run.work / "cases.jsonl") as log:
        done = {case.key: case for case in replay(log, Case.model_validate_json, "a case")}
        cases: list[Case] = []
        for seed in range(run.seed, run.seed + max(config.seeds, config.null_seeds)):
            for number, planted in enumerate(plants.cases(seed)):
                if seed - run.seed >= (config.null_seeds if planted.null else config.seeds):
                    continue
                run.progress(len(cases), whole, f"{planted.name}, draw {seed}")
                settings = [config.floor, config.level, config.rule, config.site]
                key = digest([_CASES, plants.identity, seed, number, *settings])
                if key not in done:
                    counted = _Counted(seed)
                    done[key] = _case(planted, key, seed, config, counted)
                    log.add([done[key].model_dump_json().encode()])
                    run.spend(queries=counted.queries)
                cases.append(done[key])
        run.progress(len(cases), len(cases), "")
    card = _card(plants, cases, config, run.seed)
    card.write(run.artifact("instruments.json"))
    return CalibrationResult(
        card=card,
        metrics=metrics_of(card, config.rule),
        caveats=(
            "small circuits set by hand in models of two or three layers: a larger model has more to confuse",
            "a null without an effect to explain is mostly refused as not testable, which counts as no find",
        ),
    )


class _Counted(Quiet):
    """A quiet run that counts what is asked of a model."""

    queries = 0

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """Add to what was asked."""
        self.queries += queries


class _Claim(NamedTuple):
    kind: Kind
    members: list[int]


def _case(planted: Planted, key: str, seed: int, config: Calibration, quiet: _Counted) -> Case:
    """Score and judge one case."""
    model = planted.model
    pairs, other = encode(model, planted.contrasts), encode(model, planted.heldout)
    cells = cells_of(model, Cells(site=config.site, positions="all"), pairs.clean.shape[1])
    names = {cell.name: at for at, cell in enumerate(cells)}
    truth = sorted({names[name] for name in _planted(planted, config.site)})
    claims = list(_claims(planted, names, seed)) if config.site == "z" else []
    idle = [idle_reason(total_effect(model, side), side) for side in (pairs, other)]
    if idle[0] or idle[1]:
        return _untestable(planted, key, len(truth), claims, config.site)
    drawn = [_others(len(cells), one.members, config.rule.sets, seed) for one in claims]
    singles = [[at] for at in range(len(cells))]
    sets = [*singles, *(one.members for one in claims), *(members for part in drawn for members in part)]
    first = measured(model, pairs, cells, sets, quiet)
    second = measured(model, other, cells, [*singles, *(one.members for one in claims)], quiet)
    width, start, judged = len(singles), len(singles) + len(claims), []
    for number, one in enumerate(claims):
        rows = [width + number, *one.members, *range(start, start + len(drawn[number]))]
        start += len(drawn[number])
        claimed = [cells[at].name for at in one.members]
        ruling = ruled(_rows(first, rows), _rows(second, [width + number]), claimed, config.rule)
        judged.append(Judged(claim=one.kind, finding=ruling.finding))
    alone, again = (
        _table(model, side, cells, _rows(evidence, range(width)), config, quiet)
        for side, evidence in ((pairs, first), (other, second))
    )
    told = _reworded(planted, cells, config, quiet)
    named = [name for name in TRIED if name in alone.sweeps and name in again.sweeps]
    return Case(
        key=key,
        point=_point(planted, config.site),
        null=planted.null,
        planted=len(truth),
        scored=tuple(scored(name, alone, again, told, truth, config.floor, config.level) for name in named),
        judged=tuple(judged),
    )


def _planted(planted: Planted, site: str) -> list[str]:
    """Names of the cells that are planted."""
    if site == "mlp_out":
        return [f"layer_{layer}" for layer in planted.mlps]
    return [f"layer_{layer}" + (f"/head_{head}" if site == "z" else "") for layer, head in planted.heads]


def _point(planted: Planted, site: str) -> str:
    return planted.name if site == "z" else f"{planted.name}/{site}"


def _untestable(planted: Planted, key: str, count: int, claims: Sequence[_Claim], site: str) -> Case:
    """A case where the corruption changes nothing: nothing is found, no claim is judged."""
    judged = [Judged(claim=one.kind, finding="not testable") for one in claims]
    asked = [name for name in INSTRUMENTS if site == "z" or name != "attention"]
    idle = tuple(Scored(instrument=name, testable=False) for name in (*asked, *methods_of(planted.model)))
    point = _point(planted, site)
    return Case(key=key, point=point, null=planted.null, planted=count, scored=idle, judged=tuple(judged))


def _table(
    model: OpenLM, pairs: Encoded, cells: list[Cell], evidence: Evidence, config: Calibration, quiet: Run
) -> Table:
    """Every instrument on single cells; ``evidence`` has a row for each."""
    methods = method_sweeps(model, pairs, cells, config.site, config.level, quiet)
    return Table(evidence, {**sweeps_of(evidence), **methods})


def _reworded(planted: Planted, cells: list[Cell], config: Calibration, quiet: Run) -> Table | None:
    """The same on the pairs said otherwise; None where there are none, or the corruption does nothing."""
    if planted.reworded is None:
        return None
    pairs = encode(planted.model, planted.reworded)
    if idle_reason(total_effect(planted.model, pairs), pairs):
        return None
    evidence = measured(planted.model, pairs, cells, [[at] for at in range(len(cells))], quiet)
    return _table(planted.model, pairs, cells, evidence, config, quiet)


def _claims(planted: Planted, names: Mapping[str, int], seed: int) -> Iterator[_Claim]:
    """True and false claims; on a null what would be true elsewhere, and heads at random."""
    rng = random.Random(seed)
    truth, against, tempting = (
        [names[f"layer_{layer}/head_{head}"] for layer, head in places]
        for places in (planted.heads, planted.against, planted.tempting)
    )
    carriers, rest = (
        [at for at in truth if at not in against],
        [at for at in names.values() if at not in truth],
    )
    if planted.null:
        draws = [rng.sample(rest, min(2, len(rest))) for _ in range(3)]
        yield from (_Claim("null", one) for one in (tempting, *draws) if one)
        return
    yield _Claim("true", carriers)
    if len(rest) >= len(carriers):
        yield _Claim("false", rng.sample(rest, len(carriers)))
    if rest:
        yield _Claim("false", [rng.choice(carriers), rng.choice(rest)])
    if against:
        yield _Claim("false", [*carriers, *against])


def _others(count: int, members: Sequence[int], sets: int, seed: int) -> list[list[int]]:
    """Other sets of as many cells as a claim names."""
    return other_sets([at for at in range(count) if at not in members], len(members), sets, seed)


def _rows(evidence: Evidence, rows: Sequence[int]) -> Evidence:
    effects = {name: table[list(rows)] for name, table in evidence.effects.items()}
    return Evidence(effects, evidence.total, evidence.pairs)


def _card(plants: Plants, cases: Sequence[Case], config: Calibration, first: int) -> InstrumentCard:
    """Counts over seeds."""
    points = dict.fromkeys(case.point for case in cases)
    rows, rulings = [], []
    for point in points:
        own = [case for case in cases if case.point == point]
        for name in TRIED:
            scores = [(case, one) for case in own for one in case.scored if one.instrument == name]
            if scores:
                rows.append(_row(name, point, scores))
        for kind in ("true", "false", "null"):
            said = [one.finding for case in own for one in case.judged if one.claim == kind]
            if said:
                counts = {word: said.count(word) for word in ("supported", "suggestive", "contradicted")}
                rulings.append(RuleRow(point=point, claim=kind, claims=len(said), **counts))
    return InstrumentCard(
        plants=plants.identity.name,
        plants_digest=plants.identity.digest,
        seeds=tuple(range(first, first + config.seeds)),
        null_seeds=tuple(range(first, first + config.null_seeds)),
        pairs=int(plants.identity.parts.get("n", 0)),
        floor=config.floor,
        level=config.level,
        rule=config.rule.model_dump(),
        rows=tuple(rows),
        rulings=tuple(rulings),
    )


def _row(name: str, point: str, scores: Sequence[tuple[Case, Scored]]) -> InstrumentRow:
    seen = [(case, one) for case, one in scores if one.testable]

    def listed(field: str) -> tuple[float, ...]:
        values = (getattr(one, field) for _, one in seen)
        return tuple(round(float(value), 4) for value in values if value is not None)

    return InstrumentRow(
        instrument=name,
        point=point,
        null=scores[0][0].null,
        cases=len(scores),
        testable=len(seen),
        planted=sum(case.planted for case, _ in seen),
        hits=sum(one.hits for _, one in seen),
        false_sweeps=sum(one.false > 0 for _, one in scores),
        auroc=listed("auroc"),
        average_precision=listed("average_precision"),
        stability=listed("stability"),
        paraphrase=listed("paraphrase"),
        agreeing=sum(one.agreeing for _, one in seen),
        compared=sum(one.compared for _, one in seen),
    )


def metrics_of(card: InstrumentCard, rule: Rule) -> dict[str, Estimate]:
    """The card's counts as estimates."""
    metrics: dict[str, Estimate] = {}
    for row in card.rows:
        name = f"{row.instrument}/{row.point}"
        if not row.null:
            metrics[f"auroc/{name}"] = _mean(row.auroc, row.cases)
            metrics[f"average_precision/{name}"] = _mean(row.average_precision, row.cases)
            metrics[f"power/{name}"] = _rate(row.hits, row.planted, "head", "higher", row.cases)
        if row.compared:
            metrics[f"coverage/{name}"] = _rate(row.agreeing, row.compared, "head", "none", row.cases)
        if row.stability:
            metrics[f"stability/{name}"] = _mean(row.stability, row.cases)
        if row.paraphrase:
            metrics[f"paraphrase/{name}"] = _mean(row.paraphrase, row.cases)
        metrics[f"false_positive_rate/{name}"] = _rate(
            row.false_sweeps, row.cases, "sweep", "lower", row.cases
        )
    return metrics | rule_errors(card, rule)


def _mean(values: Sequence[float], cases: int) -> Estimate:
    if not values:
        return unknown("no case was testable", n=cases, unit="draw")
    bounds = (-1.0, 1.0) if min(values) < 0 else (0.0, 1.0)
    return mean(list(values), better="higher", unit="draw", bounds=bounds)


def _rate(hits: int, of: int, unit: str, better: Literal["higher", "lower", "none"], cases: int) -> Estimate:
    if not of:
        return unknown("no case was testable", n=cases, unit=unit)
    low, high = proportion_interval(hits, of)
    return Estimate(
        value=hits / of, low=low, high=high, n=of, unit=unit, method="clopper-pearson", better=better
    )
