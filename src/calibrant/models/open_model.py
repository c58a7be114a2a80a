"""OpenModel: local Hugging Face weights, exactly as published: generation, log-probs, activations.

It serves any causal language model of transformers through the model's own forward pass: nothing is
folded, centred or re-implemented. How chats become ids is said in ``chat_tokens.py``, how replies are
drawn in ``generate.py``, how sites are named in ``hooks.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibrant.core.behaviours import same_length
from calibrant.core.errors import CapabilityError, InputError, NumericalError
from calibrant.core.lm import Batch, Chat, Completion, Identity, Piece, Sampling, Scored
from calibrant.core.reasoning import may_open
from calibrant.maths.logprobs import token_logprobs
from calibrant.models import hooks
from calibrant.models.batching import batching
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.folder import folder_identity, unchanged
from calibrant.models.generate import Drawn, Request, buckets, draw, follow
from calibrant.models.hub import download
from calibrant.models.loading import (
    Dtype,
    breaking,
    embeddings,
    load_folder,
    module_identity,
    stop_ids,
)
from calibrant.models.model_facts import accepted, facts
from calibrant.models.prompts import Asked, Prompts, as_batch, as_chats, only_chats
from calibrant.models.seeds import item_seeds
from calibrant.models.sites import reads_all_logits
from calibrant.models.sites import sites as site_names
from calibrant.models.template_check import Differences
from calibrant.models.trace import (
    ActivationCache,
    Hook,
    Names,
    capture,
    chosen,
    run_with_cache,
    run_with_hooks,
)
from calibrant.models.weights import Weights

_CPU_SCORING = 2048  # tokens scored at once on a CPU: larger batches leave its caches and are slower
_LOGITS = 2**27  # logits held at once when scoring: half a gigabyte in float32


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids (B, T) int64, mask (B, T) bool, reply (B, T) bool; see ``core.lm.Batch``."""

    ids: Tensor
    mask: Tensor
    reply: Tensor


