"""OpenModel.generate against transformers.generate: greedy, chats of mixed length, many replies end early.

Both start from chats and end with texts: template, tokenizer, model and decoding are all in the time. Ours
also hands back the log-probs of what it drew; the peer is not asked for them. The peer runs twice:

- *default*: left padding, every chat in one batch, in the order given;
- *best*: the quickest of several batch sizes, in the order given and sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from _race import Row, finish, is_quick, make_row, peak_bytes, quickest, race, say
from _tiny import chats, tiny_model

from calibrant.core import Chat, Sampling
from calibrant.models.open_model import OpenModel

TOKENS = 64
COUNTS = (128, 400)


@torch.inference_mode()
def peer(model: OpenModel, asked: Sequence[Chat], batch: int, by_length: bool) -> list[tuple[int, ...]]:
    """What transformers.generate says: ids with the stop token, in the order asked; decoded on the way."""
    module: Any = model.module
    turns = [[{"role": m.role, "content": m.content} for m in chat.messages] for chat in asked]
    texts = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if by_length else list(range(len(texts)))
    stops = set(module.generation_config.eos_token_id)
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        packed = model.tokenizer(
            [texts[i] for i in rows], return_tensors="pt", padding=True, padding_side="left",
            add_special_tokens=False, return_token_type_ids=False,
        )  # fmt: skip
        out = module.generate(**packed, do_sample=False, max_new_tokens=TOKENS)
        made = out[:, packed["input_ids"].shape[1] :]
        model.tokenizer.batch_decode(made, skip_special_tokens=True)
        found.update(zip(rows, (_until_stop(ids, stops) for ids in made.tolist()), strict=True))
    return [found[i] for i in range(len(texts))]


def _until_stop(ids: list[int], stops: set[int]) -> tuple[int, ...]:
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    return tuple(ids[:end])


def compare(model: OpenModel, count: int, quick: bool) -> list[Row]:
    """The two rows of one number of chats."""
    asked = chats(model, count)
    ours = partial(model.generate, asked, Sampling(max_tokens=TOKENS))
    sizes = (32, count) if quick else (16, 32, 64, 128, count)
    ways = {(size, by_length) for size in sizes for by_length in (False, True)}
    works = {
        f"batches of {size}, {'by length' if by_length else 'as given'}": partial(
            peer, model, asked, size, by_length
        )
        for size, by_length in sorted(ways)
    }
    default = f"batches of {count}, as given"
    said = [completion.ids for completion in ours()]
    lengths = sorted(len(ids or ()) for ids in said)
    say(f"{count} chats; reply tokens: median {lengths[count // 2]}, longest {lengths[-1]}")
    best = quickest(works, 1 if quick else 3)
    peak = peak_bytes(ours)
    rows = []
    for label, way in (("default", default), ("best", best)):
        assert works[way]() == said, f"transformers ({way}) and OpenModel.generate differ"
        ratios = race(ours, works[way], 1 if quick else 15)
        memory = peak_bytes(works[way]) / peak
        name = f"models.generate, {count} chats, against transformers' {label} ({way})"
        rows.append(make_row(name, ratios, equal=True, memory_ratio=memory))
    return rows


def main() -> None:
    """Race both numbers of chats."""
    quick, model = is_quick(__doc__), tiny_model()
    finish([row for count in COUNTS for row in compare(model, count, quick)])


if __name__ == "__main__":
    main()
