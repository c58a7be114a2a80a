"""Triangulation: a claim about what carries an answer, held against five families of instruments.

No claim rests on one method. The claim names cells (heads, or what blocks add) and the pairs of prompts on
which they carry the answer. Patching in both directions, ablation, gradients, output weights and attention
speak, and a rule that was fixed before (``_rule.py``) makes of it one of

    supported, suggestive, contradicted, not testable

The rule is an instrument, too: how often it supports a false claim, and a true one, is measured on planted
circuits (``understand.calibrate``) and printed with every verdict.

    calibrant show understand.triangulate
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import combinations, islice
from math import comb
from typing import Literal

from pydantic import Field, field_validator

from calibrant.core import ConfigError, Estimate, OpenLM, Quiet, Result, Run, point, technique, unknown
from calibrant.core.errors import nearest
from calibrant.core.figure_data import Datum, FigureData, by_names
from calibrant.data.instrument_card import InstrumentCard
from calibrant.data.rows import Contrasts
from calibrant.understand._cards import rule_errors, rule_in_words, shipped_card
from calibrant.understand._cells import Cell, Cells, cells_of
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._evidence import FAMILIES, INSTRUMENTS, measured, total_effect
from calibrant.understand._rule import Finding, Rule, Ruling, idle_reason, ruled, untestable

Where = Literal["attn_out", "mlp_out", "z"]


class Claim(Rule):
    """What is claimed, and the rule's thresholds."""

    says: str = ""
    """The claim in words, for the report, which gives the cells beside them: nothing else ties the two."""
    cells: tuple[str, ...] = ()
    """The cells that carry the answer: 'layer_1/head_2', or 'layer_3' for what a block adds. At least one."""
    site: Where = "z"
    """Heads (z), or what attention or MLP of a layer adds to the stream."""
    positions: Literal["all", "last"] = "all"
    """Where the cells are patched: at every position, or at the last alone."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs of each table, evenly spread. None: all."""

    @field_validator("cells")
    @classmethod
    def _once_each(cls, cells: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(cells)) < len(cells):
            raise ValueError("a cell is named twice")
        return cells


class TriangulationResult(Result):
    """``effect/INSTRUMENT`` of the set, ``families``, ``supported``, and the rule's own error rates.

    Artefact 'claim.json'."""

    finding: Finding
    """The verdict: supported, suggestive, contradicted or not testable."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The claim's share of the effect by each instrument that spoke."""
        values = tuple(
            Datum(label=name.partition("/")[2], estimate=one, stage="share of the effect")
            for name, one in self.metrics.items()
            if name.startswith("effect/")
        )
        shares = FigureData(kind="intervals", values=values, title="The claim, instrument by instrument")
        return (*([shares] if values else []), *by_names(self.metrics))


@technique(version=2)
def triangulate(
    model: OpenLM,
    contrasts: Contrasts,
    heldout: Contrasts,
    card: InstrumentCard | None = None,
    config: Claim = Claim(),
    run: Run = Quiet(),
) -> TriangulationResult:
    """Judge one claim; ``heldout`` are other pairs, of other templates where there are some.

    ``card`` is the rule's own card, as ``understand.calibrate`` makes it; without one, that which is shipped.

    Raises:
        ConfigError: no cells, one that the model does not have, or a pair that is in both tables.
        InputError: pairs that cannot be compared.
        CapabilityError, NumericalError: as in ``understand.patch``.
    """
    if not config.cells:
        raise ConfigError("the claim names no cells", hint='set cells = ["layer_1/head_2"]')
    pairs, other = (encode(model, table, config.limit) for table in (contrasts, heldout))
    check_apart(pairs, other)
    cells = cells_of(model, Cells(site=config.site, positions=config.positions), pairs.clean.shape[1])
    members = _members(cells, config.cells)
    rest = [at for at in range(len(cells)) if at not in members]
    sets = [members, *([at] for at in members), *other_sets(rest, len(members), config.sets, run.seed)]
    idle = [idle_reason(total_effect(model, side), side) for side in (pairs, other)]
    run.spend(queries=2 * (len(pairs.rows) + len(other.rows)))
    if any(idle):
        ruling = untestable(
            *dict.fromkeys(reason.removeprefix("not testable: ") for reason in idle if reason)
        )
    else:
        evidence = measured(model, pairs, cells, sets, run)
        repeated = measured(model, other, cells, [members], run)
        ruling = ruled(evidence, repeated, config.cells, config)
    card = card or shipped_card()
    carded = (config.site, config.positions) == ("z", "all")
    _write(run, config, ruling, card)
    return TriangulationResult(
        finding=ruling.finding,
        metrics={**_metrics(ruling, len(pairs.rows)), **rule_errors(card, config, carded)},
        caveats=_caveats(config, ruling, card, carded, len(sets) - 1 - len(members)),
    )


