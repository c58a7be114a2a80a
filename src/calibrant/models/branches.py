"""Prefix sharing: one prompt with all its replies in a row, and the unembedding only at scored tokens.

    packed = pack(Branches(prompts=[[5, 6, 7]], replies=[[[8, 1], [9, 9, 1]]]), shared=True)
    score(module, packed).sums()        # log-probs of two replies from one row of 3 + 2 + 3 tokens

A row is [prompt | reply 1 | reply 2 | ...]. Every reply restarts at the position after the prompt and sees
the prompt and itself, never its neighbours, so that the numbers are those of separate rows. Preference
training reads the same prompt twice or more (chosen and rejected, K samples); here it is read once.

``shared=False`` packs each reply into a row of its own: the plain path that every causal model takes.
``shares(module)`` says which models may share a row: it compares both paths on the model itself, since a
sliding window or a recurrent state would leak from one reply into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.core import CapabilityError, Chat, NumericalError, OpenLM
from calibrant.maths.head import head_logprobs, logits_logprobs
from calibrant.models.batching import reach
from calibrant.models.model_facts import (
    FOREIGN,
    accepted,
    close,
    facts,
    muted,
    not_causal,
    sample_ids,
    share_facts,
    unembedding,
)

_ROWS = 256  # rows tokenised at once


class Branches(NamedTuple):
    """Token ids of prompts and of the replies to each."""

    prompts: list[list[int]]
    """P prompts, each of at least one id."""
    replies: list[list[list[int]]]
    """For each prompt K >= 1 replies, each of at least one id; the end token is part of a finished reply."""


@dataclass(frozen=True)
class Packed:
    """Rows for one forward pass; M replies with N scored tokens in all, flat in order of the replies."""

    ids: Tensor
    """(B, T) int64, right-padded with 0."""
    positions: Tensor
    """(B, T) int64."""
    mask: Tensor | None
    """(B, 1, T, T) bool where rows are shared, True where a token may look; None: plain causal rows."""
    before: Tensor
    """(N,) int64 place in the flat (B T) of the token that predicts each scored token."""
    targets: Tensor
    """(N,) int64 ids of the scored tokens."""
    owner: Tensor
    """(N,) int64 number of the reply that each scored token belongs to, 0 to M - 1."""
    lengths: Tensor
    """(M,) int64 scored tokens of each reply."""
    last: Tensor
    """(M,) int64 place in the flat (B T) of the last token of each reply."""

    @property
    def tokens(self) -> int:
        """Tokens that the forward pass reads, padding included."""
        return self.ids.numel()


class Scored(NamedTuple):
    """Log-probs of replies, flat over their tokens."""

    logprobs: Tensor
    """(N,) nats, at least float32; gradients flow."""
    owner: Tensor
    """(N,) number of the reply."""
    lengths: Tensor
    """(M,) tokens of each reply."""
    entropy: Tensor | None = None
    """(N,) nats: entropy of each predicting distribution, where it was asked for; gradients flow."""

    def sums(self) -> Tensor:
        """(M,) summed log-probs of the replies, in nats."""
        return total(self.logprobs, self)

    def padded(self) -> Tensor:
        """(M, T) log-probs, right-padded with 0."""
        return spread(self.logprobs, self)


def tokenised(
    model: OpenLM, prompts: Sequence[Chat], replies: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of prompts and of replies, end token included, as ``model.encode`` joins them."""
    prompt_ids: list[list[int]] = []
    reply_ids: list[list[int]] = []
    for start in range(0, len(prompts), _ROWS):
        batch = model.encode(prompts[start : start + _ROWS], replies[start : start + _ROWS])
        scored = batch.reply.sum(1).tolist()
        for row, whole, n in zip(batch.ids.tolist(), batch.mask.sum(1).tolist(), scored, strict=True):
            prompt_ids.append(row[: whole - n])
            reply_ids.append(row[whole - n : whole])
    return prompt_ids, reply_ids