class OpenModel(Weights):
    """A local causal language model with its tokenizer: an ``OpenLM``."""

    def __init__(
        self, module: nn.Module, tokenizer: Any, *, identity: Identity, token_budget: int = 16_384
    ) -> None:
        """Wrap ``module``, which is put in eval mode with its parameters frozen (not copied).

        Args:
            module: a transformers causal language model.
            tokenizer: its tokenizer; ``tokenizer.chat_template`` decides how chats are written.
            identity: what exactly this is; the constructors below work it out.
            token_budget: most tokens in one forward pass or cache. Lower it when memory runs out.

        Raises:
            InputError: the tokenizer has no end-of-sequence token, or one that the model cannot read.
        """
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        self.token_budget = token_budget
        self.chat_tokens = ChatTokens(tokenizer, stop_ids(module), embeddings(module))

    @classmethod
    def from_folder(
        cls, path: str | Path, *, name: str = "", dtype: Dtype = "float32", device: str = "cpu"
    ) -> OpenModel:
        """Open a folder in Hugging Face layout: safetensors only, no code from the folder.

        Raises:
            InputError: no such model, pickled weights, code of its own, weights that do not fit, a tokenizer
                without an end token, or a chat template that cannot be rendered.
            CapabilityError: the folder holds an adapter.
        """
        with unchanged(path):
            module, tokenizer = load_folder(path, dtype)
            identity = folder_identity(path, name=name, dtype=dtype)
        module = module.to(device)  # a device that is not there is no fault of the folder
        with breaking(path):
            return cls(module, tokenizer, identity=identity)

    @classmethod
    def from_hub(
        cls, name: str, revision: str, *, dtype: Dtype = "float32", device: str = "cpu"
    ) -> OpenModel:
        """Download (or find in the cache) one commit of a model on the Hugging Face hub, and open it.

        Args:
            name: 'owner/model'.
            revision: full commit hash, 40 hex digits. Branches and tags move, so they are refused.
            dtype: precision of the weights in memory.
            device: 'cpu', 'cuda', 'cuda:1', ...

        Raises:
            InputError: the revision is no commit, the hub cannot be reached, or see ``from_folder``.
        """
        folder = download(name, revision)
        return cls.from_folder(folder, name=f"{name}@{revision}", dtype=dtype, device=device)

    @classmethod
    def from_module(cls, module: nn.Module, tokenizer: Any, name: str) -> OpenModel:
        """Wrap a model in memory; its identity is worked out from the weights as they are now.

        Call it again after training: an identity does not follow the weights.
        """
        return cls(module, tokenizer, identity=module_identity(module, tokenizer, name))

    @property
    def template_differences(self) -> Differences:
        """Where the chat template writes an answered chat otherwise than as prompt, reply, end token."""
        return self.chat_tokens.differences

    @property
    def caveats(self) -> tuple[str, ...]:
        """Where the model is slower than others, as far as it has been asked: see ``batching.py``."""
        probe = facts(self.module).get("batching")
        return () if probe is None else probe.caveats(self.identity.name)

    def prompt_ids(self, chat: Chat) -> list[int]:
        """Ids of the prompt that ``chat`` makes, start-of-sequence token included."""
        return self.chat_tokens.prompts([self.chat_tokens.prompt_text(chat)])[0]

    def reply_ids(self, text: str, *, opens: bool = False) -> list[int]:
        """Ids of a reply without its end token; ``opens``: it follows an empty plain prompt."""
        return self.chat_tokens.replies([text], [opens])[0]

    def encode(self, chats: Asked, replies: Sequence[str] | None = None) -> TokenBatch:
        """Right-padded batch on the model's device: prompt ids, then reply ids and the end token.

        ``chats``: one or several; a text is a user's turn, as in ``Chat.ask``.

        Raises:
            InputError: no chats, a row longer than the context, a chat that the template refuses, or lists
                of different length.
        """
        prompts, answers = self._pieces(as_chats(chats), replies)
        return self._pad(prompts, answers)

    def forward(self, batch: Prompts) -> Tensor:
        """Logits (B, T, V) of every position, in the model's dtype. Gradients as the caller set them."""
        return self._logits(as_batch(self, batch), keep=0)

    def logprobs(self, chats: Sequence[Chat], replies: Sequence[str]) -> list[Scored]:
        """Log-probs in nats, float32, of each reply's tokens, its end token included.

        Raises:
            InputError: see ``encode``.
            NumericalError: a log-prob is NaN.
        """
        prompts, answers = self._pieces(only_chats(chats), replies)
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        config: Any = self.module.config
        budget = min(self.token_budget, _LOGITS // int(config.vocab_size))
        if self.device.type == "cpu":
            budget = min(budget, _CPU_SCORING)
        results: dict[int, Scored] = {}
        how = batching(self.module) if chats else None
        for rows in buckets(lengths, budget, [how.reads(n) for n in lengths] if how else ()):
            some = [answers[i] for i in rows]
            results.update(zip(rows, self._score([prompts[i] for i in rows], some), strict=True))
        for i, scored in results.items():
            if any(value != value for value in scored.logprobs):
                raise NumericalError(
                    f"row {i}: the log-probs of the reply are NaN",
                    hint="load the model in float32, and check its weights",
                )
        return [results[i] for i in range(len(chats))]

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat; an item that cannot be served comes back with ``stop='error'``.

        Greedy log-probs are those of temperature 1. Draws depend on the seed, the chat and how many
        equal chats came before it in the call, never on the batch.
        """
        texts, results, requests = self._asked(chats, sampling)
        stops = self.chat_tokens.stop_ids
        drawn = draw(self.module, list(requests.values()), sampling, stops, self.token_budget)
        for i, result in zip(requests, drawn, strict=True):
            results[i] = self._completion(texts[i], chats[i], result)
        return [results[i] for i in range(len(chats))]

    def stream(self, chat: Chat, sampling: Sampling = Sampling()) -> Iterator[Piece]:
        """The completion that ``generate([chat])`` gives, piece by piece; it stands in the last one whole.

        A reply that may begin with reasoning comes in one piece.
        """
        texts, results, requests = self._asked([chat], sampling)
        if not requests:
            yield Piece(text=results[0].text, completion=results[0])
            return
        so_far, told, completion = "", "", Completion(text="")
        for drawn in follow(self.module, requests[0], sampling, self.chat_tokens.stop_ids):
            completion = self._completion(texts[0], chat, drawn)
            so_far = completion.text
            # The last token may be part of a character, or a blank that the next one takes away.
            steady = so_far.rstrip("\ufffd").rstrip()
            if completion.reasoning is None and steady.startswith(told) and not may_open(steady):
                yield Piece(text=steady[len(told) :], tokens=1)
                told = steady
            else:
                yield Piece(tokens=1)
        yield Piece(text=so_far[len(told) :], reasoning=completion.reasoning or "", completion=completion)

    def _asked(
        self, chats: Sequence[Chat], sampling: Sampling
    ) -> tuple[dict[int, str], dict[int, Completion], dict[int, Request]]:
        """Prompts as text, what is decided without the model, and what to ask it; by place."""
        results: dict[int, Completion] = {}
        texts: dict[int, str] = {}
        for i, chat in enumerate(only_chats(chats)):
            try:
                texts[i] = self.chat_tokens.prompt_text(chat)
            except InputError as error:
                results[i] = Completion(text="", stop="error", error=str(error))
        prompts, broken = self._prompts(texts)
        results.update({i: Completion(text="", stop="error", error=str(e)) for i, e in broken.items()})
        requests: dict[int, Request] = {}
        seeds = item_seeds(chats, sampling.seed) if sampling.temperature > 0 else [0] * len(chats)
        for i, ids in prompts.items():
            room = sampling.max_tokens if self.max_length is None else self.max_length - len(ids)
            if room < 0:
                results[i] = Completion(text="", stop="error", error=str(self._too_long(i, len(ids))))
            elif room == 0:
                results[i] = Completion(text="", ids=(), logprobs=(), stop="length")
            else:
                requests[i] = Request(ids, min(room, sampling.max_tokens), seeds[i])
        return texts, results, requests

    def sites(self) -> tuple[str, ...]:
        """Names for ``trace`` and ``edit``: TransformerLens names, then module paths."""
        return site_names(self.module)

    def trace(self, batch: Prompts, sites: Names) -> dict[str, Tensor]:
        """Activations (B, T, D) at each site from one forward pass; gradients as the caller set them.

        Raises:
            CapabilityError: an unknown site, or one that the pass never went through.
        """
        names, rows = chosen(self, sites), as_batch(self, batch)
        keep = 0 if reads_all_logits(self.module, names) else 1
        with hooks.captured(self.module, names) as activations:
            self._logits(rows, keep=keep)
        return activations

    def edit(self, changes: Mapping[str, hooks.Change]) -> AbstractContextManager[None]:
        """Change activations in every pass inside a ``with`` block; see ``hooks.edited``."""
        return hooks.edited(self.module, changes)

    def run_with_cache(self, prompts: Prompts, names_filter: Names = None) -> tuple[Tensor, ActivationCache]:
        """Logits, and the activations that were asked for; see ``trace.run_with_cache``."""
        return run_with_cache(self, prompts, names_filter)

    def run_with_hooks(self, prompts: Prompts, fwd_hooks: Sequence[tuple[Names, Hook]]) -> Tensor:
        """Logits of a pass in which hooks may change activations; see ``trace.run_with_hooks``."""
        return run_with_hooks(self, prompts, fwd_hooks)

    def capture(self, names: Names) -> AbstractContextManager[dict[str, Tensor]]:
        """The latest activations of what is run inside a ``with`` block; see ``trace.capture``."""
        return capture(self, names)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) that the model's own last norm and unembedding read from (..., D)."""
        return hooks.unembed(self.module, hidden)

    def _prompts(self, texts: Mapping[int, str]) -> tuple[dict[int, list[int]], dict[int, InputError]]:
        """Ids of each text that has some, and what is wrong with the others."""
        try:
            return dict(zip(texts, self.chat_tokens.prompts(list(texts.values())), strict=True)), {}
        except InputError as error:
            if len(texts) == 1:
                return {}, dict.fromkeys(texts, error)
        ids: dict[int, list[int]] = {}
        broken: dict[int, InputError] = {}
        for i, text in texts.items():
            good, bad = self._prompts({i: text})
            ids |= good
            broken |= bad
        return ids, broken

    def _pieces(
        self, chats: Sequence[Chat], replies: Sequence[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Prompt ids and reply ids (end token included; [] without replies) of each row, checked."""
        if replies is not None:
            same_length(chats=chats, replies=replies)
        tokens = self.chat_tokens
        prompts = tokens.prompts([tokens.prompt_text(chat) for chat in chats])
        answers: list[list[int]] = [[] for _ in chats]
        if replies is not None:
            spelt = tokens.replies(replies, [tokens.opens(chat) for chat in chats])
            answers = [[*ids, tokens.end_id] for ids in spelt]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if self.max_length is not None and len(prompt) + len(answer) > self.max_length:
                raise self._too_long(row, len(prompt), len(answer))
        return prompts, answers

    def _too_long(self, row: int, prompt: int, reply: int = 0) -> InputError:
        what = f"{prompt} tokens of prompt" + (f" and {reply} of reply" if reply else "")
        return InputError(
            f"row {row} has {what}, but the model's context holds {self.max_length} in all",
            hint="shorten the row or leave it out; nothing is cut silently",
        )

    def _pad(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> TokenBatch:
        """Right-pad; the end token fills the gaps, which the mask hides."""
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        width = max(map(len, rows), default=0)
        ids = torch.tensor([row + [self.chat_tokens.end_id] * (width - len(row)) for row in rows])
        place = torch.arange(width)[None]
        mask = place < torch.tensor([len(row) for row in rows])[:, None]
        reply = mask & (place >= torch.tensor([len(p) for p in prompts])[:, None])
        return TokenBatch(ids.to(self.device), mask.to(self.device), reply.to(self.device))

    def _logits(self, batch: Batch, keep: int) -> Tensor:
        """Logits of the last ``keep`` positions, 0 for all (where the family can leave some out)."""
        mask, how = batch.mask.long(), batching(self.module)
        if bool((batch.mask[:, 1:] & ~batch.mask[:, :-1]).any()):
            raise InputError(
                "a row is padded before or inside its text: a position would not mean the same in all rows",
                hint="pad on the right, as encode() does",
            )
        if (how.reach or not how.padded) and len(set(map(how.reads, mask.sum(1).tolist()))) > 1:
            raise CapabilityError(
                f"'{self.identity.name}' has other numbers when rows of such lengths share a batch",
                hint="give it rows of one length at a time",
            )
        options = accepted(self.module, logits_to_keep=keep, use_cache=False)
        logits: Tensor = self.module(input_ids=batch.ids, attention_mask=mask, **options).logits
        return logits

    @torch.inference_mode()
    def _score(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Scored]:
        """Log-probs of one sub-batch; logits are made only from the first reply token's place on."""
        batch = self._pad(prompts, answers)
        keep = batch.ids.shape[1] - min(map(len, prompts)) + 1
        logits = self._logits(batch, keep)
        values = token_logprobs(logits, batch.ids[:, -logits.shape[1] :]).cpu()
        first = batch.ids.shape[1] - values.shape[1]  # the position of the first scored token
        scored = []
        for row, prompt, answer in zip(values.tolist(), prompts, answers, strict=True):
            start = len(prompt) - first
            scored.append(Scored(ids=tuple(answer), logprobs=tuple(row[start : start + len(answer)])))
        return scored

    def _completion(self, prompt: str, chat: Chat, drawn: Drawn) -> Completion:
        """Spell out what was drawn, reasoning and reply apart; the stop token is left out of the text."""
        spelt = drawn.ids[:-1] if drawn.stop == "eos" else drawn.ids
        error = None
        if drawn.stop == "error":
            error = f"the logits became NaN or infinite at token {len(drawn.ids) + 1} of the reply"
        parts = self.chat_tokens.parted(spelt, prompt, chat)
        return Completion(
            text=parts.reply,
            reasoning=parts.reasoning,
            ids=drawn.ids,
            logprobs=drawn.logprobs,
            stop=drawn.stop,
            error=error,
        )