def check_apart(pairs: Encoded, heldout: Encoded) -> None:
    """Raise ConfigError where a pair of prompts, in whichever order, comes twice in the two tables."""
    seen: dict[frozenset[tuple[int, ...]], str] = {}
    for side in (pairs, heldout):
        for row, clean, corrupt in zip(side.rows, side.clean.tolist(), side.corrupt.tolist(), strict=True):
            both = frozenset((tuple(clean), tuple(corrupt)))
            if both in seen:
                raise ConfigError(
                    f"pair '{row.id}' has the prompts of '{seen[both]}'",
                    hint="hold out other pairs, of another template if there is one, and none twice",
                )
            seen[both] = row.id


def other_sets(rest: Sequence[int], size: int, count: int, seed: int) -> list[list[int]]:
    """Up to ``count`` different sets of ``size`` of the ``rest``, drawn at random."""
    if comb(len(rest), size) <= count:
        return [list(one) for one in combinations(rest, size)]
    rng, drawn = random.Random(seed), dict[tuple[int, ...], None]()
    while len(drawn) < count:
        drawn[tuple(sorted(rng.sample(list(rest), size)))] = None
    return [list(one) for one in islice(drawn, count)]


def _members(cells: Sequence[Cell], names: Sequence[str]) -> list[int]:
    known = {cell.name: at for at, cell in enumerate(cells)}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"the model has no cell '{name}'{nearest(name, known)}",
                hint=f"cells are called '{cells[0].name}' to '{cells[-1].name}'",
            )
    return [known[name] for name in names]


def _metrics(ruling: Ruling, n: int) -> dict[str, Estimate]:
    """Shares of the set, and the verdict in numbers."""
    if ruling.finding == "not testable":
        why = f"not testable: {'; '.join(ruling.reasons)}"
        names = (*(f"effect/{name}" for name in INSTRUMENTS), "families", "supported")
        return {name: unknown(why, n=n, unit="pair") for name in names}
    shares = {f"effect/{name}": line.estimate for name, line in ruling.lines.items()}
    for name, line in ruling.lines.items():
        shares[f"p_null/{name}"] = point(line.beyond_others, unit="p-value", n=n)
    return {
        **shares,
        "families": point(len(ruling.families), unit=f"of {len(FAMILIES)} families", n=len(FAMILIES)),
        "supported": point(float(ruling.finding == "supported"), unit="1: supported, 0: not", n=n),
    }


def _caveats(
    config: Claim, ruling: Ruling, card: InstrumentCard, carded: bool, others: int
) -> tuple[str, ...]:
    site = "" if config.site == "z" else f" ({config.site})"
    place = ", at the last position" if config.positions == "last" else ""
    cells = f"{', '.join(config.cells)}{site}{place}"
    told = f"{config.says} [what is tested: {cells}]" if config.says else f"the answer is carried by {cells}"
    silent = [name for name in INSTRUMENTS if name not in ruling.lines] if ruling.lines else []
    return (
        f"{ruling.finding}: {told}",
        *ruling.reasons,
        *([f"not asked: {', '.join(silent)} (see the page)"] if silent else []),
        f"compared with {others} other sets of {len(config.cells)} cells, by a rule that was fixed before",
        f"the rule itself: {rule_in_words(card, config, carded)}",
        "a claim holds for these pairs and this corruption: what the corruption leaves alone is not seen",
    )


def _write(run: Run, config: Claim, ruling: Ruling, card: InstrumentCard) -> None:
    table = {
        "claim": config.model_dump(mode="json"),
        "finding": ruling.finding,
        "reasons": list(ruling.reasons),
        "families": list(ruling.families),
        "instruments": {
            name: {"share": line.share, "p_chance": line.beyond_chance, "p_null": line.beyond_others}
            for name, line in ruling.lines.items()
        },
        "card": card.digest,
    }
    run.artifact("claim.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
