"""Quality checks of preference data: faulty rows, length and position bias, rater agreement, label noise.

1. Faults have row ids (artefact 'findings.jsonl'): rows that the reader rejected, empty and equal replies,
   copies, contradictions, broken text, leaks between splits; with a model also what its tokenizer shows.
2. Biases are shares with intervals: how often the longer reply, or the one shown first, is the chosen one.
3. Agreement, alpha and AC1 treat ties as a third label. Label noise is that of one decided vote; it bounds a
   reward model's accuracy, on labels of one vote and on those of the raters' majority.
4. A metric whose input is missing is unknown, with the reason.

    calibrant show measure.preference_data
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from pydantic import Field

from calibrant.core import Estimate, Frozen, InputError, OpenLM, Quiet, Result, Run, technique, unknown
from calibrant.core.digest import canonical
from calibrant.data.faults import TEXT_CHECKS, Finding, leaks, odd_text, repeated
from calibrant.data.rows import Preferences
from calibrant.data.votes import Vote, Votes, ratings_of
from calibrant.measure._pair_tokens import merges, same_when_cut, tokenised, too_long
from calibrant.stats import rate
from calibrant.stats.agreement import (
    accuracy_ceiling,
    agreement,
    gwet_ac1,
    krippendorff_alpha,
    label_noise,
    ratings,
)
from calibrant.stats.dawid_skene import dawid_skene


class PreferenceData(Frozen):
    """Settings of the checks."""

    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens, as in training. None: the model's context."""
    alike: float = Field(default=0.8, gt=0, le=1)
    """Prompts of two splits are near-duplicates at or above this Jaccard similarity of three-word runs."""


class PreferenceDataResult(Result):
    """Shares of faulty pairs, biases, agreement, noise and ceiling, each with its interval or its reason."""

    findings: tuple[Finding, ...] = Field(exclude=True)
    """Every fault with the id of its row, by kind; also the artefact 'findings.jsonl'."""


@technique(version=3)
def preference_data(
    pairs: Preferences,
    model: OpenLM | None = None,
    held_out: Preferences | None = None,
    votes: Votes | None = None,
    config: PreferenceData = PreferenceData(),
    run: Run = Quiet(),
) -> PreferenceDataResult:
    """Check ``pairs``; ``model`` supplies a tokenizer, ``held_out`` is the other split, ``votes`` the
    raters'.

    Raises:
        InputError: there are no pairs.
    """
    if not pairs.rows:
        raise InputError(f"{pairs.source or 'the input'}: there are no pairs", hint="check what was refused")
    text = {kind: list(check(pairs)) for kind, check in TEXT_CHECKS.items()}
    text["odd text"] = list(odd_text(pairs, model.tokenizer.all_special_tokens if model else ()))
    tokens = _token_findings(pairs, model, config, run)
    leaked = [] if held_out is None else list(leaks(pairs, held_out, config.alike))
    findings = [finding for part in (*text.values(), *tokens.values(), leaked) for finding in part or ()]
    run.artifact("findings.jsonl").write_bytes(b"".join(canonical(finding) + b"\n" for finding in findings))
    rows = [row.id for row in pairs] + [f"line {row.line}" for row in pairs.refused]
    metrics = {"faulty_share": _share(rows, [f for f in findings if f.kind != "leak"])}
    metrics |= {
        _named(kind): _share(rows if kind == "refused" else rows[: len(pairs)], part)
        for kind, part in text.items()
    }
    metrics |= _token_shares(rows[: len(pairs)], tokens, model)
    metrics["leak_share"] = (
        unknown("no held-out pairs were given", n=len(pairs), unit="pair")
        if held_out is None
        else _share([row.id for row in held_out], leaked)
    )
    metrics["longer_chosen"] = _longer(pairs)
    metrics |= _from_repeats(pairs) if votes is None or not votes.rows else _from_votes(votes)
    _write_raters(votes, run)
    return PreferenceDataResult(metrics=metrics, findings=tuple(findings), caveats=_caveats(metrics, votes))


