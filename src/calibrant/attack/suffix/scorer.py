"""The fast scorer of GCG: how likely a target is after each of many suffixes that differ in a few tokens.

    scorer = Candidates(module, Frame(before, after, target))
    losses, reached = scorer.losses(rows, near)       # rows (B, n) around the suffix ``near`` (n,)

A row is [before | suffix | after | target]. What precedes the suffix is read once, and its keys and values
are shared with every batch as a view. Candidates are sorted by the first token in which they differ from the
current suffix, and a batch also shares the tokens up to there. Logits are made where the target is predicted;
its last token, which predicts nothing, is not read. The numbers are those of whole rows, up to rounding: a
model whose memory cannot be shared so (a recurrent state) is found by comparing both ways once, and reads
whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from calibrant.core.errors import CapabilityError, InputError, NumericalError
from calibrant.maths.gcg import distinct, first_change, target_losses, token_gradient
from calibrant.models.batching import batching, memory_name
from calibrant.models.model_facts import FOREIGN, accepted, close, muted, sample_ids

_CPU_TOKENS = 512  # tokens read at once on a CPU: smaller batches share more, larger ones leave its caches
_TOKENS = 2**15  # elsewhere, kept ones included
_LOGITS = 2**26  # logits held at once: 256 MB in float32
_SLICE = 2**14
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # half precision: 5 %

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Keys and values (1, heads, tokens, size) of each layer."""


class Frame(NamedTuple):
    """Token ids round a suffix."""

    before: Sequence[int]
    after: Sequence[int]
    target: Sequence[int]
    """What the model is to say; at least one id."""


