"""Two models of one shape on the same texts: how their streams differ, whole and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core import CapabilityError, Chat, InputError, NumericalError, OpenLM, Run
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.hooks import captured, edited
from calibrant.models.model_facts import accepted
from calibrant.models.sites import places
from calibrant.understand._engine.patches import check_still

_ROWS = 16
_TOKENS = 4


class Part(NamedTuple):
    """Something that writes to the stream."""

    name: str
    """'embedding', 'layer_2/attn_out', 'layer_2/mlp_out'; 'layer_2' where its parts were not found."""
    site: str
    layer: int
    """-1 for the embedding."""


@dataclass(frozen=True)
class Differences:
    """The second model less the first, float32. S stages: embedding, then each layer; P parts that write."""

    parts: tuple[Part, ...]
    stages: tuple[str, ...]
    whole: Tensor
    """(N, S, D) of the stream, each in a run of its own: mean over a text's tokens."""
    local: Tensor
    """(N, P, D) of what each part writes when it is handed the first one's stream: mean over tokens."""
    sizes: Tensor
    """(N, P) length of the latter: root mean square over tokens."""
    tokens: Tensor
    """(M, P, D) of single tokens of the latter."""
    lengths: Tensor
    """(S,) mean length of the first model's stream."""

    @property
    def relative(self) -> Tensor:
        """(N, P) float64: sizes over the mean length of the stream behind the part's layer."""
        return self.sizes.double() / self.lengths[[part.layer + 1 for part in self.parts]]


def check_twins(base: OpenLM, other: OpenLM) -> None:
    """Refuse two models whose streams cannot be compared, or two that are one object.

    Raises:
        CapabilityError: another architecture, shape, precision, device or tokenizer, no stream, not causal,
            or in training mode.
    """
    one, two = base.module, other.module
    if one is two:
        raise InputError("both models are the same object", hint="open the model twice, or give another")
    _alike("architecture", type(one).__name__, type(two).__name__)
    shapes = [{name: tuple(p.shape) for name, p in m.state_dict().items()} for m in (one, two)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        _alike(f"shape of '{name}'", shapes[0].get(name, "none"), shapes[1].get(name, "none"))
    for what in ("dtype", "device"):
        _alike(what, *(getattr(next(module.parameters()), what) for module in (one, two)))
    words = [model.tokenizer.get_vocab() for model in (base, other)]
    if words[0] != words[1]:
        word = min(words[0].items() ^ words[1].items())[0]
        raise CapabilityError(
            f"the models have different tokenizers: {word!r} is not the same token for both", hint=_SAME
        )
    for model in (base, other):
        check_still(model.module)
        batching(model.module)  # raises where the model is not causal
        if not places(model.module):
            raise CapabilityError(
                f"no residual stream was found in '{model.identity.name}'",
                hint="take a model whose blocks add to a stream",
            )


_SAME = "compare a model with what was made of it: an edited or fine-tuned copy"


def _alike(what: str, one: object, two: object) -> None:
    if one != two:
        raise CapabilityError(f"the models differ in {what}: {one} and {two}", hint=_SAME)


def tokenised(base: OpenLM, other: OpenLM, chats: Sequence[Chat]) -> list[list[int]]:
    """Ids of each text.

    Raises:
        InputError: a text without a token, or longer than the context.
        CapabilityError: one that the two models write otherwise.
    """
    found = []
    for chat in chats:
        ids, same = base.prompt_ids(chat), other.prompt_ids(chat)
        if ids != same:
            raise CapabilityError(
                "the models write the same chat with different tokens",
                hint="give both one chat template: the text must be the same",
            )
        if not ids or (base.max_length is not None and len(ids) > base.max_length):
            raise InputError(
                f"a text has {len(ids)} tokens, the context holds {base.max_length}",
                hint="leave it out; nothing is cut silently",
            )
        found.append(ids)
    return found


def compare(base: OpenLM, other: OpenLM, texts: Sequence[Sequence[int]], run: Run) -> Differences:
    """Three passes for each text: the first model, the second, and the second on the first one's streams."""
    parts = _parts(base)
    layers = len(anatomy(base.module).blocks)
    whole, local, tokens, sizes = ([torch.empty(0)] * len(texts) for _ in range(4))
    lengths, by_length, done = list[Tensor](), dict[int, list[int]](), 0
    for place, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(place)
    for group in by_length.values():
        for start in range(0, len(group), _ROWS):
            some = group[start : start + _ROWS]
            run.spend(queries=3 * len(some))
            ids = torch.tensor([list(texts[i]) for i in some], device=next(base.module.parameters()).device)
            streams, apart, near = _three(base, other, ids, layers, parts)
            lengths.append(streams.norm(dim=-1).mean(-1))
            at = torch.linspace(0, ids.shape[1] - 1, _TOKENS).round().long()
            for row, place in enumerate(some):
                whole[place], local[place] = apart[row].mean(1), near[row].mean(1)
                sizes[place] = near[row].norm(dim=-1).square().mean(1).sqrt()
                tokens[place] = near[row][:, at].transpose(0, 1)
            done += len(some)
            run.progress(done, len(texts))
    return Differences(
        parts,
        ("embedding", *(f"layer_{i}" for i in range(layers))),
        torch.stack(whole),
        torch.stack(local),
        torch.stack(sizes),
        torch.cat(tokens),
        torch.cat(lengths).mean(0),
    )


def _parts(model: OpenLM) -> tuple[Part, ...]:
    """Attention and MLP of each block; the block where they were not found."""
    known = places(model.module)
    found = [Part("embedding", "blocks.0.hook_resid_pre", -1)]
    for i in range(len(anatomy(model.module).blocks)):
        two = [Part(f"layer_{i}/{part}", f"blocks.{i}.hook_{part}", i) for part in ("attn_out", "mlp_out")]
        one = Part(f"layer_{i}", f"blocks.{i}.hook_resid_post", i)
        found += two if all(part.site in known for part in two) else [one]
    return tuple(found)


def _three(
    base: OpenLM, other: OpenLM, ids: Tensor, layers: int, parts: Sequence[Part]
) -> tuple[Tensor, Tensor, Tensor]:
    """Streams (N, S, T, D) of the first model, and both differences, (N, S, T, D) and (N, P, T, D)."""
    stages = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(layers))]
    known, written = places(base.module), [part.site for part in parts]
    entries = [f"blocks.{i}.hook_resid_{at}" for i in range(layers) for at in ("pre", "mid")]
    entries = [site for site in entries if site in known]
    with torch.inference_mode():
        with captured(base.module, list(dict.fromkeys([*stages, *written, *entries]))) as first:
            _pass(base, ids)
        handed = {site: partial(_instead, first[site]) for site in entries}
        with captured(other.module, stages) as second:
            _pass(other, ids)
        # What a part writes is seen before it is replaced: hooks run in the order in which they came.
        with captured(other.module, written) as near, edited(other.module, handed):
            _pass(other, ids)
    streams = _stacked(first, stages)
    return streams, _stacked(second, stages) - streams, _stacked(near, written) - _stacked(first, written)


def _stacked(kept: Mapping[str, Tensor], sites: Sequence[str]) -> Tensor:
    """(N, S, T, D) float32."""
    found = torch.stack([kept[site].float().cpu() for site in sites], dim=1)
    if not found.isfinite().all():
        raise NumericalError("a stream is NaN or infinite", hint="load both models in float32")
    return found


def _instead(value: Tensor, own: Tensor) -> Tensor:
    return value.to(own)


def _pass(model: OpenLM, ids: Tensor) -> None:
    module = model.module
    module(
        input_ids=ids,
        **accepted(module, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=False),
    )