def _named(kind: str) -> str:
    """Name of a kind's metric: 'odd text' -> 'odd_text_share'."""
    return f"{kind.replace(' ', '_')}_share"


def _share(rows: Sequence[str], findings: Iterable[Finding]) -> Estimate:
    """Share of rows with a finding."""
    faulty = {finding.id for finding in findings}
    return rate([name in faulty for name in rows], better="lower", unit="pair")


def _token_findings(
    pairs: Preferences, model: OpenLM | None, config: PreferenceData, run: Run
) -> dict[str, list[Finding] | None]:
    """Findings that need a tokenizer; None where nothing could be looked at."""
    findings: dict[str, list[Finding] | None] = dict.fromkeys(("boundary merge", "too long", "same when cut"))
    if model is None:
        return findings
    sides = tokenised(model, pairs, run)
    findings["boundary merge"] = list(merges(model, sides))
    limit = min((most for most in (config.max_length, model.max_length) if most is not None), default=None)
    if limit is not None:
        findings["too long"] = list(too_long(sides, limit))
        findings["same when cut"] = list(same_when_cut(sides, limit))
    return findings


def _token_shares(
    rows: Sequence[str], tokens: dict[str, list[Finding] | None], model: OpenLM | None
) -> dict[str, Estimate]:
    """Shares of what a tokenizer shows, or why they are unknown."""
    why = (
        "neither the model nor max_length sets a limit"
        if model
        else "no model was given, so nothing was tokenised"
    )
    return {
        _named(kind): unknown(why, n=len(rows), unit="pair") if part is None else _share(rows, part)
        for kind, part in tokens.items()
    }


def _longer(pairs: Preferences) -> Estimate:
    """How often the longer reply (in characters) is the chosen one, where lengths differ."""
    uneven = [row for row in pairs if len(row.chosen) != len(row.rejected)]
    if not uneven:
        return unknown("in every pair both replies have the same length", n=len(pairs), unit="pair")
    prompts: dict[object, str] = {}
    return rate(
        [len(row.chosen) > len(row.rejected) for row in uneven],
        clusters=[prompts.setdefault(row.prompt, str(len(prompts))) for row in uneven],
        better="none",
        unit="pair",
        null_value=0.5,
    )


def _from_votes(votes: Votes) -> dict[str, Estimate]:
    """Agreement of several raters of the same comparisons."""
    originals = [vote for vote in votes if not vote.repeat]
    decided = [vote for vote in originals if vote.winner != "tie"]
    triples = ratings_of(votes)
    all_labels = ratings(triples, ("a", "b", "tie"))
    noise = unknown("every vote is a tie", n=len(originals), unit="vote")
    if decided:
        noise = label_noise(ratings([triple for triple in triples if triple[2] != "tie"], ("a", "b")))
    made_of = Counter(vote.item for vote in decided)
    return {
        "first_chosen": _first(decided, len(originals)),
        "tie_share": rate(
            [vote.winner == "tie" for vote in originals],
            clusters=[vote.item for vote in originals],
            better="none",
            unit="vote",
        ),
        "agreement": agreement(all_labels),
        "krippendorff_alpha": krippendorff_alpha(all_labels),
        "gwet_ac1": gwet_ac1(all_labels),
        **_noise(noise, list(made_of.values())),
    }


def _first(decided: Sequence[Vote], n: int) -> Estimate:
    """How often the side that was shown first won, ties aside."""
    if not decided:
        return unknown("every vote is a tie", n=n, unit="vote")
    return rate(
        [vote.choice == "first" for vote in decided],
        clusters=[vote.item for vote in decided],
        better="none",
        unit="vote",
        null_value=0.5,
    )


