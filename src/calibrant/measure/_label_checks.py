"""Integrity checks of human labels: detect shuffled, mislabelled or copied files.

1. Every reader of the replies (the judge, an earlier judge whose labels are in the file) must agree with the
   human labels above chance: Fisher's exact test, one-sided, both margins given. Shuffled labels agree at
   chance level, whatever the base rate.
2. Raters must agree with the final label above chance, and use a small vocabulary: free text is no label.
3. One reply must not have two labels.

'no' = a check failed; 'unknown' = too few rows, or labels of one kind only: even perfect agreement would not
be significant. A judge without discrimination fails the first check, too: either way its card is useless.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from scipy.stats import hypergeom

from calibrant.core import Frozen, Verdict
from calibrant.core.verdict import Answer
from calibrant.data.graded import as_label
from calibrant.data.rows import Graded

VOCABULARY = 8
"""A column with this many different labels is free text."""
CONTRADICTIONS = 0.02
"""Largest allowed share of rows whose label contradicts that of an equal reply to an equal prompt."""


class Check(Frozen):
    """One question about the labels."""

    name: str
    """'judge', 'rater 1', 'screen NAME', 'vocabulary of ...', 'contradictions'."""
    target: str = ""
    """Whose replies; "" for all."""
    verdict: Verdict
    """yes = in order."""


def agreement_p(answers: Sequence[bool | None], labels: Sequence[bool]) -> tuple[float, float]:
    """p-value of the agreement under random labels, and the smallest possible p-value.

    Fisher's exact test, one-sided; rows without an answer are left out. (1, 1) without rows.
    """
    both = [(answer, label) for answer, label in zip(answers, labels, strict=True) if answer is not None]
    n, yes, true = len(both), sum(s for s, _ in both), sum(label for _, label in both)
    if n == 0:
        return 1.0, 1.0
    together = sum(s and label for s, label in both)
    dealt = hypergeom(n, true, yes)
    return float(dealt.sf(together - 1)), float(dealt.sf(min(yes, true) - 1))


def agrees(
    name: str, answers: Sequence[bool | None], labels: Sequence[bool], alpha: float, **of: str
) -> Check:
    """Whether ``answers`` agrees with human ``labels`` above chance; 'unknown' where no agreement would be
    significant."""
    p, least = agreement_p(answers, labels)
    answered = sum(one is not None for one in answers)
    if p < alpha:
        answer: Answer = "yes"
    else:
        answer = "unknown" if least >= alpha else "no"
    result = f"p = {p:.2g} on {answered} rows"
    reasons = {
        "yes": f"it agrees with people above chance ({result})",
        "no": f"its agreement with people is at chance level ({result}): are these the labels of these rows?",
        "unknown": f"even perfect agreement would not show on {answered} answered rows with these labels",
    }
    verdict = Verdict(question=f"does '{name}' agree with people?", answer=answer, reason=reasons[answer])
    return Check(name=name, verdict=verdict, **of)


def check_labels(rows: Sequence[Graded], answers: Sequence[bool | None], alpha: float) -> list[Check]:
    """All checks: of judge, raters and screens target by target, then of vocabulary and contradictions."""
    checks = []
    for target in sorted({row.target for row in rows}):
        part = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.target == target]
        labels = [row.label for row, _ in part]
        checks.append(agrees("judge", [answer for _, answer in part], labels, alpha, target=target))
        for name, texts in _columns([row for row, _ in part]).items():
            values = [None if text is None else as_label(text) for text in texts]
            if any(one is not None for one in values):
                checks.append(agrees(name, values, labels, alpha, target=target))
    checks += [_vocabulary(name, texts) for name, texts in _columns(rows).items()]
    return [*checks, _contradictions(rows)]


def overall(checks: Sequence[Check]) -> tuple[Answer, str]:
    """'no' where one failed, else 'unknown' where one is unknown, else 'yes'; with the reasons.

    A failed earlier judge is reported, but the human labels can be right where its column is not.
    """
    counted = [check for check in checks if not check.name.startswith("screen ")]
    for answer in ("no", "unknown"):
        matching = [check for check in counted if check.verdict.answer == answer]
        if matching:
            return answer, "; ".join(f"{_label(check)}: {check.verdict.reason}" for check in matching)
    return "yes", f"{len(counted)} checks of the labels passed"


def contradicted(rows: Sequence[Graded]) -> list[bool]:
    """For each row, whether an equal reply to an equal prompt has the other label."""
    seen: dict[object, set[bool]] = defaultdict(set)
    for row in rows:
        seen[row.prompt, row.completion].add(row.label)
    return [len(seen[row.prompt, row.completion]) > 1 for row in rows]


def repeats(rows: Sequence[Graded]) -> list[bool]:
    """For each row, whether an earlier one has the same target, prompt and reply."""
    seen: set[object] = set()
    repeated = []
    for row in rows:
        key = row.target, row.prompt, row.completion
        repeated.append(key in seen)
        seen.add(key)
    return repeated


def _columns(rows: Sequence[Graded]) -> dict[str, list[str | None]]:
    """Each rater's and each earlier judge's labels, row by row; None where there is none."""
    columns: dict[str, list[str | None]] = {}
    for place, row in enumerate(rows):
        for name, text in _label_texts(row):
            columns.setdefault(name, [None] * len(rows))[place] = text
    return columns


def _label_texts(row: Graded) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(row.raters, start=1):
        yield f"rater {number}", text
    for screen in row.screened:
        name, _, text = screen.partition("=")
        yield f"screen {name}", text


def _vocabulary(name: str, texts: Sequence[str | None]) -> Check:
    counts = Counter(text for text in texts if text is not None)
    few = len(counts) <= VOCABULARY
    examples = ", ".join(repr(text[:30]) for text, _ in counts.most_common(4))
    reason = f"{len(counts)} different labels: {examples}{'' if few else ', ...: is this free text?'}"
    question = f"is the vocabulary of '{name}' that of labels?"
    verdict = Verdict(question=question, answer="yes" if few else "no", reason=reason)
    prefix = "screen vocabulary: " if name.startswith("screen ") else "vocabulary: "
    return Check(name=prefix + name, verdict=verdict)


def _contradictions(rows: Sequence[Graded]) -> Check:
    odd = sum(contradicted(rows))
    fine = odd <= CONTRADICTIONS * len(rows)
    verdict = Verdict(
        question="does one reply carry one label?",
        answer="yes" if fine else "no",
        reason=f"{odd} of {len(rows)} rows carry another label than an equal reply to an equal prompt",
    )
    return Check(name="contradictions", verdict=verdict)


def _label(check: Check) -> str:
    return f"{check.name} on {check.target}" if check.target else check.name
