"""Preference accuracy on held-out human pairs (implicit reward), against length baselines.

1. Implicit reward: log pi - log ref of the whole reply (Rafailov et al., 2305.18290, equation 5). A pair is
   won when the chosen reply scores higher; a tie counts 1/2, so the reference itself scores .50.
2. Log-prob: the same without the reference. Base models can score high here, since short replies have a
   higher log-prob.
3. 'Shorter wins' and 'longer wins' need no model; a model must beat both.

    calibrant run real_weights
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from calibrant.core import Estimate, Frozen, OpenLM, Quiet, Result, Run, Verdict, technique
from calibrant.data.rows import Pair, Preferences
from calibrant.models.fitting import dropped, fitting
from calibrant.stats import mean

QUESTION = "does the model prefer what people preferred, beyond chance and length?"


class Preference(Frozen):
    """How preference is measured."""

    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer pairs are left out and counted. None: the context."""


class PreferenceResult(Result):
    """Accuracies with intervals; ties count 1/2."""

    verdict: Verdict = Field(exclude=True)
    """yes = the implicit reward's interval lies above .50 and above both length baselines."""


@technique(version=2)
def preference(
    model: OpenLM,
    pairs: Preferences,
    reference: OpenLM | None = None,
    config: Preference = Preference(),
    run: Run = Quiet(),
) -> PreferenceResult:
    """Score both replies of every pair under ``model`` and, where given, under ``reference``.

    Raises:
        InputError: there are no pairs, or none fits the context.
    """
    rows = fitting(model, pairs, lambda row: [row.chosen, row.rejected], config.max_length)
    margins = _margins(model, rows, run)
    metrics = {"logprob_accuracy": _accuracy(margins)}
    if reference is not None:
        base = _margins(reference, rows, run)
        margins = [ours - theirs for ours, theirs in zip(margins, base, strict=True)]
        metrics = {"implicit_reward_accuracy": _accuracy(margins), **metrics}
        metrics["logprob_accuracy_reference"] = _accuracy(base)
    lengths = [len(row.chosen) - len(row.rejected) for row in rows]
    metrics["shorter_wins"] = _accuracy([-n for n in lengths])
    metrics["longer_wins"] = _accuracy(lengths)
    metrics["dropped_for_length"] = dropped(pairs, rows)
    verdict = judge(metrics)
    summary = f"{'supported' if verdict.answer == 'yes' else 'not supported'}: {verdict.reason}"
    run.artifact("verdict.json").write_text(json.dumps(verdict.model_dump(mode="json"), indent=2) + "\n")
    return PreferenceResult(
        metrics=metrics,
        verdict=verdict,
        caveats=(
            summary,
            "preferring a written reply is not the same as writing one like it",
            "length is counted in characters; other surface cues may still explain a preference",
        ),
    )


def judge(metrics: dict[str, Estimate]) -> Verdict:
    """Supported only if the implicit reward's interval excludes .50 and both length baselines from above."""
    estimate = metrics.get("implicit_reward_accuracy")
    if estimate is None:
        return Verdict(question=QUESTION, answer="unknown", reason="no reference, so no implicit reward")
    lines = {"chance": 0.5}
    for name in ("shorter_wins", "longer_wins"):
        line = metrics[name].value
        if line is None:
            return Verdict(question=QUESTION, answer="unknown", reason=f"{name} is {metrics[name]}")
        lines[name.replace("_", " ")] = line
    if estimate.low is None:
        return Verdict(question=QUESTION, answer="unknown", reason=f"the implicit reward is {estimate}")
    above = all(estimate.low > line for line in lines.values())
    baselines = ", ".join(f"{name} {line:.3f}" for name, line in lines.items())
    reason = f"accuracy {estimate} against {baselines}"
    return Verdict(question=QUESTION, answer="yes" if above else "no", reason=reason, score=estimate.value)


def _margins(model: OpenLM, rows: Sequence[Pair], run: Run) -> list[float]:
    """log p(chosen) - log p(rejected) of every pair, in nats."""
    prompts = [row.prompt for row in rows]
    run.spend(queries=2 * len(rows))
    chosen = model.logprobs(prompts, [row.chosen for row in rows])
    rejected = model.logprobs(prompts, [row.rejected for row in rows])
    return [good.total - bad.total for good, bad in zip(chosen, rejected, strict=True)]


def _accuracy(margins: Sequence[float]) -> Estimate:
    """Share of pairs won, ties 1/2."""
    wins = [0.5 if m == 0 else float(m > 0) for m in margins]
    return mean(wins, better="higher", unit="pair", null_value=0.5, bounds=(0.0, 1.0))