def _from_repeats(pairs: Preferences) -> dict[str, Estimate]:
    """Without votes, rows with the same prompt and replies count as several votes on one comparison."""
    groups = repeated(pairs)
    triples = [
        (str(at), f"row {place}", "a" if row.chosen.strip() == rows[0].chosen.strip() else "b")
        for at, rows in enumerate(groups)
        for place, row in enumerate(rows)
    ]
    lacking = "no votes were given, and the pairs do not say which reply was shown first"
    metrics = {
        "first_chosen": unknown(lacking, n=len(pairs), unit="pair"),
        "tie_share": unknown("no votes were given, and pairs hold no ties", n=len(pairs), unit="pair"),
    }
    names = (
        "agreement", "krippendorff_alpha", "gwet_ac1", "label_noise", "accuracy_ceiling", "majority_ceiling",
    )  # fmt: skip
    # Copies of one vote agree as well as independent votes would: agreement without exception shows nothing.
    if not any(label == "b" for *_, label in triples):
        evidence = f"the {len(groups)} repeated pairs all agree, as mere copies would"
        why = f"no votes were given, and {evidence if groups else 'no pair is repeated'}"
        return metrics | {name: unknown(why, n=len(pairs), unit="pair") for name in names}
    judged = ratings(triples, ("a", "b"))
    estimates = (agreement(judged), krippendorff_alpha(judged), gwet_ac1(judged))
    metrics |= dict(zip(names, estimates, strict=False)) | _noise(label_noise(judged), list(map(len, groups)))
    remark = "from repeated rows: copies of one vote among them make labels look better than they are"
    return {
        name: one.model_copy(update={"reason": "; ".join(filter(None, (one.reason, remark)))})
        if name in names
        else one
        for name, one in metrics.items()
    }


def _noise(noise: Estimate, votes: Sequence[int]) -> dict[str, Estimate]:
    """Noise of one vote, and what it leaves to reach on labels of one vote and of ``votes`` each."""
    ceilings = {
        "accuracy_ceiling": accuracy_ceiling(noise),
        "majority_ceiling": accuracy_ceiling(noise, votes),
    }
    return {"label_noise": noise, **ceilings}


def _write_raters(votes: Votes | None, run: Run) -> None:
    """Artefact 'raters.jsonl': each rater's votes, ties, share of first places, and accuracy by Dawid-Skene.

    With fewer than three raters the data cannot tell who is right, so there is no accuracy.
    """
    by_rater: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes or ():
        if not vote.repeat:
            by_rater[vote.rater].append(vote)
    decided = [one for one in ratings_of(votes) if one[2] != "tie"] if votes else []
    accuracy: dict[str, float] = {}
    if len({rater for _, rater, _ in decided}) >= 3:
        judged = ratings(decided, ("a", "b"))
        accuracy = dict(zip(judged.raters, dawid_skene(judged).accuracy.tolist(), strict=True))
    lines = []
    for rater, own in sorted(by_rater.items()):
        plain = [vote for vote in own if vote.winner != "tie"]
        first = sum(vote.choice == "first" for vote in plain) / len(plain) if plain else None
        line = {"rater": rater, "votes": len(own), "ties": len(own) - len(plain), "first_share": first}
        lines.append(canonical(line | {"accuracy": accuracy.get(rater)}) + b"\n")
    if lines:
        run.artifact("raters.jsonl").write_bytes(b"".join(lines))


def _caveats(metrics: dict[str, Estimate], votes: Votes | None) -> tuple[str, ...]:
    """What is not shown, and which bias a reward model could learn."""
    caveats = []
    for name, what in (
        ("longer_chosen", "the longer reply was chosen: a reward model may learn length"),
        (
            "first_chosen",
            "the reply shown first was chosen: a reward model sees no places, so this is noise to it",
        ),
    ):
        one = metrics[name]
        if one.low is not None and one.high is not None and not one.low <= 0.5 <= one.high:
            caveats.append(f"in {one} of the cases {what}")
    if votes is not None and votes.simulated:
        caveats.append("the votes are simulated: they say nothing about people")
    return (
        *caveats,
        "a file without findings may still teach an unwanted behaviour",
        "errors that raters share agree with each other, so labels may be noisier than estimated",
    )
