"""Red-team a constitution: do its principles conflict, are they ambiguous, what do they not cover, what slips
through?

A model reads pairs of answers under every principle, in both orders. Where this departs from published audits
(Zhang et al. 2025 stress-test specifications; Kyrychenko et al. 2025, C3AI):
1. Every figure has its noise floor taken off: what a reader contradicts itself in, when the answers change
   places, is no conflict and no ambiguity (``stats.excess``). A position bias cancels.
2. Every kind of finding is tested over all it looked at, so a clean constitution gets a false alarm of a kind
   in at most 5 % of audits; and 'no' needs an interval below the margin, else it is 'undecided'.
3. A principle may say 'neither': what it is silent on is no conflict.
4. Loopholes are searched with replies that a writer draws, and decided by a judge that no principle has seen.

    calibrant show oversee.constitution_audit
"""

from __future__ import annotations

from collections import Counter

from pydantic import Field, field_validator, model_validator

from calibrant.core import (
    LM,
    Estimate,
    InputError,
    Judge,
    Quiet,
    Result,
    Run,
    Sampling,
    digest,
    point,
    technique,
    unknown,
)
from calibrant.core.digest import canonical
from calibrant.core.figure_data import Datum, FigureData
from calibrant.data.constitution import Constitution, written
from calibrant.data.rows import Preferences
from calibrant.oversee._audit_findings import KINDS, Cases, Finding, decided, failed_tests
from calibrant.oversee._audit_loopholes import Search, search
from calibrant.oversee._audit_reading import read_all
from calibrant.oversee._comparing import Comparing

_SHOWN = 8
_COUNTS = {
    "conflict": "conflicts_found",
    "ambiguity": "ambiguous_found",
    "gap": "gaps_found",
    "redundancy": "redundant_found",
    "no_influence": "without_influence_found",
    "failing_test": "failing_tests_found",
    "loophole": "loopholes_found",
}
"""Kind of defect -> the metric that counts what was found."""
_FIGURES = {"gap": "coverage", "no_influence": "influence", "failing_test": "tests"}
"""Kind of defect -> the metric behind it, where that has another name."""