def pack(branches: Branches, *, shared: bool, device: torch.device | str = "cpu") -> Packed:
    """Lay out rows; ``shared`` puts all replies to one prompt behind it, else each has a row of its own."""
    rows = [
        (prompt, group)
        for prompt, replies in zip(branches.prompts, branches.replies, strict=True)
        for group in ([replies] if shared else [[reply] for reply in replies])
    ]
    width = max(len(prompt) + sum(map(len, group)) for prompt, group in rows)
    ids = [list(chain(prompt, *group)) for prompt, group in rows]
    before: list[int] = []
    last: list[int] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []
    for number, (prompt, group) in enumerate(rows):
        start = place = number * width + len(prompt)
        at, segment = list(range(len(prompt))), [0] * len(prompt)
        for branch, reply in enumerate(group, start=1):
            before += [start - 1, *range(place, place + len(reply) - 1)]
            place += len(reply)
            last.append(place - 1)
            at += range(len(prompt), len(prompt) + len(reply))
            segment += [branch] * len(reply)
        positions.append(at + [0] * (width - len(at)))
        segments.append(segment + [-1] * (width - len(segment)))
    replies = [reply for _, group in rows for reply in group]
    lengths = torch.tensor([len(reply) for reply in replies])
    several = any(len(group) > 1 for _, group in rows)
    return Packed(
        ids=torch.tensor([row + [0] * (width - len(row)) for row in ids]).to(device),
        positions=torch.tensor(positions).to(device),
        # Alone behind its prompt, a reply needs no mask: padding stands on the right, out of causal sight.
        mask=_sight(torch.tensor(segments).to(device)) if several else None,
        before=torch.tensor(before).to(device),
        targets=torch.tensor(list(chain(*replies))).to(device),
        owner=torch.repeat_interleave(torch.arange(len(replies)), lengths).to(device),
        lengths=lengths.to(device),
        last=torch.tensor(last).to(device),
    )


def padded_tokens(branches: Branches, *, shared: bool) -> int:
    """Tokens that one pass over ``pack(branches, shared=shared)`` reads, padding included."""
    widths = [
        width
        for prompt, replies in zip(branches.prompts, branches.replies, strict=True)
        for width in (
            [len(prompt) + sum(map(len, replies))] if shared else [len(prompt) + len(r) for r in replies]
        )
    ]
    return len(widths) * max(widths, default=0)


def score(module: nn.Module, packed: Packed, *, temperature: float = 1.0, entropy: bool = False) -> Scored:
    """Log-probs of every scored token under softmax(logits / temperature); gradients as the caller set them.

    ``module`` is a causal language model of transformers. ``entropy`` also gives the entropy of each
    predicting distribution.

    Raises:
        CapabilityError: the model sees the tokens that follow, or has other numbers beside padding.
        NumericalError: its hidden states are NaN or infinite.
    """
    shares(module)  # refuses an encoder, and finds out whether positions are passed
    if _plain_head(module):
        head: Any = unembedding(module)
        hidden = states(_backbone(module), packed)
        scores = head_logprobs(hidden, head.weight, head.bias, packed.targets, temperature, entropy)
    else:
        logits = module(**_arguments(module, packed)).logits.flatten(0, 1)[packed.before]
        scores = logits_logprobs(logits, packed.targets, temperature)
    return Scored(scores[0], packed.owner, packed.lengths, scores[1] if entropy else None)


def states(backbone: nn.Module, packed: Packed) -> Tensor:
    """(N, D) hidden state from which each scored token is predicted: what a critic reads."""
    return _hidden(backbone, packed)[packed.before]


def last_states(backbone: nn.Module, packed: Packed) -> Tensor:
    """(M, D) hidden state at the last token of each reply: what a reward model reads."""
    return _hidden(backbone, packed)[packed.last]


def total(values: Tensor, scored: Scored | Packed) -> Tensor:
    """Sum (M,) of flat values (N,) over the tokens of each reply."""
    return values.new_zeros(len(scored.lengths)).index_add(0, scored.owner, values)


def spread(values: Tensor, scored: Scored | Packed) -> Tensor:
    """Flat values (N,) as a table (M, T), right-padded with 0."""
    lengths = scored.lengths
    place = torch.arange(len(values), device=values.device) - (lengths.cumsum(0) - lengths)[scored.owner]
    table = values.new_zeros(len(lengths), int(lengths.max()) if len(lengths) else 0)
    return table.index_put((scored.owner, place), values)


def shares(module: nn.Module) -> str:
    """Why replies of ``module`` cannot share a row, or "" when they can.

    Found by comparing both paths on the model itself, once.

    Raises:
        CapabilityError: the model sees the tokens that follow, or has other numbers beside padding.
        NumericalError: its hidden states are NaN or infinite.
    """
    known = facts(module)
    share_facts(_backbone(module), module)
    if "shares" not in known:
        with muted(module), torch.no_grad():
            reason = _probe(module)
        known["shares"] = _declared(module) or reason
    return str(known["shares"])


def _sight(segments: Tensor) -> Tensor:
    """(B, 1, T, T) who may look at whom; padding looks at itself, since a softmax over nothing is NaN."""
    width = segments.shape[1]
    asks, others = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    same = (others == asks) | (others == 0)
    visible = causal & same & (others >= 0)
    return (visible | torch.eye(width, dtype=torch.bool, device=segments.device))[:, None]


def _backbone(module: nn.Module) -> nn.Module:
    """The part below the head; the module itself where it has none."""
    backbone: nn.Module = getattr(module, "base_model", module)
    return backbone


