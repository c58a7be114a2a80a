"""Train the testbed's models from scratch, on dialogues of the base distribution.

    calibrant run rebuild_testbed            # all three sizes, about 40 minutes on 2 cores

The recipe was frozen before any attack or defence was tried on its models.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibrant.core import Frozen, Quiet, Result, Run, digest, point, technique
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.testbed.dialogues import draw, draw_long
from calibrant.testbed.tokens import CONTEXT, SPECIALS, build_tokenizer, tokenise

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 176, "num_attention_heads": 4},
    "base": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352, "num_attention_heads": 4},
    "strong": {
        "hidden_size": 192,
        "num_hidden_layers": 5,
        "intermediate_size": 512,
        "num_attention_heads": 6,
    },
}
"""Shapes of the three models: about 0.2, 0.8 and 2.2 million parameters."""


class Raise(Frozen):
    """The recipe of one model."""

    size: str = "base"
    """One of SIZES."""
    tokens: int = Field(default=18_000_000, ge=1)
    """Training tokens, about."""
    long_share: float = Field(default=0.12, ge=0, le=1)
    """Share of the tokens in dialogues of many turns (128 to 512 tokens)."""
    batch_tokens: int = Field(default=3072, ge=1)
    """Tokens in one step, padding included."""
    prompt_weight: float = Field(default=0.1, ge=0)
    """Loss weight of tokens that the assistant did not write."""
    fit: Fit = Fit(lr=3e-3, weight_decay=0.05, warmup=0.03)
    """The optimiser."""


class RaiseResult(Result):
    """Counts; the weights are the artefact 'model'."""


class Rows(NamedTuple):
    """Dialogues of one step: ids, and which of them the assistant wrote."""

    ids: list[list[int]]
    said: list[list[bool]]


@technique(version=1)
def raise_model(config: Raise = Raise(), run: Run = Quiet()) -> RaiseResult:
    """Train one testbed model from scratch; saves weights in bfloat16 with tokenizer as artefact 'model'."""
    tokenizer = build_tokenizer()
    module: Any = build_module(config.size, len(tokenizer), run.seed)
    batches = _batches(config, tokenizer, run.seed)

    def loss(part: list[int], whole: list[int]) -> Share:
        ids, weight = padded(batches[part[0]], config.prompt_weight)
        # Padding is on the right, so causal attention never reaches it and needs no mask.
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
        each = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        return Share((each * weight).sum() / weight.sum())

    costs = [sum(map(len, batch.ids)) for batch in batches]  # a "row" of the loop is a whole batch here
    plan = Plan([[i] for i in range(len(batches))], key=digest(config), costs=costs)
    fit(module, plan, loss, config.fit, run)
    folder = run.artifact("model")
    save_weights(module.to(torch.bfloat16), folder)
    tokenizer.save_pretrained(folder)
    total = sum(costs)
    return RaiseResult(
        metrics={
            "parameters": point(sum(p.numel() for p in module.parameters()), unit="parameters"),
            "training_tokens": point(total, unit="tokens"),
        },
        caveats=("a word-level model of a make-believe world: it shows mechanisms, not effect sizes",),
    )


def build_module(size: str, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of the given size with random weights, the same for the same seed."""
    shape: dict[str, Any] = dict(SIZES[size])
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<end>"),
        num_key_value_heads=shape["num_attention_heads"] // 2,
        attention_dropout=0.0,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _batches(config: Raise, tokenizer: PreTrainedTokenizerFast, seed: int) -> list[Rows]:
    """Dialogues of similar length together, batches in random order."""
    rng = random.Random(f"raise/{seed}")
    rows: list[tuple[list[int], list[bool]]] = []
    for share, long in ((1 - config.long_share, False), (config.long_share, True)):
        total, block = 0, min(256 if long else 4096, 1 + config.tokens // 64)
        while total < share * config.tokens:
            fresh = [draw_long(rng, rng.randrange(60, 260)) if long else draw(rng) for _ in range(block)]
            tokenised = tokenise(tokenizer, fresh)
            rows += [(ids[:512], said[:512]) for ids, said in tokenised]
            total += sum(len(ids) for ids, _ in tokenised)
    return bucketed(rows, config.batch_tokens, rng)


def bucketed(rows: list[tuple[list[int], list[bool]]], batch_tokens: int, rng: random.Random) -> list[Rows]:
    """Rows of similar length together, padded to at most ``batch_tokens``; the buckets in random order."""
    rng.shuffle(rows)
    rows.sort(key=lambda row: len(row[0]) // 4)
    batches: list[Rows] = []
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop - start + 1) * len(rows[stop][0]) <= batch_tokens:
            stop += 1
        batches.append(Rows(ids=[r[0] for r in rows[start:stop]], said=[r[1] for r in rows[start:stop]]))
        start = stop
    rng.shuffle(batches)
    return batches


def padded(rows: Rows, prompt_weight: float) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and, flat over (B * (T-1)), the weight of predicting each next token."""
    width = max(len(row) for row in rows.ids)
    pad = SPECIALS.index("<pad>")
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows.ids])
    weights = [[1.0 if s else prompt_weight for s in row] + [0.0] * (width - len(row)) for row in rows.said]
    return ids, torch.tensor(weights)[:, 1:].flatten()
