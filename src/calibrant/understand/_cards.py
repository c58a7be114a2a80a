"""Reading a card of instruments: the row that is nearest to a model, and the rule's own errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import as_file, files

from calibrant.core import Estimate, OpenLM, unknown
from calibrant.data.instrument_card import InstrumentCard, InstrumentRow, read_instrument_card
from calibrant.stats.proportion import proportion_interval
from calibrant.understand._rule import Rule

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "xglm"),
    "neox": (
        "gpt_neox", "gptj", "phi", "falcon", "codegen", "cohere", "cohere2", "gpt_neox_japanese", "stablelm",
    ),
    "llama": (
        "llama", "llama4_text", "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen2_moe",
        "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "olmo", "olmo2",
        "olmo3", "olmoe", "phi3", "phimoe", "granite", "granitemoe", "starcoder2", "smollm3", "nemotron",
        "glm", "glm4", "glm4_moe", "persimmon", "diffllama", "helium", "exaone4", "arcee", "apertus",
        "seed_oss", "ernie4_5", "hunyuan_v1_dense", "gpt_oss", "jetmoe", "minicpm3", "deepseek_v2",
        "deepseek_v3",
    ),
}  # fmt: skip
"""Class on the card -> model types that are built like it: positions in the stream; queries that turn,
blocks in parallel; queries that turn, blocks in turn. Others (states, biases by distance) have no card."""

_HIDDEN = {"answer", "tenth"}
"""Points where the corruption shows one head of the claim too little, or it does less than its part."""
_WHAT = {
    "gradient": " (the mean of the slopes at both ends)",
    "atp_star": " (the mean of both ends; with two blocks none can be left out)",
    "relp": " (the mean of both ends)",
    "path_logits": " (noising, directly to the logits: heads that work by other heads are not meant)",
}


@cache
def shipped_card() -> InstrumentCard:
    """The card that comes with this version: ``calibrant run calibration`` makes it again."""
    with as_file(files("calibrant.understand") / "instruments.json") as path:
        return read_instrument_card(path)


def nearest_class(model: OpenLM) -> str:
    """The class of planted models that is built most like ``model``; "" where none is."""
    kind = _kind(model)
    return next((name for name, types in _CLASSES.items() if kind in types), "")


def _kind(model: OpenLM) -> str:
    return str(getattr(getattr(model.module, "config", None), "model_type", ""))


def nearest_row(
    card: InstrumentCard, model: OpenLM, instrument: str
) -> tuple[InstrumentRow, list[InstrumentRow]]:
    """The row of one planted circuit in the class nearest to ``model``, and that class's nulls."""
    own = [row for row in card.rows if row.instrument == instrument]
    mine = [row for row in own if row.point.startswith(f"{nearest_class(model)}/")] or own
    return next(row for row in mine if not row.null), [row for row in mine if row.null]


def in_words(card: InstrumentCard, model: OpenLM, instrument: str) -> str:
    """One sentence on an instrument, for the caveats of a result."""
    if all(row.instrument != instrument for row in card.rows):
        return f"no card: '{instrument}' is not among the instruments of {card.plants}"
    if not nearest_class(model):
        kind = f"'{_kind(model)}'" if _kind(model) else "an unknown type"
        return f"no card of '{instrument}' for models of {kind}: no circuits were planted in any like it"
    row, nulls = nearest_row(card, model, instrument)
    false, cases = sum(one.false_sweeps for one in nulls), sum(one.cases for one in nulls)
    high = proportion_interval(false, cases)[1]
    auroc = sum(row.auroc) / len(row.auroc) if row.auroc else float("nan")
    what, case = _WHAT.get(instrument, ""), f"{row.point}, {card.pairs} pairs"
    return (
        f"card of '{instrument}'{what}, circuits set by hand in small models, nearest class, plainest case "
        + f"({case}): AUROC {auroc:.2f}, {row.hits} of {row.planted} planted heads found; "
        + f"on nulls {false} of {cases} sweeps find any (at most {high:.1%})"
    )


def notes(model: OpenLM, site: str, *instruments: str) -> list[str]:
    """What the shipped card says of each instrument, for the caveats of a result."""
    if site != "z":
        return [f"no card: instruments are calibrated on heads (z), not on {site}"]
    return [in_words(shipped_card(), model, name) for name in instruments]


def rule_errors(card: InstrumentCard, rule: Rule, carded: bool = True) -> dict[str, Estimate]:
    """False-positive rates and power of the rule, over the whole grid; unknown for claims unlike those.

    ``carded`` says whether the claim is on heads at all positions, as those of the card are.
    """
    names = ("rule/false_positive_rate", "rule/judged_false_positive_rate", "rule/power")
    if not card.rulings:
        n = sum(row.cases for row in card.rows)
        return dict.fromkeys(names, unknown("no claim was judged: the card is of blocks", n=n, unit="case"))
    other = any(card.rule.get(name) != getattr(rule, name) for name in ("floor", "part", "level", "families"))
    if other or not carded:
        why = "the card was made with other thresholds of the rule" if other else "the card is of heads"
        return dict.fromkeys(names, unknown(why, n=sum(row.claims for row in card.rulings), unit="claim"))
    false = [row for row in card.rulings if row.claim != "true"]
    true = [row for row in card.rulings if row.claim == "true" and not _HIDDEN & set(row.point.split("/"))]
    supported = sum(row.supported for row in false)
    judged = sum(row.supported + row.suggestive + row.contradicted for row in false)
    asked = sum(row.claims for row in card.rulings)
    found = (
        _rate(supported, sum(row.claims for row in false), "lower", asked),
        _rate(supported, judged, "lower", asked),
        _rate(sum(row.supported for row in true), sum(row.claims for row in true), "higher", asked),
    )
    return dict(zip(names, found, strict=True))


def rule_in_words(card: InstrumentCard, rule: Rule, carded: bool = True) -> str:
    """One sentence on the rule."""
    false, judged, power = rule_errors(card, rule, carded).values()
    if false.value is None or judged.value is None or power.value is None:
        return f"its errors are unknown ({false.reason or judged.reason or power.reason})"
    return (
        f"on planted circuits and nulls it supports {round(false.value * false.n)} of {false.n} false claims "
        f"(at most {false.high:.2%}; of the {judged.n} that it did not refuse as not testable at most "
        f"{judged.high:.1%}), and {round(power.value * power.n)} of {power.n} true ones that it could see"
    )


def _rate(hits: int, of: int, better: str, asked: int) -> Estimate:
    if not of:
        return unknown("the card has no such claims", n=asked, unit="claim")
    low, high = proportion_interval(hits, of)
    return Estimate(
        value=hits / of, low=low, high=high, n=of, unit="claim", method="clopper-pearson",
        better="lower" if better == "lower" else "higher",
    )  # fmt: skip