class Candidates:
    """Scores suffixes in one frame."""

    def __init__(self, module: nn.Module, frame: Frame, *, mellow: float | None = None) -> None:
        """``module``: a causal language model of transformers; ``mellow``: see ``target_losses``."""
        self.module: Any = module  # its calls take and give what its family does
        self.mellow = mellow
        self.table: Any = module.get_input_embeddings()  # type: ignore[operator]
        self.device = next(module.parameters()).device
        self.before, self.after, self.target = (
            torch.tensor(ids, dtype=torch.long).to(self.device) for ids in frame
        )
        self.tail = torch.cat([self.after, self.target[:-1]])
        self.flops = 0.0
        """Spent so far: 2 x parameters x tokens forward, 4 x backward."""
        self.size = sum(p.numel() for p in module.parameters())
        """Parameters."""
        self._name = memory_name(module) or "past_key_values"
        self._rows = 0  # most rows that fitted in memory, once it was too many
        self._before: KeysAndValues | None = None
        self.shares: bool | None = None
        """Whether rows share what they have in common; None before the first call."""

    @torch.no_grad()
    def losses(self, rows: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss (B,) of the target after each suffix, and whether (B,) greedy decoding says the target.

        Equal rows are read once.

        Args:
            rows: (B, n) int64.
            near: (n,) suffix from which most rows differ in few tokens.

        Raises:
            NumericalError: a loss is NaN or infinite.
        """
        few, back = distinct(rows)
        self._settle(few[0])
        near = few[0] if near is None else near
        past = self._context(near) if self.shares else []
        first = (
            first_change(few, near).clamp(max=few.shape[1] - 1) if self.shares else few.new_zeros(len(few))
        )
        order = first.argsort(stable=True)
        loss = torch.empty(len(few), device=self.device)
        reached = torch.empty(len(few), dtype=torch.bool, device=self.device)
        start = 0
        while start < len(few):
            shared = int(first[order[start]])
            some = order[start : start + self._fit(few.shape[1] - shared)]
            result = self._batch(few[some], shared, past)
            if result is not None:
                loss[some], reached[some] = result[0].to(loss.dtype), result[1]
                start += len(some)
        if not bool(loss.isfinite().all()):
            raise NumericalError("a candidate's loss is NaN or infinite", hint="load the model in float32")
        return loss[back], reached[back]

    def gradient(self, ids: Tensor) -> Tensor:
        """Gradient (n, V) of the loss by the one-hot choice of each token of the suffix ``ids`` (n,)."""
        spelt = self.table(ids[None]).detach().requires_grad_()
        flow = self.flow(spelt)[2][0]
        with torch.no_grad():
            every = torch.split(torch.arange(self.table.num_embeddings, device=self.device), _SLICE)
            return torch.cat([token_gradient(flow, self.table(some)) for some in every], 1)

    def flow(self, spelt: Tensor) -> tuple[Tensor, bool, Tensor]:
        """Loss (), whether greedy decoding says the target, and the gradient (1, n, D) by the embeddings.

        ``spelt``: (1, n, D) embeddings of a suffix, or any vectors in their place; it must require gradients.
        """
        with torch.enable_grad():
            self._settle(torch.tensor(sample_ids(self.module, spelt.shape[1])).to(self.device))
            whole = torch.cat([spelt, self.table(self.tail[None]).detach()], 1)
            past = self._prefix() if self.shares else []
            if not past:
                whole = torch.cat([self.table(self.before[None]).detach(), whole], 1)
            loss, reached = target_losses(self._logits(whole, past), self.target, self.mellow)
            flow = torch.autograd.grad(loss, spelt)[0]
        self.flops += 4 * self.size * whole.shape[1]
        return loss.detach()[0], bool(reached[0]), flow

    def _batch(self, rows: Tensor, shared: int, past: KeysAndValues) -> tuple[Tensor, Tensor] | None:
        """Score rows that share their first ``shared`` tokens; None if they did not fit into memory."""
        try:
            return self._score(rows, shared, past)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        self._rows = len(rows) // 2  # outside of the handler, which holds the tensors of the failed try
        return None

    def _score(self, rows: Tensor, shared: int, past: KeysAndValues) -> tuple[Tensor, Tensor]:
        ids = torch.cat([rows[:, shared:], self.tail.expand(len(rows), -1)], 1)
        length = len(self.before) + shared
        if not past:
            ids = torch.cat([self.before.expand(len(rows), -1), rows[:, :shared], ids], 1)
        head = [(k[:, :, :length], v[:, :, :length]) for k, v in past] if length else []
        return target_losses(self._logits(ids, head), self.target, self.mellow)

    def _context(self, near: Tensor) -> KeysAndValues:
        """Keys and values of what precedes the target when the suffix is ``near``."""
        cache = self._cache(self._prefix(), 1)
        self._logits(near[None], [], cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _prefix(self) -> KeysAndValues:
        """Keys and values of what precedes the suffix; [] where nothing does."""
        if self._before is None:
            cache = self._cache([], 1)
            if len(self.before):
                with torch.no_grad():
                    self._logits(self.before[None], [], cache)
            self._before = [(layer.keys, layer.values) for layer in cache.layers] if len(self.before) else []
        return self._before

    def _cache(self, past: KeysAndValues, rows: int) -> Any:
        expanded = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in past]
        return DynamicCache(expanded)  # of full layers: a sliding window is the mask's business

    def _logits(self, inputs: Tensor, past: KeysAndValues, cache: Any = None) -> Tensor:
        """Logits (B, T, V) where the target is predicted, for ids (B, L) or embeddings (B, L, D)."""
        if cache is None and past:
            cache = self._cache(past, len(inputs))
        self.flops += 2 * self.size * inputs.shape[0] * inputs.shape[1]
        kind = "input_ids" if inputs.dim() == 2 else "inputs_embeds"
        keep = len(self.target)
        out = self.module(
            **{kind: inputs},
            **({} if cache is None else {self._name: cache}),
            **accepted(self.module, logits_to_keep=keep, use_cache=cache is not None),
        )
        logits: Tensor = out.logits[:, -keep:]
        return logits

    def _fit(self, length: int) -> int:
        """How many rows with ``length`` tokens of suffix of their own go into a batch."""
        own, whole = length + len(self.tail), len(self.before) + length + len(self.tail)
        rows = _CPU_TOKENS // own if self.device.type == "cpu" and self.shares else _TOKENS // whole
        rows = min(rows, _LOGITS // (len(self.target) * int(self.module.config.vocab_size)))
        return max(1, min(rows, self._rows) if self._rows else rows)

    @torch.no_grad()
    def _settle(self, ids: Tensor) -> None:
        """Find out, once, whether keys and values can be shared: tried on a suffix ``ids`` (n,) and another.

        Raises:
            CapabilityError: the model sees what follows, or reads embeddings otherwise than their ids.
        """
        if self.shares is not None:
            return
        batching(self.module)  # refuses what is no left-to-right language model
        with muted(self.module):
            rows = ids.repeat(2, 1)
            rows[1, -1] = (rows[1, -1] + 1) % self.table.num_embeddings
            whole, _ = self._score(rows, 0, [])
            shares, spent = self._shares_exactly(rows, whole), self.flops
            full_ids = torch.cat([self.before, rows[0], self.tail])[None]
            right = self._logits(full_ids, [])
            same = close(self._logits(self.table(full_ids), []), right)
            self.shares = shares and same and self._shares_with_embeddings(full_ids, right)
            self.flops = spent
            if not same:
                raise CapabilityError(
                    f"{type(self.module).__name__} reads embeddings otherwise than their tokens, so "
                    "there is no gradient by tokens",
                    hint="take an attack that needs no gradient, or another model",
                )

    def _shares_with_embeddings(self, ids: Tensor, right: Tensor) -> bool:
        """Whether embeddings behind shared keys have the logits ``right`` that ids (1, L) have read whole."""
        try:
            logits = self._logits(self.table(ids[:, len(self.before) :]), self._prefix())
        except FOREIGN:
            return False
        return close(logits, right)

    def _shares_exactly(self, rows: Tensor, whole: Tensor) -> bool:
        """Whether ``rows`` (2, n), unlike in their last token, have the losses ``whole`` (2,) when shared."""
        try:
            parts, _ = self._score(rows, rows.shape[1] - 1, self._context(rows[0]))
        except FOREIGN:
            return False
        bound = _TOLERANCE.get(self.module.dtype, 0.05) * (1 + float(whole.abs().max()))
        return bool((whole - parts).abs().max() <= bound)


def check_length(frame: Frame, suffix: int, most: int | None) -> None:
    """Refuse what the model's context cannot hold.

    Raises:
        InputError: too long, or there is no target.
    """
    whole = len(frame.before) + suffix + len(frame.after) + len(frame.target)
    if not frame.target:
        raise InputError("the target string has no token", hint="give a 'reply' with some text")
    if most is not None and whole > most:
        raise InputError(
            f"prompt, suffix and reply take {whole} tokens, but the model's context holds {most}",
            hint="shorten the request, the suffix or the reply",
        )
