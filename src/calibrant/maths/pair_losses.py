"""The pair losses by name: options, source, and TRL's name.

    pair_loss("ipo", sums, {"beta": 0.1, "length_average": False})       # (B,)
    check_options("ipo", {"label_smoothing": 0.1})                       # ["loss 'ipo' ignores ..."]

An option that a loss ignores is a problem, never a silent no-op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calibrant.core.errors import ConfigError, nearest
from calibrant.maths import losses
from calibrant.maths.pair_sums import DIVERGENCES, PairSums, diverged, reference_free

Option = float | bool | str


@dataclass(frozen=True)
class PairLossKind:
    """One loss and what a trainer must know of it."""

    function: Callable[..., Tensor]
    """``function(sums, **options)`` gives (B,)."""
    options: Mapping[str, Option]
    """What it takes beside the sums, with defaults. Those that compare two scores take three more: see
    ``COMPARING``."""
    source: str
    """Paper and equation."""
    trl: str = ""
    """``loss_type`` of TRL's DPOConfig, or the trainer that has it; "" where TRL has none."""
    needs_reference: bool = True
    """Whether log-probs under a reference are read at all."""
    accumulation_invariant: bool = True
    """Whether a batch may be cut: the mean over the whole is the mean over its parts, by size."""


COMPARING: dict[str, Option] = {"reference_free": False, "divergence": "reverse_kl", "alpha": 0.5}
"""Options of the losses that see s_w - s_l alone: leave the reference out, or measure the distance from it by
another f-divergence (``alpha`` belongs to the divergence 'alpha')."""


def _comparing(
    function: Callable[..., Tensor], source: str, trl: str = "", **options: Option
) -> PairLossKind:
    """A loss of the difference of two scores, so that the scores may be others."""
    return PairLossKind(function, {"beta": 0.1, **options, **COMPARING}, source, trl)


LOSSES: dict[str, PairLossKind] = {
    "sigmoid": _comparing(losses.sigmoid, "2305.18290, equation 7", "sigmoid"),
    "conservative": _comparing(
        # TRL's 'sigmoid' took label_smoothing too, until 0.29, which ignores it without a word.
        losses.conservative,
        "Mitchell 2023, a note on DPO with noisy preferences",
        label_smoothing=0.1,
    ),
    "robust": _comparing(losses.robust, "2403.00409", "robust", label_smoothing=0.1),
    "hinge": _comparing(losses.hinge, "2305.10425 and 2309.06657", "hinge"),
    "ipo": _comparing(losses.ipo, "2310.12036, equation 17", "ipo", length_average=True),
    "sigmoid_norm": _comparing(losses.sigmoid_norm, "2411.15124", "sigmoid_norm"),
    "exo_pair": _comparing(losses.exo_pair, "2402.00856, equation 16", "exo_pair", label_smoothing=1e-3),
    "discopop": _comparing(losses.discopop, "2406.08414, equation 5", "discopop", tau=0.05),
    "nca_pair": PairLossKind(losses.nca_pair, {"beta": 0.1}, "2402.05369", "nca_pair"),
    "bco_pair": PairLossKind(losses.bco_pair, {"beta": 0.1}, "2404.04656", "bco_pair"),
    "sppo_hard": PairLossKind(losses.sppo_hard, {"beta": 0.1}, "2405.00675, equation 4.7", "sppo_hard"),
    "apo_zero": PairLossKind(losses.apo_zero, {"beta": 0.1}, "2408.06266, equation 7", "apo_zero"),
    "apo_down": PairLossKind(losses.apo_down, {"beta": 0.1}, "2408.06266, equation 8", "apo_down"),
    "aot": PairLossKind(
        losses.aot, {"beta": 0.1, "label_smoothing": 0.0}, "2406.05882", "aot", accumulation_invariant=False
    ),
    "aot_unpaired": PairLossKind(
        losses.aot_unpaired,
        {"beta": 0.1, "label_smoothing": 0.0},
        "2406.05882",
        "aot_unpaired",
        accumulation_invariant=False,
    ),
    "simpo": PairLossKind(
        losses.simpo,
        {"beta": 2.0, "gamma": 1.0},
        "2405.14734, equation 6",
        "CPOTrainer, loss_type='simpo'",
        needs_reference=False,
    ),
    "orpo": PairLossKind(
        losses.orpo, {"lam": 0.1}, "2403.07691, equations 6 and 7", "ORPOTrainer", needs_reference=False
    ),
    "chosen_nll": PairLossKind(losses.chosen_nll, {}, "2404.19733", needs_reference=False),
    "sft": PairLossKind(
        losses.sft, {}, "plain fine-tuning", "sft", needs_reference=False, accumulation_invariant=False
    ),
}


