"""Classifier: a language model's trunk with a head of one or more scores, read at the end of a reply.

A score is read at the last real token of a reply, its end token. Where that is, is known from the ids
themselves, so that padding cannot matter. The pooling of transformers looks for the last id that is not
padding, and so reads one token too early where padding and end of text are the same id.

Folders are those of ``AutoModelForSequenceClassification``, in and out. In: a classifier that others trained
learned to be read where transformers reads it, and is (``pooled``). Out: padding is never the end token, so
that transformers reads where we do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from calibrant.core import CapabilityError, Chat, Identity, InputError, NumericalError, OpenLM
from calibrant.core.behaviours import same_length
from calibrant.models.branches import Branches, last_states, pack, padded_tokens, shares
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.folder import folder_identity, unchanged
from calibrant.models.generate import buckets
from calibrant.models.loading import (
    Dtype,
    Kind,
    breaking,
    embeddings,
    load_folder,
    module_identity,
    token_ids,
)
from calibrant.models.weights import Weights

_CPU = 2048  # tokens in one pass on a CPU: larger batches leave its caches and are slower
_ROW = 1024  # most tokens of a row with several replies: attention costs the square of it
_FAMILIES = "take a model of another family: Llama, Qwen2, Mistral, GPT-2, GPT-NeoX, Gemma 2, ..."
_auto: Any = AutoModelForSequenceClassification
_CLASSIFIER = Kind(
    _auto,
    "sequence classifier",
    "a language model has no head for scores; train.reward makes a reward model of one",
)


class Classifier(Weights):
    """A trunk, a linear head with one output a score, a tokenizer."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        *,
        identity: Identity,
        token_budget: int = 16_384,
        pooled: bool = False,
    ) -> None:
        """Wrap ``module``, which is put in eval mode with its parameters frozen (not copied).

        Args:
            module: a decoder for sequence classification, of transformers.
            tokenizer: its tokenizer; ``tokenizer.chat_template`` decides how chats are written.
            identity: what exactly this is; the constructors below work it out.
            token_budget: most tokens in one forward pass.
            pooled: read where transformers does: behind a reply stands what the template writes there, and
                the score is that of the last token that is no padding.

        Raises:
            InputError: the tokenizer has no end-of-sequence token.
            CapabilityError: the head is not one linear layer named 'score', as decoders have it.
        """
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        self.token_budget = token_budget
        self.pooled = pooled
        stops = token_ids(getattr(module.config, "eos_token_id", None))
        self.chat_tokens = ChatTokens(tokenizer, stops, embeddings(module))
        if not isinstance(getattr(module, "score", None), nn.Linear):
            raise CapabilityError(
                f"{type(module).__name__} has no linear head 'score' over a left-to-right trunk",
                hint="a score is read where the reply ends, so take a decoder: Llama, Qwen2, GPT-2, ...",
            )

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        name: str = "",
        dtype: Dtype = "float32",
        device: str = "cpu",
        pooled: bool = False,
    ) -> Classifier:
        """Open a folder in Hugging Face layout: safetensors only, no code from the folder.

        Raises:
            InputError: no such model, pickled weights, code of its own, weights that do not fit, no end
                token, or outputs that are classes rather than scores.
            CapabilityError: the folder holds an adapter; or see ``__init__``.
        """
        with unchanged(path):
            module, tokenizer = _load(path, dtype)
            identity = folder_identity(path, name=name, dtype=dtype).model_copy(update={"kind": "reward"})
        module = module.to(device)  # a device that is not there is no fault of the folder
        with breaking(path, _CLASSIFIER):
            return cls(module, tokenizer, identity=identity, pooled=pooled)

    @classmethod
    def from_lm(cls, model: OpenLM, heads: int = 1, seed: int = 0) -> Classifier:
        """The trunk of ``model``, copied, under a fresh head of ``heads`` outputs, on the same device.

        Weights of the head are N(0, 1 / (d + 1)) for d hidden units, drawn from ``seed`` alone: Huang et al.
        2024 (arXiv 2403.17031), section 3. The first heads are the same however many there are.

        Raises:
            CapabilityError: transformers has no classifier of this family.
        """
        source: Any = model.module
        config = copy.deepcopy(source.config)
        # What others need to open and pool it; the end token is that of the chat template.
        config.num_labels, config.problem_type = heads, "regression"
        config.eos_token_id = end = _end_token(model)
        tokenizer, config.pad_token_id = _padded(model.tokenizer, getattr(config, "pad_token_id", None), end)
        try:
            with torch.device("meta"):  # no memory, no draws: the weights are put in below
                module = _auto.from_config(config)
        except ValueError as error:
            raise CapabilityError(
                f"transformers has no classifier for '{config.model_type}'",
                hint=_FAMILIES,
            ) from error
        trunk = copy.deepcopy(source.base_model)
        setattr(module, module.base_model_prefix, trunk)
        score, like = getattr(module, "score", None), next(trunk.parameters())
        if isinstance(score, nn.Linear):
            module.score = _head(score.in_features, heads, seed).to(like.device, like.dtype)
        if not isinstance(score, nn.Linear) or any(part.is_meta for part in module.parameters()):
            raise CapabilityError(
                f"the classifier that transformers has for '{config.model_type}' is not the trunk of its "
                "language model under a linear head named score",
                hint=_FAMILIES,
            )
        identity = module_identity(module, tokenizer, f"{model.identity.name} with {heads} scores")
        return cls(module, tokenizer, identity=identity.model_copy(update={"kind": "reward"}))

    @property
    def backbone(self) -> nn.Module:
        """The trunk, whose hidden states the head reads."""
        module: Any = self.module
        trunk: nn.Module = module.base_model
        return trunk

    @property
    def head(self) -> nn.Linear:
        """The linear layer from hidden states to scores."""
        module: Any = self.module
        head: nn.Linear = module.score
        return head

    @property
    def heads(self) -> int:
        """How many scores there are, K."""
        return self.head.out_features

    def ids(self, chats: Sequence[Chat], replies: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Ids of prompts and of replies, end token included: every reply is read as a finished one.

        The last id of a reply is where its score is read; see ``pooled``.

        Raises:
            InputError: a row longer than the context, a chat that the template refuses, lists of different
                length, or, where ``pooled``, a row of padding alone.
        """
        same_length(chats=chats, replies=replies)
        tokens = self.chat_tokens
        prompts = tokens.prompts([tokens.prompt_text(chat) for chat in chats])
        spelt = tokens.replies(replies, [tokens.opens(chat) for chat in chats])
        answers = [[*ids, *(tokens.behind if self.pooled else [tokens.end_id])] for ids in spelt]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if self.max_length is not None and len(prompt) + len(answer) > self.max_length:
                raise InputError(
                    f"row {row} has {len(prompt)} tokens of prompt and {len(answer)} of reply, but the "
                    f"reward model's context holds {self.max_length} in all",
                    hint="shorten the row or leave it out; nothing is cut silently",
                )
        if not self.pooled:
            return prompts, answers
        rows = [self._up_to_padding(p + a) for p, a in zip(prompts, answers, strict=True)]
        cuts = [(row, min(len(p), len(row) - 1)) for p, row in zip(prompts, rows, strict=True)]
        return [row[:n] for row, n in cuts], [row[n:] for row, n in cuts]

    def _up_to_padding(self, row: list[int]) -> list[int]:
        """The ids up to the last that is no padding: what stands behind it moves nothing before."""
        module: Any = self.module
        pad = module.config.get_text_config().pad_token_id
        last = max((i for i, token in enumerate(row) if token != pad), default=0)
        if last == 0:
            raise InputError(
                "a row holds one token, and padding: transformers would read no reply",
                hint="give the folder's config a pad_token_id of its own",
            )
        return row[: last + 1]

    def read(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> Tensor:
        """Scores (N, K) of replies as ids, at least float32, in one pass; gradients as the caller set them.

        Replies to the same prompt share a row where the model allows it: ``models/branches.py``.
        """
        groups, branches = _grouped(prompts, replies)
        packed = pack(branches, shared=not shares(self.module), device=self.device)
        hidden = last_states(self.backbone, packed)
        exact = hidden if hidden.dtype == torch.float64 else hidden.float()
        with torch.autocast(exact.device.type, enabled=False):  # differences of scores are small
            scores = exact @ self.head.weight.to(exact.dtype).T
            if self.head.bias is not None:
                scores = scores + self.head.bias
        order = torch.tensor([i for group in groups for i in group], device=scores.device)
        return scores[order.argsort()]

    def tokens(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> int:
        """Tokens that ``read`` passes through the trunk, padding included."""
        return padded_tokens(_grouped(prompts, replies)[1], shared=not shares(self.module))

    @torch.inference_mode()
    def read_all(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> Tensor:
        """The same for any number of replies, on the CPU and without gradients; equal rows are read once.

        Raises:
            NumericalError: a score is NaN or infinite.
        """
        rows = [(tuple(prompt), tuple(reply)) for prompt, reply in zip(prompts, replies, strict=True)]
        different = list(dict.fromkeys(rows))  # a tie must be a tie, whatever the last bits
        prefixes, answers = ([list(row[side]) for row in different] for side in (0, 1))
        scores = torch.zeros(len(different), self.heads)
        groups, apart = _groups(prefixes, answers), bool(shares(self.module))
        costs = [
            len(prefixes[group[0]]) * (len(group) if apart else 1) + sum(len(answers[i]) for i in group)
            for group in groups
        ]
        for some in buckets(costs, _CPU if self.device.type == "cpu" else self.token_budget):
            part = [i for number in some for i in groups[number]]
            values = self.read([prefixes[i] for i in part], [answers[i] for i in part])
            scores[torch.tensor(part)] = values.float().cpu()
        places = {row: number for number, row in enumerate(different)}
        scores = scores[torch.tensor([places[row] for row in rows], dtype=torch.int64)]
        odd = (~torch.isfinite(scores).all(1)).nonzero()
        if len(odd):
            row = int(odd[0])
            raise NumericalError(
                f"row {row}: the reward model's score is {scores[row].tolist()}",
                hint="load the model in float32, and check its weights",
            )
        return scores


def _groups(prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[list[int]]:
    """Numbers of replies that may share a row: the same prompt, and ``_ROW`` tokens at most."""
    groups: list[list[int]] = []
    opened: dict[tuple[int, ...], tuple[int, int]] = {}  # prompt -> its open group and the tokens in it
    for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        key = tuple(prompt)
        number, used = opened.get(key, (-1, _ROW))
        if used + len(reply) > _ROW:
            number, used = len(groups), len(prompt)
            groups.append([])
        groups[number].append(i)
        opened[key] = number, used + len(reply)
    return groups


def _grouped(prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> tuple[list[list[int]], Branches]:
    """The groups, and their ids."""
    groups = _groups(prompts, replies)
    return groups, Branches([prompts[g[0]] for g in groups], [[replies[i] for i in g] for g in groups])


def _head(inputs: int, heads: int, seed: int) -> nn.Linear:
    """A linear layer without bias, N(0, 1 / (inputs + 1)), drawn by its own generator."""
    layer = nn.Linear(inputs, heads, bias=False, device="meta").to_empty(device="cpu")
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(heads, inputs, generator=source) / (inputs + 1) ** 0.5)
    return layer


def _padded(tokenizer: Any, wanted: int | None, end: int) -> tuple[Any, int]:
    """The tokenizer (a copy, where it has to change) and id of a padding that is not the ``end`` token.

    What others pad with must not be the token that they look for. Where no special token is left, the
    tokenizer has none, so that padding with it is an error and not another score.
    """
    special = tokenizer.all_special_ids
    some = [tokenizer.pad_token_id, wanted, tokenizer.unk_token_id, tokenizer.bos_token_id, *special]
    pad = next((int(i) for i in some if i is not None and i != end), int(end == 0))
    if tokenizer.pad_token_id != pad:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad) if pad in special else None
    return tokenizer, pad


def _end_token(model: OpenLM) -> int:
    """The token that closes a reply of ``model``."""
    batch = model.encode([Chat.ask("a")], ["b"])
    return int(batch.ids[0][batch.mask[0]][-1])


def _load(path: str | Path, dtype: Dtype) -> tuple[nn.Module, Any]:
    """Module and tokenizer of a folder that holds scores."""
    folder = Path(path)
    module, tokenizer = load_folder(folder, dtype, _CLASSIFIER)
    config: Any = module.config
    labels, problem = config.num_labels, config.problem_type
    if labels != 1 and problem != "regression":
        raise InputError(
            f"'{folder}' has {labels} outputs that its config does not call scores, so they are classes",
            hint="a reward model has num_labels 1, or problem_type 'regression' where it has several heads",
        )
    return module, tokenizer
