"""How a model may run several rows at once: decided by a probe of the model itself, not by a list.

A probe reads a few ids row by row, whole and without memory, and then in ever more careful ways:

- ``together``: rows of several lengths, padded on the left, with the model's memory (keys and values, or a
  state), from which rows leave and which several rows may share;
- ``by length``: rows of one length;
- ``one by one``: a row after the other;
- ``again``: a row after the other without memory, so that everything is read again for every token.

The first way that gives the same numbers is the model's. Mamba draws rows by length, since padding moves its
state; a model that keeps a state to itself goes one by one; one without memory reads again. The probe also
tells whether padding on the right stays out of sight, and refuses a model that sees the tokens that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calibrant.core.errors import CapabilityError
from calibrant.models.model_facts import FOREIGN, accepted, close, facts, muted, not_causal, sample_ids

Way = Literal["together", "by length", "one by one", "again"]
_NAMES = ("cache", "past_key_values", "cache_params", "state")  # what families call their memory
_LENGTH = 7  # ids in a row of the probe
_TRIED: tuple[tuple[Way, bool, list[list[int]]], ...] = (  # way, positions, lengths of each batch's prompts
    ("together", True, [[4, 2]]),
    ("together", False, [[4, 2]]),
    ("by length", False, [[4, 4]]),
    ("one by one", False, [[4], [2]]),
)
_SAID = {
    "by length": "prompts of different lengths are generated separately, since padding moves its state",
    "one by one": "prompts are generated one after the other, since its state is for one batch only",
    "again": "prompts are generated one after the other, recomputed for every token, since it has no cache "
    "that could be kept",
}
_FAR = (
    "rows of more than {} tokens are read alone, and again for every token, since their positions depend on "
    "how long the longest row is"
)
_PADDED = "rows of different lengths are read separately, since padding changes its numbers"


@dataclass(frozen=True)
class Batching:
    """What was found out about a model."""

    way: Way = "together"
    """How replies are sampled."""
    positions: bool = True
    """Whether positions are passed: padded rows need them, but some families count in their own way."""
    padded: bool = True
    """Whether rows of different lengths may be read together, padded on the right under a mask."""
    reach: int | None = None
    """Tokens beyond which all positions of a batch depend on its longest row; None: they never do."""

    def draws(self, length: int, whole: int, number: int) -> tuple[Way, int]:
        """How request ``number`` is drawn, and its key: those of one way and key may share a batch.

        ``length``: tokens of its prompt; ``whole``: with the longest reply that it may get.
        """
        if self.reach is not None and whole > self.reach:
            return "again", number
        return self.way, {"together": 0, "by length": length}.get(self.way, number)

    def reads(self, length: int) -> int:
        """The key of a row of so many tokens: rows of one key may be read in one batch, padded."""
        near = self.reach is None or length <= self.reach
        return 0 if self.padded and near else length

    def caveats(self, name: str) -> tuple[str, ...]:
        """In words, where the model ``name`` is slower than others."""
        notes = ([_SAID[self.way]] if self.way in _SAID else []) + ([] if self.padded else [_PADDED])
        notes += [_FAR.format(self.reach)] if self.reach else []
        return tuple(f"slower than it could be: of '{name}', {what}" for what in notes)


def batching(module: nn.Module) -> Batching:
    """What ``module``, a causal language model of transformers, may do; found once, shared with its copies.

    Raises:
        CapabilityError: it cannot read a plain row of ids, or sees the tokens that follow.
    """
    known = facts(module)
    if "batching" not in known:
        with muted(module), torch.no_grad():
            known["batching"] = _probe(module)
    result: Batching = known["batching"]
    return result


def memory_name(module: nn.Module) -> str:
    """What the family calls the argument and the output that carry its memory; "" for none.

    transformers 5.24 calls them 'cache'; before, they are 'past_key_values' with attention.
    """
    return next(iter(accepted(module, **dict.fromkeys(_NAMES))), "")


def advance(
    module: nn.Module,
    how: Batching,
    given: Tensor,
    mask: Tensor | None,
    positions: Tensor,
    memory: Any,
) -> tuple[Any, Tensor]:
    """Read ``given`` behind ``memory``: the memory after it, and logits (B, V) float32 of the next token.

    Args:
        module: a causal language model.
        how: what was found out about it; the way 'again' neither takes nor gives memory.
        given: ids (B, L) or embeddings (B, L, D): all of them where there is no memory.
        mask: (B, T) over everything that was read and ``given``; None where nothing is padded.
        positions: (B, L) of what is given; not looked at where there is no memory.
        memory: what the last call gave; None at the beginning.
    """
    model: Any = module  # its calls take and give what its family does
    name = "" if how.way == "again" else memory_name(module)
    counted = {"position_ids": positions} if how.positions and name else {}
    out = model(
        **accepted(module, logits_to_keep=1, attention_mask=mask, use_cache=bool(name), **counted),
        **({name: memory} if name else {}),
        **{"input_ids" if given.dim() == 2 else "inputs_embeds": given},
    )
    return getattr(out, name) if name else None, out.logits[:, -1].float()


def select(memory: Any, rows: Tensor) -> Any:
    """Memory of some rows, in that order; a row may occur several times.

    Raises:
        TypeError: a kind of memory that is not known.
    """
    if hasattr(memory, "batch_select_indices"):
        stateful = any(hasattr(layer, "conv_states") for layer in getattr(memory, "layers", ()))
        # Layers with a state lack the one, or select keys and values only; some caches lack the other.
        (memory.reorder_cache if stateful else memory.batch_select_indices)(rows)
        return memory
    if isinstance(memory, (list, tuple)):
        return type(memory)(select(part, rows) for part in memory)
    if isinstance(memory, Tensor):
        return memory.index_select(0, rows)
    raise TypeError(f"memory of kind {type(memory).__name__}")


def reach(module: nn.Module) -> int | None:
    """Tokens beyond which rotary frequencies change with the longest row of a batch; None: they never do.

    The config says so: a short probe cannot show it.
    """
    config: Any = module.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type", part.get("type")) in ("dynamic", "longrope"):
            limits = part, vars(config)
            names = ("original_max_position_embeddings", "max_position_embeddings")
            return next((int(d[n]) for n in names for d in limits if isinstance(d.get(n), int)), 1)
    return None


def _probe(module: nn.Module) -> Batching:
    device = next(module.parameters()).device
    both = torch.tensor(sample_ids(module, 2 * _LENGTH), device=device).view(2, _LENGTH)
    pad: Any = getattr(module.config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < int(both.max()):  # some families do not count it as a position
        both[0, 4] = both[1, 2] = pad
    try:
        whole = torch.cat([_whole(module, row[None]) for row in both])
        short = _whole(module, both[:1, :4])
    except FOREIGN as error:
        raise CapabilityError(
            f"{type(module).__name__} cannot read a row of ids: {type(error).__name__}: {error}"[:300],
            hint="take a decoder that transformers' own text generation takes, too",
        ) from error
    if not close(whole[:1, :4], short):
        raise not_causal(module)
    padded = _tried(partial(_reads, module, both, whole))
    result = Batching("again", positions=False, padded=padded, reach=reach(module))
    for way, positions, lengths in _TRIED:
        how = replace(result, way=way, positions=positions)
        if all(_tried(partial(_draws, module, how, both, whole, some)) for some in lengths):
            return how
    return result


def _tried(attempt: Callable[[], bool]) -> bool:
    """A way in which a family fails, however it fails, is no way to go."""
    try:
        return attempt()
    except FOREIGN:
        return False


def _whole(module: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) without memory."""
    model: Any = module
    masked = {} if mask is None else {"attention_mask": mask}
    logits: Tensor = model(input_ids=ids, **masked, **accepted(module, use_cache=False)).logits
    return logits