def pair_loss(name: str, sums: PairSums, options: Mapping[str, Any] = {}) -> Tensor:
    """The loss (B,) called ``name``, its defaults filled in.

    Raises:
        ConfigError: no such loss, or see ``check_options``.
    """
    if problems := check_options(name, options):
        raise ConfigError(problems)
    kind = LOSSES[name]
    own: dict[str, Any] = {**kind.options, **options}
    divergence, alpha = own.pop("divergence", "reverse_kl"), own.pop("alpha", 0.5)
    if own.pop("reference_free", False):
        sums = reference_free(sums)
    return kind.function(diverged(sums, divergence, alpha), **own)


def soft_pair_loss(name: str, sums: PairSums, probability: Tensor, options: Mapping[str, Any] = {}) -> Tensor:
    """p l(w, l) + (1 - p) l(l, w): the loss (B,) that soft labels expect; ``probability`` (B,) that w is
    better.

    With 'sigmoid' it is the cross-entropy with the label p, equation 7 of 2305.18290 under the labels of
    Bai et al. 2022 (2212.08073, section 4.1). Where every p is 1 it is ``pair_loss``.

    Raises:
        ConfigError: see ``pair_loss``; or the loss looks at a whole batch or at one reply alone, and a label
        is soft.
    """
    hard = pair_loss(name, sums, options)
    if bool((probability == 1).all()):
        return hard
    check_soft(name, probability.tolist())
    return probability * hard + (1 - probability) * pair_loss(name, sums.swapped, options)


def check_soft(name: str, probabilities: Iterable[float]) -> None:
    """Raise ConfigError where a label is soft and the loss ``name`` is no sum over pairs."""
    if not LOSSES[name].accumulation_invariant and any(p < 1 for p in probabilities):
        raise ConfigError(
            f"loss '{name}' takes no soft labels: it is no sum over pairs",
            hint="take loss = 'sigmoid', or pairs without chosen_probability",
        )


def check_options(name: str, given: Mapping[str, Any]) -> list[str]:
    """Every problem with the options ``given`` to the loss ``name``, a sentence each; [] when it is fine."""
    if name not in LOSSES:
        return [f"no loss is called '{name}'{nearest(name, LOSSES)}; there are: {', '.join(LOSSES)}"]
    problems = []
    for option, value in given.items():
        if option not in LOSSES[name].options:
            problems.append(f"loss '{name}' ignores '{option}'{_who_takes(option)}")
        elif wrong := _wrong(name, option, value):
            problems.append(f"loss '{name}': '{option}' must be {wrong}, got {value!r}")
    if "alpha" in given and given.get("divergence") != "alpha" and "alpha" in LOSSES[name].options:
        problems.append(f"loss '{name}' ignores 'alpha' unless divergence = 'alpha'")
    return problems


def _who_takes(option: str) -> str:
    """Where an option would have been read."""
    takers = [name for name, kind in LOSSES.items() if option in kind.options]
    if takers:
        return f"; it belongs to {', '.join(takers)}"
    return nearest(option, {known for kind in LOSSES.values() for known in kind.options})


def _wrong(name: str, option: str, value: Any) -> str:
    """What ``value`` should have been, or "" when it will do."""
    if option in ("length_average", "reference_free"):
        return "" if isinstance(value, bool) else "true or false"
    if option == "divergence":
        return "" if value in DIVERGENCES else f"one of {', '.join(DIVERGENCES)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "a finite number"
    if option == "label_smoothing":
        if name == "exo_pair":
            return "" if 0 < value < 0.5 else "above 0 (the loss is infinite there) and below 0.5"
        return "" if 0 <= value < 0.5 else "at least 0 and below 0.5"
    if option == "tau":
        return "" if 0 < value <= 1 else "above 0 and at most 1"
    if option == "beta":
        return "" if value > 0 else "above 0"
    return "" if value >= 0 else "at least 0"
