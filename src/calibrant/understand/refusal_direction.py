"""The refusal direction: one vector whose removal stops refusals, and whose addition brings them about.

After Arditi et al. 2024 (2406.11717):

1. Three parts of the prompts, without a common cluster: directions are *found* on one (mean of harmful less
   mean of harmless, at the last positions, for each layer below .8 of the depth), one is *chosen* on the
   second, and everything is *reported* on the third.
2. Refusal is read as ln P(T) - ln(1 - P(T)) of the first token, T the tokens that this model begins with
   more often after harmful prompts; or those that you name.
3. Chosen is the least refusal of harmful prompts with the direction taken out (bypass), of those that induce
   refusal when added (> 0) and whose removal leaves harmless prompts alone (KL < .1).
4. Beside the effects stand those of random directions of the same length: of any direction, and such as
   prompts of one kind differ in. And the cost: KL and cross-entropy on harmless prompts.
5. Where harmful and harmless prompts are not refused differently beyond doubt, nothing is testable.

    calibrant show understand.refusal_direction
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from calibrant.core import (
    Chat,
    Estimate,
    Frozen,
    Goal,
    InputError,
    Judge,
    OpenLM,
    Quiet,
    Result,
    Run,
    Sampling,
    point,
    technique,
    unknown,
)
from calibrant.core.figure_data import FigureData, by_names, settings_of
from calibrant.data.distinct import check_goals
from calibrant.data.rows import Goals
from calibrant.models.directions import ABOUT, WEIGHTS, Direction, writes
from calibrant.understand._last_token import asked, read_plain
from calibrant.understand._refusal import LogOdds, Sides, named_openings, openings, split
from calibrant.understand._refusal_candidates import Candidate, Train, candidates, choose, study
from calibrant.understand._refusal_effects import Controls, Held, ablation, addition, first_token_cost
from calibrant.understand._refusal_replies import Heard, reply_cost


class RefusalDirection(Frozen):
    """How directions are found, chosen and tried."""

    positions: int = Field(default=1, ge=1)
    """So many last positions of a prompt are candidates: 1, or as many tokens as the template puts after the
    request."""
    openings: tuple[str, ...] = ()
    """What refusals begin with; the first token of each counts. Empty: found on the model's own replies."""
    least: float = Field(default=0.05, gt=0, lt=1)
    """A first token is an opening of refusals if it is so much likelier after harmful prompts."""
    induce: float = 0.0
    """Least log-odds of refusal, in nats, of harmless prompts with the direction added. 0 is the paper's."""
    kl: float = Field(default=0.1, gt=0)
    """Most KL on harmless prompts, in nats, of a direction that is chosen."""
    doses: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Multiples of the direction that are added; 1 is the difference of means itself."""
    random: int = Field(default=20, ge=10)
    """Random directions of each of two kinds; no p-value is below 1 / (1 + this)."""
    tokens: int = Field(default=16, ge=1)
    """Longest reply to a harmless prompt on which the cost is measured."""
    sampling: Sampling = Sampling(max_tokens=32)
    """How replies for the judge are drawn."""
    limit: int | None = Field(default=200, ge=6)
    """Use at most this many prompts of each kind, evenly spread. None: all."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.doses or any(not 0 < dose < 1e6 for dose in self.doses):
            raise ValueError("doses must be above 0 and below 1,000,000")
        if 1.0 not in self.doses or len(set(self.doses)) < len(self.doses):
            raise ValueError("doses must be different from each other, with 1 among them")
        return self


