"""Weights of hand-planted circuits in unmodified classes of transformers: GPT-2, Llama (GQA), NeoX.

A head is four maps from the stream to its coordinates: query, key, value, output. Each class lays them out in
its own way, scales its stream in its own way, and knows positions in its own way: GPT-2 adds vectors to the
stream; Llama and NeoX turn queries and keys, so that a head that looks one token back asks with a constant
vector that is turned by one step, and content lies where nothing turns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

HEADS, WIDTH, SLOTS = 6, 192, 16
"""Heads of a layer, width of the stream, tokens that fit."""
FORMS, MORE = ("usual", "longer"), 3
"""``?form=`` of the pairs of a task, and words that the longer form has more than the usual one."""
SHARP = 60.0
"""Score between what is attended to and all else, in nats, about."""
MAPS = ("query", "key", "value", "output")
"""Of a head."""
_NOISE = 0.3  # size of what a noise head writes, beside vectors of size 1
_SLOW = 0.3  # step of the second plane in which positions turn; the first one's is 1
_STEEP = 40.0  # of a neuron, so that its bend is sharp beside a quarter of what it reads
_PLANE = 64  # dimensions that features share in superposition


class Canvas(ABC):
    """A model whose heads are set one by one; every other weight is 0."""

    module: Any
    size: int
    """Coordinates of a head."""
    parts: int
    """Vectors that the stream holds at layer 0: they share its norm."""

    def __init__(self, words: Tensor, output: Tensor, positions: Tensor) -> None:
        """``words`` and ``output`` (V, W) are the embedding and the unembedding; ``positions`` (SLOTS, W)."""
        with torch.no_grad():
            for name, weight in self.module.named_parameters():
                if weight.ndim > 1 or name.endswith("bias"):
                    weight.zero_()
            self.module.get_input_embeddings().weight.copy_(words)
            self.module.get_output_embeddings().weight.copy_(output * 1.2)
        self.positions = positions
        self.always = words.sum(0)
        """(W,) reads 1 off every word."""

    def power(self, layer: int) -> float:
        """Square of ``scale``."""
        return WIDTH / (self.parts + min(layer, 1))

    def scale(self, layer: int) -> float:
        """What a vector of norm 1 in the stream is to a head of ``layer``, about."""
        return math.sqrt(self.power(layer))

    def rows(self, vectors: Tensor, start: int = 0) -> Tensor:
        """(size, W): a map from the stream to a head, one coordinate a vector, where nothing turns."""
        spread = torch.zeros(self.size, WIDTH)
        spread[self.still()[start : start + len(vectors)]] = vectors
        return spread

    def sharp(self, layer: int) -> float:
        """Factor of queries and of keys that gives a score of ``SHARP``."""
        return math.sqrt(SHARP * math.sqrt(self.size) / self.power(layer))

    def back(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """Query and key of a head that attends ``step`` tokens back."""
        query, key = torch.zeros(2, self.size, WIDTH)
        for (one, two), turn, strength in self.turning():
            amplitude = math.sqrt(strength * math.sqrt(self.size)) / self.scale(layer)
            query[one] = self.always * amplitude * math.cos(step * turn)
            query[two] = -self.always * amplitude * math.sin(step * turn)
            key[one] = self.always * amplitude
        return query, key

    def apart(self, tokens: Tensor, layer: int, strength: float) -> tuple[Tensor, Tensor]:
        """Query and key that keep a token which reads 1 along ``tokens`` (W,) from attending to itself.

        Its own score is -2 ``strength`` in nats; that of one ``d`` tokens back -(cos d + cos .3 d) times it.
        """
        query, key = torch.zeros(2, self.size, WIDTH)
        amplitude = math.sqrt(strength * math.sqrt(self.size)) / self.scale(layer)
        for (one, _), _, _ in self.turning():
            query[one], key[one] = -tokens * amplitude, tokens * amplitude
        return query, key

    def neurons(self, layer: int, reads: Tensor, writes: Tensor, always: Tensor, vectors: int) -> None:
        """Set neurons of an MLP: each adds ``writes`` (K, W) times relu of what ``reads`` (K, W) reads.

        ``always`` (W,) reads 1 where they work, and makes up for biases that a class does not have, so that
        a threshold is a part of ``reads``. The stream holds ``vectors`` of norm 1 there.
        """
        unit = math.sqrt(WIDTH / (vectors + self.parts - 1))
        with torch.no_grad():
            self._neurons(layer, reads * _STEEP / unit, writes / _STEEP, always / unit)

    @abstractmethod
    def _neurons(self, layer: int, reads: Tensor, writes: Tensor, always: Tensor) -> None: ...

    def still(self) -> Tensor:
        """Coordinates of a head that no position turns."""
        return torch.arange(self.size)

    def turning(self) -> list[tuple[tuple[int, int], float, float]]:
        """Planes of a head: its two coordinates, radians a token, strength of a score in it."""
        return []

    @abstractmethod
    def write(self, layer: int, head: int, maps: Mapping[str, Tensor]) -> None:
        """Set query, key, value and output (size, W) of a head; those that heads share are set together."""


class GPT2(Canvas):
    """Positions are vectors of the stream."""

    parts = 2

    def __init__(self, layers: int, words: Tensor, output: Tensor, positions: Tensor, inner: int = 8) -> None:
        config = GPT2Config(
            vocab_size=len(words), n_positions=SLOTS, n_embd=WIDTH, n_layer=layers, n_head=HEADS,
            n_inner=inner, tie_word_embeddings=False, bos_token_id=None, eos_token_id=len(words) - 1,
        )  # fmt: skip
        self.module, self.size = GPT2LMHeadModel(config), WIDTH // HEADS
        super().__init__(words, output, positions)
        with torch.no_grad():
            self.module.transformer.wpe.weight.copy_(positions)

    def power(self, layer: int) -> float:
        """See ``Canvas``: positions and words share the norm, at each layer about alike."""
        return WIDTH / self.parts

    def back(self, step: int, layer: int) -> tuple[Tensor, Tensor]:
        """See ``Canvas``: by the positions in the stream."""
        shift = torch.roll(torch.eye(SLOTS), -step, 0)  # a query at i wants the key of i - step
        sharp = self.sharp(layer)
        return self.rows(shift @ self.positions) * sharp, self.rows(self.positions) * sharp

    def apart(self, tokens: Tensor, layer: int, strength: float) -> tuple[Tensor, Tensor]:
        """See ``Canvas``: by the positions but the first, of any token; others have a score of 0."""
        sharp = math.sqrt(2 * strength / SHARP) * self.sharp(layer)
        near = self.rows(self.positions[1:], self.size - SLOTS + 1) * sharp
        return -near, near

    def _neurons(self, layer: int, reads: Tensor, writes: Tensor, always: Tensor) -> None:
        mlp = self.module.transformer.h[layer].mlp
        mlp.c_fc.weight[:, : len(reads)] = reads.T
        mlp.c_proj.weight[: len(reads)] = writes

    def write(self, layer: int, head: int, maps: Mapping[str, Tensor]) -> None:
        """See ``Canvas``."""
        with torch.no_grad():
            write(self.module.transformer.h[layer].attn, head, *(maps[name] for name in MAPS))


class Llama(Canvas):
    """Queries of two heads share keys and values; positions turn both."""

    size, parts, groups = 64, 1, 3

    def __init__(self, layers: int, words: Tensor, output: Tensor, positions: Tensor, inner: int = 8) -> None:
        config = LlamaConfig(
            vocab_size=len(words), max_position_embeddings=SLOTS, hidden_size=WIDTH, num_hidden_layers=layers,
            num_attention_heads=HEADS, num_key_value_heads=self.groups, head_dim=self.size,
            intermediate_size=inner,
            rope_parameters={"rope_type": "default", "rope_theta": _SLOW ** -(self.size / 2)},
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=len(words) - 1,
        )  # fmt: skip
        self.module = LlamaForCausalLM(config)
        super().__init__(words, output, positions)

    def still(self) -> Tensor:
        """See ``Canvas``."""
        half = torch.arange(6, self.size // 2)  # planes from the seventh on turn by less than .001
        return torch.cat([half, half + self.size // 2])

    def turning(self) -> list[tuple[tuple[int, int], float, float]]:
        """See ``Canvas``."""
        half = self.size // 2
        return [((0, half), 1.0, 2 * SHARP), ((1, 1 + half), _SLOW, SHARP)]

    def _neurons(self, layer: int, reads: Tensor, writes: Tensor, always: Tensor) -> None:
        mlp = self.module.model.layers[layer].mlp
        mlp.gate_proj.weight[: len(reads)] = reads
        mlp.up_proj.weight[: len(reads)] = always
        mlp.down_proj.weight[:, : len(reads)] = writes.T

    def write(self, layer: int, head: int, maps: Mapping[str, Tensor]) -> None:
        """See ``Canvas``."""
        attention = self.module.model.layers[layer].self_attn
        here, group = _slice(head, self.size), _slice(head * self.groups // HEADS, self.size)
        with torch.no_grad():
            attention.q_proj.weight[here] = maps["query"]
            attention.k_proj.weight[group] = maps["key"]
            attention.v_proj.weight[group] = maps["value"]
            attention.o_proj.weight[:, here] = maps["output"].T


class NeoX(Canvas):
    """Attention and MLP run side by side; positions turn the first coordinates of a head."""

    parts, turned = 1, 4

    def __init__(self, layers: int, words: Tensor, output: Tensor, positions: Tensor, inner: int = 8) -> None:
        self.size = WIDTH // HEADS
        config = GPTNeoXConfig(
            vocab_size=len(words), max_position_embeddings=SLOTS, hidden_size=WIDTH, num_hidden_layers=layers,
            num_attention_heads=HEADS, intermediate_size=inner,
            rope_parameters={
                "rope_type": "default", "rope_theta": _SLOW**-2,
                "partial_rotary_factor": self.turned / self.size,
            },
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=len(words) - 1,
        )  # fmt: skip
        self.module = GPTNeoXForCausalLM(config)
        super().__init__(words, output, positions)

    def still(self) -> Tensor:
        """See ``Canvas``."""
        return torch.arange(self.turned, self.size)

    def turning(self) -> list[tuple[tuple[int, int], float, float]]:
        """See ``Canvas``."""
        return [((0, 2), 1.0, 2 * SHARP), ((1, 3), _SLOW, SHARP)]

    def _neurons(self, layer: int, reads: Tensor, writes: Tensor, always: Tensor) -> None:
        mlp = self.module.gpt_neox.layers[layer].mlp
        mlp.dense_h_to_4h.weight[: len(reads)] = reads
        mlp.dense_4h_to_h.weight[:, : len(reads)] = writes.T

    def write(self, layer: int, head: int, maps: Mapping[str, Tensor]) -> None:
        """See ``Canvas``."""
        attention = self.module.gpt_neox.layers[layer].attention
        start = 3 * head * self.size
        with torch.no_grad():
            for number, part in enumerate(("query", "key", "value")):
                at = start + number * self.size
                attention.query_key_value.weight[at : at + self.size] = maps[part]
            attention.dense.weight[:, _slice(head, self.size)] = maps["output"].T


CANVASES: Mapping[str, Callable[..., Canvas]] = {
    "gpt2": GPT2,
    "llama": Llama,
    "neox": NeoX,
}
"""Name of a class -> its canvas, of layers, words, outputs and positions; ``inner`` neurons a layer."""


def basis(count: int, generator: torch.Generator) -> Tensor:
    """(count, WIDTH) orthonormal vectors of mean 0, in random directions."""
    draws = torch.randn(WIDTH, count, generator=generator, dtype=torch.float64)
    vectors: Tensor = torch.linalg.qr(draws - draws.mean(0)).Q.T.float()
    return vectors


def superposed(count: int, others: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, WIDTH) unit vectors of mean 0 in 64 random dimensions, and (others, WIDTH) outside of those.

    Up to 128 share the 64: two orthonormal bases that are unbiased to each other, one turned by a Hadamard
    matrix. Any two overlap by 0 or 1/8, about the least possible for so many. Which is which is random.

    Raises:
        ValueError: more than 128.
    """
    if count > 2 * _PLANE:
        raise ValueError(f"{count} vectors, there are {2 * _PLANE}")
    turned = torch.ones(1, 1)
    while len(turned) < _PLANE:
        turned = torch.cat([torch.cat([turned, turned], 1), torch.cat([turned, -turned], 1)])
    plane, outside = torch.split(basis(_PLANE + others, generator), [_PLANE, others])
    both = torch.cat([plane, (turned / math.sqrt(_PLANE)) @ plane])
    return both[torch.randperm(len(both), generator=generator)[:count]], outside


