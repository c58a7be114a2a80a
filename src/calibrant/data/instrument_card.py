"""A calibration card of instruments: what they find and miss where the truth is planted. Counts, not shares.

``understand.calibrate`` writes it as ``instruments.json``; every score that a technique gives names the row
of the nearest case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from calibrant.core.config import Frozen
from calibrant.core.digest import digest, plain
from calibrant.data.card_file import read_json_card

Share = Annotated[float, Field(ge=0, le=1)]


class InstrumentRow(Frozen):
    """One instrument at one point of the grid."""

    instrument: str
    """'denoise', 'noise', 'ablation', 'gradient', 'direct', 'attention', 'atp_star', 'relp', 'path_logits',
    'path_heads'."""
    point: str
    """'gpt2/none/earlier': class, redundancy, corruption; or 'gpt2/null/removed'."""
    null: str = ""
    """Kind of null; "": something is planted."""
    cases: int = Field(ge=0)
    """Models, each with its own weights and pairs."""
    testable: int = Field(ge=0)
    """Of ``cases``, those where the corruption changed the answer beyond doubt."""
    planted: int = Field(ge=0)
    """Planted cells of the testable cases."""
    hits: int = Field(ge=0)
    """Of ``planted``, those found."""
    false_sweeps: int = Field(ge=0)
    """Of ``cases``, those where a cell was found that is not planted."""
    auroc: tuple[Share, ...] = ()
    """One a testable case: chance that a planted cell scores above another; () on a null."""
    average_precision: tuple[Share, ...] = ()
    """One a testable case."""
    agreeing: int = Field(default=0, ge=0)
    """Of ``compared``, cells whose shares on two sets of pairs differ by no more than intervals allow."""
    compared: int = Field(default=0, ge=0)
    """Cells with an interval on both sets of pairs; 0: the instrument was not asked."""
    stability: tuple[float, ...] = ()
    """One a testable case: rank correlation of the cells' scores on two sets of pairs."""
    paraphrase: tuple[float, ...] = ()
    """One a testable case with another form: rank correlation of the scores on the pairs in both forms."""

    @model_validator(mode="after")
    def _parts(self) -> Self:
        parts = ((self.hits, self.planted), (self.agreeing, self.compared), (self.false_sweeps, self.cases))
        if any(part > whole for part, whole in (*parts, (self.testable, self.cases))):
            raise ValueError(f"{self.instrument} at {self.point}: a part is more than the whole")
        return self


class RuleRow(Frozen):
    """The rule of triangulation at one point of the grid."""

    point: str
    """As in ``InstrumentRow``."""
    claim: Literal["true", "false", "null"]
    """The planted cells; as many others, or some of each; anything on a null."""
    claims: int = Field(ge=0)
    """How many were judged."""
    supported: int = Field(ge=0)
    """Of ``claims``."""
    suggestive: int = Field(default=0, ge=0)
    """Of ``claims``."""
    contradicted: int = Field(default=0, ge=0)
    """Of ``claims``; what is left was not testable."""

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.supported + self.suggestive + self.contradicted > self.claims:
            raise ValueError(f"{self.point}: more rulings than claims")
        return self


class InstrumentCard(Frozen):
    """What is known of instruments and of the rule that combines them."""

    version: Literal[1] = 1
    """Of this format."""
    plants: str
    """Name of the plants."""
    plants_digest: str
    """Digest of their identity."""
    seeds: tuple[int, ...]
    """The draws of cases where something is planted."""
    null_seeds: tuple[int, ...]
    """The draws of nulls."""
    pairs: int = Field(ge=0)
    """Pairs a case."""
    floor: float
    """Least share that counted as found."""
    level: Share
    """Chance of any false find in a sweep that was accepted."""
    rule: dict[str, float]
    """Thresholds of the rule."""
    rows: tuple[InstrumentRow, ...]
    """One an instrument and point."""
    rulings: tuple[RuleRow, ...] = ()
    """One a point and kind of claim."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        rows = [(row.instrument, row.point) for row in self.rows]
        rulings = [(row.point, row.claim) for row in self.rulings]
        if len(set(rows)) < len(rows) or len(set(rulings)) < len(rulings):
            raise ValueError("a row comes twice")
        return self

    @property
    def digest(self) -> str:
        """Digest of the whole card."""
        return digest(self)

    def write(self, path: Path) -> None:
        """Write ``instruments.json``: the same bytes wherever it is written."""
        path.write_text(json.dumps(plain(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_instrument_card(path: Path) -> InstrumentCard:
    """Read what ``InstrumentCard.write`` wrote.

    Raises:
        InputError: the file is no card.
    """
    hint = "understand.calibrate writes one: record:JOB/instruments.json"
    return read_json_card(InstrumentCard, path, "card of instruments", hint)