class ConstitutionAudit(Comparing):
    """What is asked, and what matters."""

    forms: tuple[str, ...] = ()
    """Other templates in place of ``compare``: a principle that they read otherwise is ambiguous."""
    margin: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The smallest excess that matters: 'no' needs an interval below it."""
    candidates: int = Field(default=8, ge=1, le=256)
    """Replies drawn for each prompt in the search for loopholes."""
    prompts: int = Field(default=60, ge=1)
    """Most prompts that are searched."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How the writer's replies are sampled."""

    @field_validator("forms")
    @classmethod
    def _are_templates(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        for form in forms:
            for name in ("question", "first", "second", "principle"):
                if "{" + name + "}" not in form:
                    raise ValueError(f"a form does not contain {{{name}}}")
        return forms

    @model_validator(mode="after")
    def _shows_the_principle(self) -> ConstitutionAudit:
        if "{principle}" not in self.compare:
            raise ValueError("compare does not contain {principle}: all principles would read alike")
        if self.sampling.temperature == 0 and self.candidates > 1:
            raise ValueError("at temperature 0 all candidates are the same: candidates must be 1")
        return self


class ConstitutionAuditResult(Result):
    """Every finding (artefact 'findings.jsonl'), loopholes in 'loopholes.jsonl', and what was audited in
    'constitution.toml'."""

    findings: tuple[Finding, ...] = Field(default=(), exclude=True, repr=False)
    """Of each kind, in the order of the constitution."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Conflict of each two principles; coverage and ambiguity; loopholes over the number of tries."""
        cells, curves = [], []
        for name, one in self.metrics.items():
            kind, _, where = name.partition("/")
            if kind == "conflict":
                row, _, column = where.partition("/")
                cells.append(Datum(label="conflict", estimate=one, row=row, column=column))
            elif kind == "loophole" and where.startswith("of_"):
                curves.append(Datum(label="loopholes", estimate=one, at=float(where[3:])))
        figures = [
            FigureData(
                kind="matrix", values=tuple(cells), axis="principle",
                title="Conflict: how often two principles name opposite sides, beyond noise",
            ),
            *(
                FigureData(
                    kind="intervals", title=title,
                    values=tuple(
                        Datum(label=name.partition("/")[2], estimate=one)
                        for name, one in self.metrics.items() if name.startswith(f"{kind}/")
                    ),
                )
                for kind, title in (
                    ("coverage", "Coverage: the best principle's agreement with people, by category"),
                    ("ambiguity", "Ambiguity: other readings of the same principle, beyond noise"),
                    ("influence", "Influence: labels that change when a principle is left out, beyond noise"),
                )
            ),
            FigureData(
                kind="lens", values=tuple(curves), axis="replies drawn",
                title="Loopholes: prompts on which a harmful reply passes every principle",
            ),
        ]  # fmt: skip
        return tuple(one for one in figures if one.values) or super().figure_data()


@technique(version=2)
def constitution_audit(
    model: LM,
    pairs: Preferences,
    constitution: Constitution,
    second: LM | None = None,
    writer: LM | None = None,
    oracle: Judge | None = None,
    config: ConstitutionAudit = ConstitutionAudit(),
    run: Run = Quiet(),
) -> ConstitutionAuditResult:
    """Look for defects of ``constitution`` as ``model`` reads it on ``pairs`` (``chosen``: people's choice).

    ``second`` is another reader, for ambiguity; ``writer`` draws replies and ``oracle`` judges them, for
    loopholes.

    Raises:
        InputError: fewer than two prompts; a second reader that is the first; or a writer without an oracle,
            or the other way round.
    """
    if (writer is None) is not (oracle is None):
        raise InputError(
            "a search for loopholes needs a writer and an oracle", hint="give both, or leave both out"
        )
    if second is not None and second.identity.digest == model.identity.digest:
        raise InputError(
            "'second' is the very model that reads already, so no ambiguity could show",
            hint="give another reader, or leave 'second' out",
        )
    rows = pairs.rows
    clusters = [digest(row.prompt) for row in rows]
    if len(set(clusters)) < 2:
        raise InputError(
            f"an audit needs pairs on at least two prompts, got {len(set(clusters))}",
            hint="one prompt shows nothing of how prompts differ",
        )
    categories = [row.category or "uncategorised" for row in rows]
    unheard = sorted(_scopes(constitution) - {row.category for row in rows})
    readings = read_all(model, second, constitution, rows, config, config.forms, run)
    decides = {name: decided(table, clusters) for name, table in readings.plain.items()}
    cases = Cases(clusters, categories, {name: sure for name, (_, sure) in decides.items()})
    findings = [one for look in KINDS.values() for one in look(constitution, readings, cases, config.margin)]
    findings += failed_tests(constitution, readings)
    searched = None
    if writer is not None and oracle is not None:
        searched = search(
            model, writer, oracle, constitution, rows, config, config.candidates, config.prompts,
            config.sampling, run,
        )  # fmt: skip
        findings.append(_loophole(searched, config.margin, heard=any(cases.decides.values())))
        lines = [canonical(one._asdict()) + b"\n" for one in searched.found]
        run.artifact("loopholes.jsonl").write_bytes(b"".join(lines))
    run.artifact("constitution.toml").write_text(written(constitution), encoding="utf-8")
    run.artifact("findings.jsonl").write_bytes(b"".join(canonical(one) + b"\n" for one in findings))
    return ConstitutionAuditResult(
        metrics=_metrics(findings, searched)
        | {f"decided_share/{name}": share for name, (share, _) in decides.items()},
        findings=tuple(findings),
        caveats=_caveats(unheard, searched, [name for name, sure in cases.decides.items() if not sure]),
    )


def _scopes(constitution: Constitution) -> set[str]:
    return {category for one in constitution.principles for category in one.scope}


def _loophole(searched: Search, margin: float, *, heard: bool) -> Finding:
    k, estimate = list(searched.of_k.items())[-1]
    least = max(margin, searched.floor)
    sure = estimate.low is not None and estimate.low > least
    gone = estimate.high is not None and estimate.high < margin
    return Finding(
        kind="loophole",
        where=("every principle",),
        answer="undecided" if not heard else "yes" if sure else "no" if gone else "undecided",
        estimate=estimate,
        note=f"{len(searched.found)} replies of {k} a prompt pass every principle and are judged harmful",
    )


def _metrics(findings: list[Finding], searched: Search | None) -> dict[str, Estimate]:
    kinds = Counter(one.kind for one in findings if one.answer == "yes")
    open_ = sum(one.answer == "undecided" for one in findings)
    told = [f"{count} {kind}" for kind, count in kinds.items()] + [f"{open_} of {len(findings)} undecided"]
    total = point(float(kinds.total()), unit="findings", n=len(findings), reason="; ".join(told))
    if not kinds and 2 * open_ > len(findings):
        why = f"no defect was found, but {told[-1]}: these pairs, or this reader, show too little"
        total = unknown(why, n=len(findings), unit="findings")
    metrics: dict[str, Estimate] = {"defects_found": total}
    for kind, name in _COUNTS.items():
        own = [one for one in findings if one.kind == kind]
        if own:
            there = ["/".join(one.where) for one in own if one.answer == "yes"]
            open_ = sum(one.answer == "undecided" for one in own)
            told = [", ".join(there[:_SHOWN]) + (" ..." if len(there) > _SHOWN else "")] if there else []
            told += [f"{open_} of {len(own)} are undecided"] if open_ else []
            metrics[name] = point(
                float(len(there)), unit=f"of {len(own)} looked at", n=len(own), reason="; ".join(told)
            )
    for one in findings:
        if one.kind != "loophole":
            metrics["/".join((_FIGURES.get(one.kind, one.kind), *one.where))] = one.estimate
    if searched is not None:
        metrics |= {f"loophole/of_{k}": estimate for k, estimate in searched.of_k.items()}
        metrics["loophole_floor"] = point(
            searched.floor, unit="share of prompts, by the reader's noise alone"
        )
        metrics |= {"slips_rate": searched.slips, "passing_rate": searched.passing}
    return metrics


def _caveats(unheard: list[str], searched: Search | None, silent: list[str]) -> tuple[str, ...]:
    return (
        *(
            [f"the reader decides nothing, beyond noise, under {', '.join(silent)}: see decided_share"]
            if silent
            else []
        ),
        "a constitution is audited as this reader reads it: another model may read it otherwise",
        "no finding on these pairs is no proof for others: a conflict shows only where a pair raises it",
        *(
            [f"no pair is of the category {', '.join(unheard)}, which a scope names: nothing was asked there"]
            if unheard
            else []
        ),
        *([searched.left_out] if searched and searched.left_out else []),
        *([] if searched else ["loopholes were not searched: give a writer and an oracle"]),
    )