def _arguments(module: nn.Module, packed: Packed) -> dict[str, Any]:
    arguments = accepted(module, attention_mask=packed.mask, use_cache=False)
    if packed.mask is not None or facts(module).get("positions", True):
        arguments |= accepted(module, position_ids=packed.positions)
    far = reach(module)
    if far is not None:
        lengths = packed.positions.amax(1) + 1
        if int(lengths.max()) > far and int(lengths.min()) < int(lengths.max()):
            raise CapabilityError(
                f"{type(module).__name__} counts otherwise beyond {far} tokens, in a whole batch at once",
                hint=f"keep prompt and reply within {far} tokens: max_length = {far}",
            )
    return {"input_ids": packed.ids, **arguments}


def _hidden(backbone: nn.Module, packed: Packed) -> Tensor:
    """(B T, D) last hidden states."""
    out = getattr(backbone(**_arguments(backbone, packed)), "last_hidden_state", None)
    if out is None:
        raise CapabilityError(
            f"{type(backbone).__name__} shows no hidden states below its head",
            hint="take a model of another family, whose base_model is its trunk",
        )
    hidden: Tensor = out.flatten(0, 1)
    return hidden


def _read(module: nn.Module, packed: Packed) -> Tensor:
    """(B T, ...) what the probe compares: last hidden states, or logits where the family shows no others."""
    out = _backbone(module)(**_arguments(_backbone(module), packed))
    values: Tensor = out.logits if getattr(out, "last_hidden_state", None) is None else out.last_hidden_state
    return values.flatten(0, 1)


def _plain_head(module: nn.Module) -> bool:
    """Whether the logits are hidden states times the unembedding, without scaling, capping or slicing."""
    known = facts(module)
    if "plain head" not in known:
        with muted(module), torch.no_grad():
            known["plain head"] = _probe_head(module)
    return bool(known["plain head"])


def _probe_head(module: nn.Module) -> bool:
    head = unembedding(module)
    if not isinstance(head, nn.Linear):
        return False
    arguments = _arguments(module, pack(_sample(module), shared=False, device=head.weight.device))
    hidden = getattr(_backbone(module)(**arguments), "last_hidden_state", None)
    if hidden is None:
        return False
    return hidden.shape[-1] == head.in_features and close(head(hidden), module(**arguments).logits)


def _probe(module: nn.Module) -> str:
    device = next(module.parameters()).device
    rows, name = _sample(module), type(module).__name__
    alone = pack(rows, shared=False, device=device)
    try:
        first_alone = Branches(rows.prompts[:1], [rows.replies[0][:1]])
        facts(module)["positions"] = False  # a row of its own, counted as the family counts
        single = _read(module, pack(first_alone, shared=False, device=device))
        facts(module)["positions"] = True
        apart = _read(module, alone)
        if not close(apart.view(*alone.ids.shape, -1)[0, : len(single)], single):
            facts(module)["positions"] = False
            apart = _read(module, alone)
    except FOREIGN as error:
        raise CapabilityError(
            f"{name} cannot read rows of ids: {type(error).__name__}: {error}"[:300],
            hint="take a decoder of transformers that gives its last hidden states",
        ) from error
    if not bool(torch.isfinite(apart).all()):
        raise NumericalError("the model's hidden states are NaN or infinite", hint="check its weights")
    first, second = apart.view(*alone.ids.shape, -1)[:2]
    shown = len(rows.prompts[0])  # the second row has the same prompt, and no padding
    if not close(second[:shown], single[:shown]):
        raise not_causal(module)
    if not close(first[: len(single)], single):
        raise CapabilityError(
            f"{name} has other numbers when a row is padded on the right",
            hint="take a model of another family",
        )
    try:
        packed = pack(rows, shared=True, device=device)
        together = _read(module, packed)
    except FOREIGN as error:
        return f"the model takes no branch mask ({' '.join(str(error).split())[:80]})"
    if close(together[packed.before], apart[alone.before]):
        return ""
    return "replies in one row change each other's numbers (a recurrent state, or positions of its own)"


def _declared(module: nn.Module) -> str:
    """What the config says that a short probe cannot show."""
    config: Any = module.config
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in ("sdpa", "eager"):
        return f"attention '{attention}' takes no branch mask; load the model with 'sdpa'"
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()} - {"full_attention"}
    if kinds:
        return f"layers of kind {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"a sliding window of {config.sliding_window} tokens"
    return ""


def _sample(module: nn.Module) -> Branches:
    """Two prompts with three and two replies."""
    ids = sample_ids(module, 12)
    return Branches([ids[:4], ids[3:5]], [[ids[4:6], ids[6:10], ids[1:4]], [ids[10:12], ids[5:6]]])
