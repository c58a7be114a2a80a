"""Capability and alignment tax: accuracy on known answers, and the paired loss against a model before.

Source: the alignment tax (Ouyang et al. 2022, arXiv 2203.02155, section 4), paired on items; flips after
Dutta et al. 2024, "Accuracy is Not All You Need" (arXiv 2407.09141).

1. The loss is a plain difference of shares, accuracy before less accuracy after, on the *same* items, not
   normalised by chance level: .02 is two points. A gate reads its upper bound.
2. Flips (right to wrong and back) are reported as well: an unchanged mean can hide them.
3. An error is missing and counted at its worst, and so is a missing reply of a model that was still
   reasoning. A blocked item is a wrong answer: the user gets none. A refusal is a wrong answer too; it is not
   counted separately here.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.capability"`` and inputs model, items, before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pydantic import Field

from calibrant.core import (
    LM,
    Completion,
    Estimate,
    Frozen,
    InputError,
    Quiet,
    Result,
    Run,
    Sampling,
    point,
    technique,
)
from calibrant.core.behaviours import same_number
from calibrant.data.distinct import check_distinct, plain
from calibrant.data.rows import Item, Items
from calibrant.evals.judging import tokens
from calibrant.measure._rates import reply_caveats
from calibrant.stats import difference, mcnemar, rate


class Capability(Frozen):
    """How the questions are asked; answers are always greedy."""

    max_tokens: int = Field(default=32, ge=1)
    """Most tokens of an answer."""
    batch: int = Field(default=64, ge=1)
    """Questions asked at once; does not change the answers."""


class CapabilityResult(Result):
    """``accuracy`` (also by kind) and, with ``before``, ``capability_loss`` and what goes with it."""

    correct: dict[str, bool | None] = Field(default_factory=dict, exclude=True, repr=False)
    """Item id -> correct, wrong, or None without an answer."""


@technique(version=3)
def capability(
    model: LM,
    items: Items,
    before: LM | None = None,
    config: Capability = Capability(),
    run: Run = Quiet(),
) -> CapabilityResult:
    """Ask ``model`` every item and, if given, the model ``before`` the change.

    Raises:
        InputError: no items, shared ids or questions, a blank answer, ``before`` is the model itself, or
            no reply at all.
    """
    check_items(items)
    if before is not None and before.identity.digest == model.identity.digest:
        raise InputError(
            "'before' is the very model that is measured, so no loss could show",
            hint="give the model as it was before training or guards, or leave 'before' out",
        )
    total = len(items) * (1 if before is None else 2)
    replies = _answers(model, items, config, run, done=0, total=total)
    if all(reply.stop == "error" for reply in replies):
        raise InputError(
            f"none of {len(replies)} items got a reply; the first: {replies[0].error}",
            hint="fix the cause and run the same command again",
        )
    correct = [mark(item, reply) for item, reply in zip(items, replies, strict=True)]
    rows = [_row(*row) for row in zip(items, replies, correct, strict=True)]
    metrics = {"accuracy": rate(correct, better="higher", unit="item")}
    for kind in sorted({item.kind for item in items} - {""}):
        part = [right for item, right in zip(items, correct, strict=True) if item.kind == kind]
        metrics[f"accuracy/{kind}"] = rate(part, better="higher", unit="item")
    if before is not None:
        earlier = _answers(before, items, config, run, done=len(items), total=total)
        was = [mark(item, reply) for item, reply in zip(items, earlier, strict=True)]
        metrics |= losses(was, correct)
        for row, reply, right in zip(rows, earlier, was, strict=True):
            row |= {"reply_before": reply.text, "correct_before": right}
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    run.artifact("answers.jsonl").write_text(lines, encoding="utf-8")
    return CapabilityResult(
        metrics=metrics,
        caveats=(
            "answers are compared as text: a right answer in other words counts as wrong",
            "a refused or blocked item counts as wrong",
            *reply_caveats(replies, config.max_tokens),
        ),
        correct={item.id: right for item, right in zip(items, correct, strict=True)},
    )


def mark(item: Item, completion: Completion) -> bool | None:
    """Whether a reply answers the item; None where there is no reply to mark."""
    if completion.stop == "error" or completion.unanswered:
        return None
    if completion.stop == "blocked":
        return False
    return matches(completion.text, item.answer, item.match)


def matches(reply: str, answer: str, how: str) -> bool:
    """Compare a reply with the right answer.

    'exact': equal, case, white space and final punctuation aside. 'contains': the reply contains the answer
    as a phrase, not inside a longer word or number ("3" is not in "13", "-3" or "3.5").
    """
    text, right = plain(reply), plain(answer)
    if how == "exact":
        return text == right
    return phrase(right).search(text) is not None


def phrase(text: str) -> re.Pattern[str]:
    """``text``, not blank, as a phrase of its own: not inside a longer word or number."""
    edge = r"(?<!\w)(?<!\d[.,])" + (r"(?<!-)" if text[0].isdigit() else "")
    return re.compile(rf"{edge}{re.escape(text)}(?!\w)(?![.,]\d)")


def losses(before: Sequence[bool | None], after: Sequence[bool | None]) -> dict[str, Estimate]:
    """The loss of a change, paired on items, both sides (n,) in one order, None without an answer.

    ``capability_loss`` is accuracy before less accuracy after, in shares; ``answer_flip_rate`` counts
    right to wrong and back; ``mcnemar_p`` is exact and two-sided.
    """
    flips = [None if None in pair else pair[0] != pair[1] for pair in zip(before, after, strict=True)]
    reason = "exact McNemar test; missing answers at the completion that gives the largest p"
    return {
        "accuracy_before": rate(before, better="higher", unit="item"),
        # ``difference`` is its second argument less its first, and a loss is before less after.
        "capability_loss": difference(after, before, better="lower", unit="item"),
        "answer_flip_rate": rate(flips, better="lower", unit="item"),
        "mcnemar_p": point(mcnemar(before, after), unit="p-value", n=len(flips), reason=reason),
    }


def _answers(
    model: LM, items: Items, config: Capability, run: Run, *, done: int, total: int
) -> list[Completion]:
    """Greedy answers, batch by batch, each paid for before it is asked."""
    sampling = Sampling(max_tokens=config.max_tokens)
    replies: list[Completion] = []
    for start in range(0, len(items), config.batch):
        chats = [item.chat for item in items.rows[start : start + config.batch]]
        most = len(chats) * config.max_tokens
        run.spend(queries=len(chats), tokens=most)
        spoken = model.generate(chats, sampling)
        same_number(f"model '{model.identity.name}'", len(spoken), len(chats))
        used = sum(tokens(reply, config.max_tokens) for reply in spoken)
        run.spend(tokens=used - most)
        replies += spoken
        run.progress(done + len(replies), total, "items")
    return replies


def _row(item: Item, reply: Completion, right: bool | None) -> dict[str, object]:
    return {"id": item.id, "kind": item.kind, "answer": item.answer, "reply": reply.text, "correct": right}


def check_items(items: Items) -> None:
    """Refuse items that could not be marked.

    Raises:
        InputError: none, shared ids or questions, or a blank answer.
    """
    check_distinct(items.rows, "item")
    for item in items:
        if not plain(item.answer):
            raise InputError(
                f"item '{item.id}' has a blank answer", hint="give it an answer, or leave it out"
            )
