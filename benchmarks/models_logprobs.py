"""OpenModel.logprobs against a plain loop: transformers' forward, log_softmax, gather.

Both start from chats and replies as text and end with Python floats for every token of every reply. The
peer runs twice:

- *default*: batches of 32 rows, right padding, in the order given;
- *best*: the quickest of several batch sizes, in the order given and sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from _race import Row, finish, is_quick, make_row, peak_bytes, quickest, race, say
from _tiny import chats, replies, tiny_model

from calibrant.core import Chat
from calibrant.models.open_model import OpenModel

COUNTS = (128, 400)
TOLERANCE = 1e-4
"""Most difference of a log-prob, in nats: float32 sums in another order."""


@torch.inference_mode()
def peer(
    model: OpenModel, asked: Sequence[Chat], said: Sequence[str], batch: int, by_length: bool
) -> list[list[float]]:
    """Log-probs of each reply's tokens and its end token, as most scripts compute them."""
    module: Any = model.module
    tokenizer = model.tokenizer
    turns = [[{"role": m.role, "content": m.content} for m in chat.messages] for chat in asked]
    texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    spelt = tokenizer(list(said), add_special_tokens=False)["input_ids"]
    answers = [[*ids, tokenizer.eos_token_id] for ids in spelt]
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if by_length else list(range(len(rows)))
    found: dict[int, list[float]] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        packed = tokenizer.pad(
            {"input_ids": [rows[i] for i in some]}, padding_side="right", return_tensors="pt"
        )
        logits = module(**packed, use_cache=False).logits[:, :-1]
        scores = torch.log_softmax(logits.float(), -1)
        picked = scores.gather(-1, packed["input_ids"][:, 1:, None]).squeeze(-1).tolist()
        for values, i in zip(picked, some, strict=True):
            first = len(prompts[i]) - 1
            found[i] = values[first : first + len(answers[i])]
    return [found[i] for i in range(len(rows))]


def gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Greatest difference of any log-prob, in nats; the replies must have equally many."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a - b) for mine, other in pairs for a, b in zip(mine, other, strict=True))


def compare(model: OpenModel, count: int, quick: bool) -> list[Row]:
    """The two rows of one number of replies."""
    asked, said = chats(model, count), replies(model, count)
    ours = partial(model.logprobs, asked, said)
    sizes = (8, 32) if quick else (4, 8, 16, 32, 64, 128)
    works = {
        f"batches of {size}, {'by length' if by_length else 'as given'}": partial(
            peer, model, asked, said, size, by_length
        )
        for size in sizes
        for by_length in (False, True)
    }
    scored = [item.logprobs for item in ours()]
    say(f"{count} replies, {sum(map(len, scored))} tokens")
    best = quickest(works, 1 if quick else 3)
    peak = peak_bytes(ours)
    rows = []
    for label, way in (("default", "batches of 32, as given"), ("best", best)):
        apart = gap(scored, works[way]())
        assert apart <= TOLERANCE, f"log-probs differ by {apart:.1e} nats ({way})"
        ratios = race(ours, works[way], 1 if quick else 25)
        memory = peak_bytes(works[way]) / peak
        name = f"models.logprobs, {count} replies, against a plain loop's {label} ({way})"
        rows.append(make_row(name, ratios, equal=True, memory_ratio=memory))
    return rows


def main() -> None:
    """Race both numbers of replies."""
    quick, model = is_quick(__doc__), tiny_model()
    finish([row for count in COUNTS for row in compare(model, count, quick)])


if __name__ == "__main__":
    main()