class RefusalDirectionResult(Result):
    """``refusal/...``, ``ablation``, ``ablation/removed``, ``addition/x1``, ``cost/...``, all on held-out
    prompts; ``stability``, ``layer``, ``selection/...``. Artefacts 'direction.safetensors', 'direction.json',
    'effects.json', 'candidates.json'; with a judge also 'attempts.jsonl'."""

    direction: Any = Field(default=None, exclude=True, repr=False)
    """``models.directions.Direction``; None where none was chosen."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """What each dose does, beside the most that a random direction does; and how often it refuses."""
        titles = {
            ("addition", "addition/x*/random_largest"): "Refusal of harmless prompts by dose, change in nats",
            ("addition_rate",): "Share of harmless prompts that are refused, by dose",
        }
        curves = [
            FigureData(kind="sweep", values=values, title=title, axis="dose")
            for names, title in titles.items()
            if (values := tuple(one for name in names for one in settings_of(self.metrics, name)))
        ]
        return (*curves, *by_names(self.metrics))


class _Parts(NamedTuple):
    """Prompts of each part, and the goals of the last one."""

    prompts: dict[str, Sides]
    harmful: list[Goal]
    harmless: list[Goal]
    notes: list[str]


_NOTES = (
    "one direction is looked for: refusal that several carry (a cone, 2502.17420) is not described",
    "a small p says that it is not any direction of that length, not that it means refusal and nothing else",
    "log-odds are of the first token of a reply; whether whole replies refuse is for a judge",
)

_NEXT = (
    "; try a larger positions, which reaches back from the template into the words of the request, a larger "
    "kl, a lower induce, or harmless goals that are closer to the harmful ones"
)


@technique(version=1)
def refusal_direction(
    model: OpenLM,
    harmful: Goals,
    harmless: Goals,
    judge: Judge | None = None,
    config: RefusalDirection = RefusalDirection(),
    run: Run = Quiet(),
) -> RefusalDirectionResult:
    """Find, choose and try a refusal direction; the judge, if given, says whether whole replies refuse.

    Raises:
        InputError: too few goals or clusters, a goal of the wrong kind, one id or text twice, prompts shorter
            than ``positions`` or longer than the context.
        CapabilityError: no residual stream was found, or the model is not causal or in training mode.
        NumericalError: logits or activations are NaN or infinite.
    """
    parts = _parted(model, harmful, harmless, config, run.seed)
    notes = [*_NOTES, *parts.notes]
    heard = Heard(model, parts.harmful, parts.harmless, judge, config.sampling, run)
    metrics = heard.plain()
    train = study(model, parts.prompts["train"], config.positions, run)
    run.progress(1, 4, "directions found")
    held = _held(model, train, parts.prompts["held_out"], config, run)
    if isinstance(held, str):
        found: Candidate | str = held
    else:
        names = ", ".join(repr(model.tokenizer.decode([token])) for token in held.odds.tokens[:8])
        notes.append(f"refusal is read off the reply's first token, here {names}: see whether these refuse")
        metrics |= held.refusal()
        found = _chosen(model, held, metrics["refusal/difference"], train, parts, config, run)
    run.progress(2, 4, "direction chosen")
    if isinstance(found, str) or isinstance(held, str):
        notes.append(f"{found}{_NEXT if str(found).startswith('no direction') else ''}")
        missing = [name for name in _names(config, judge is not None) if name not in metrics]
        metrics |= {name: unknown(str(found), n=len(harmful) + len(harmless)) for name in missing}
        heard.store()
        return RefusalDirectionResult(metrics=metrics, caveats=tuple(notes))
    if any(site.endswith("hook_resid_post") for site in writes(model.module)):
        notes.append(
            "attention and MLP of some blocks were not found: there only what the block leaves is edited"
        )
    direction = Direction(found.vector, found.site, model.identity.digest, found.position)
    metrics |= _tried(model, held, train, found, config, run)
    run.progress(3, 4, "effects measured")
    metrics |= reply_cost(model, parts.harmless, direction, config.tokens, run)
    metrics |= heard.under(direction)
    heard.store()
    direction.write(run.artifact(WEIGHTS), run.artifact(ABOUT))
    run.progress(4, 4)
    return RefusalDirectionResult(metrics=metrics, caveats=tuple(notes), direction=direction)


def _parted(model: OpenLM, harmful: Goals, harmless: Goals, config: RefusalDirection, seed: int) -> _Parts:
    """Check the goals, and part them; of a table of both kinds, the one that is asked for is taken."""
    kept, notes = [], []
    for goals, bad in ((harmful, True), (harmless, False)):
        own = tuple(goal for goal in goals.rows if goal.harmful is bad)
        if 0 < len(own) < len(goals):
            kind = "harmful" if bad else "harmless"
            notes.append(f"{len(own)} of {len(goals)} goals are {kind}: the others are left out on that side")
            goals = goals.model_copy(update={"rows": own})
        check_goals(goals, harmful=bad)
        rows, n = goals.rows, min(config.limit or len(goals), len(goals))
        kept.append([rows[i * len(rows) // n] for i in range(n)])
    one, two = ([goal.cluster for goal in some] for some in kept)
    places = split((one, two), seed)
    writes(model.module)  # raises where there is no stream
    both = [asked(model, [Chat.ask(g.text) for g in some], [g.cluster for g in some]) for some in kept]
    shortest = min(len(row) for prompts in both for row in prompts.ids)
    if shortest < config.positions:
        raise InputError(
            f"a prompt has {shortest} tokens, fewer than positions = {config.positions}",
            hint="positions counts the tokens that the template puts after a request; 1 is the last one",
        )
    prompts = {
        part: Sides(*(side.only(at) for side, at in zip(both, some, strict=True)))
        for part, some in places.items()
    }
    held_out = [[goals[i] for i in at] for goals, at in zip(kept, places["held_out"], strict=True)]
    return _Parts(prompts, held_out[0], held_out[1], notes)


def _held(model: OpenLM, train: Train, sides: Sides, config: RefusalDirection, run: Run) -> Held | str:
    """How the held-out prompts are refused; or why that cannot be read."""
    tokens = named_openings(model, config.openings) or openings(*train.logits, config.least)
    words = train.logits[0].shape[1]
    if not tokens:
        return f"not testable: no first token is likelier by {config.least:g} after harmful prompts"
    one, two = (read_plain(model, side, run)[0] for side in sides)
    return Held(sides, LogOdds(tokens, words), (one, two))


def _chosen(
    model: OpenLM,
    held: Held,
    difference: Estimate,
    train: Train,
    parts: _Parts,
    config: RefusalDirection,
    run: Run,
) -> Candidate | str:
    """The direction; or why there is none."""
    if difference.low is None:
        return f"not testable: the difference in refusal has no interval ({difference.reason})"
    if difference.low <= 0:
        return (
            "not testable: the interval of the difference in refusal, harmful less harmless, is not above 0"
        )
    found = candidates(model, train, parts.prompts["selection"], held.odds, run)
    table = json.dumps([one.scores for one in found])
    run.artifact("candidates.json").write_text(table, encoding="utf-8")
    return choose(found, config.induce, config.kl)


def _tried(
    model: OpenLM, held: Held, train: Train, chosen: Candidate, config: RefusalDirection, run: Run
) -> dict[str, Estimate]:
    """All that the direction does, beside the controls; stored one by one."""
    directions = Controls.draw(train, chosen, config.random, run.seed).beside(chosen.vector)
    metrics, removed = ablation(model, held, directions, run)
    more, added = addition(model, held, chosen.site, directions, config.doses, run)
    metrics |= more
    metrics |= first_token_cost(model, held, directions, run)
    metrics |= {
        "layer": point(chosen.layer, unit="layer"),
        "position": point(chosen.position, unit="token"),
        "stability": point(train.stability(chosen.layer, chosen.position, run.seed), unit="cosine"),
        "selection/bypass": point(chosen.bypass, unit="nats"),
        "selection/induce": point(chosen.induce, unit="nats"),
        "selection/kl": point(chosen.kl, unit="nats"),
    }
    table = {
        "site": chosen.site,
        "position": chosen.position,
        "rows": ["direction", *["sphere"] * config.random, *["within"] * config.random],
        "ablation": removed.rounded(),
        "addition": {f"x{dose:g}": effect.rounded() for dose, effect in added.items()},
    }
    run.artifact("effects.json").write_text(json.dumps(table), encoding="utf-8")
    return metrics


def _names(config: RefusalDirection, judging: bool) -> list[str]:
    """Every metric."""
    doses = [f"addition{kind}/x{dose:g}" for dose in config.doses for kind in ("", "_rate")]
    more = [f"addition/x{dose:g}/random_largest" for dose in config.doses]
    sides = [f"{kind}/{side}" for kind in ("refusal", "refusal_rate") for side in ("harmful", "harmless")]
    tests = [f"{name}/p_{kind}" for name in ("ablation", "addition/x1") for kind in ("sphere", "within")]
    costs = ["cost/kl", "cost/ce", "cost/kl_first", "cost/kl_first/random_largest"]
    rest = ["ablation", "ablation/removed", "ablation/refusal_rate", "ablation/random_largest"]
    told = ["layer", "position", "stability", *(f"selection/{x}" for x in ("bypass", "induce", "kl"))]
    heard = ["judged_rate/harmful_ablated", "judged_rate/harmless_steered"] if judging else []
    return ["refusal/difference", *sides, *rest, *doses, *more, *tests, *costs, *told, *heard]