def _reads(module: nn.Module, both: Tensor, whole: Tensor) -> bool:
    """Whether a row padded on the right, under a mask, has the numbers that it has alone."""
    mask = torch.ones_like(both)
    mask[1, 4:] = 0
    logits = _whole(module, both * mask, mask)
    return close(logits[0], whole[0]) and close(logits[1, :4], whole[1, :4])


def _draws(module: nn.Module, how: Batching, both: Tensor, whole: Tensor, lengths: list[int]) -> bool:
    """Whether steps with memory, rows changed on the way, give the numbers of whole rows.

    ``lengths``: how much of each row is the prompt.
    """
    width = max(lengths)
    rows, ends = torch.arange(len(lengths), device=both.device), torch.tensor(lengths, device=both.device)
    mask = (torch.arange(_LENGTH, device=both.device) >= width - ends[:, None]).long()
    ids = torch.stack([both[i, :width].roll(width - n) for i, n in enumerate(lengths)]) * mask[:, :width]
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
    padded, memory = len(set(lengths)) > 1, None
    for step, change in enumerate(([1, 0, 1], [2, 1], [0, 1])):
        seen = mask[:, : width + step] if padded else None
        memory, logits = advance(module, how, ids, seen, positions, memory)
        if not close(logits, whole[rows, ends - 1].float()):
            return False
        if len(lengths) > 1:  # one row twice, then one less
            chosen = torch.tensor(change, device=both.device)
            memory = select(memory, chosen)
            rows, ends, mask, positions = rows[chosen], ends[chosen], mask[chosen], positions[chosen]
        ids, positions, ends = both[rows, ends][:, None], positions[:, -1:] + 1, ends + 1
    return True