def rows(vectors: Tensor, size: int) -> Tensor:
    """(size, WIDTH): a map from the stream to a head that has one coordinate a vector."""
    return torch.cat([vectors, torch.zeros(size - len(vectors), WIDTH)])


def noise(size: int, generator: torch.Generator) -> list[Tensor]:
    """Queries, keys, values and outputs of a head that means nothing, of mean 0 in the stream."""
    maps = [torch.randn(size, WIDTH, generator=generator) / math.sqrt(WIDTH) for _ in MAPS]
    maps[3] = (maps[3] - maps[3].mean(1, keepdim=True)) * _NOISE / math.sqrt(size)
    return maps


def write(attention: Any, head: int, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Set a head's maps (size, WIDTH) in GPT-2's joint matrices."""
    size = WIDTH // HEADS
    here = _slice(head, size)
    for number, part in enumerate((query, key, value)):
        attention.c_attn.weight[:, _slice(number * HEADS + head, size)] = part.T
    attention.c_proj.weight[here] = output


def _slice(number: int, size: int) -> slice:
    return slice(number * size, (number + 1) * size)


def random_weights(module: nn.Module, seed: int) -> None:
    """Draw every matrix anew, as an untrained model has it: normal, of standard deviation .02."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)


def permuted_weights(module: nn.Module, seed: int) -> None:
    """Put the numbers of every matrix in another order: the same sizes, nothing that means anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                order = torch.randperm(weight.numel(), generator=generator)
                weight.copy_(weight.flatten()[order].view_as(weight))
