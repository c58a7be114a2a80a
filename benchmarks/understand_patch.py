"""understand.patch against TransformerLens 4.3.0 and nnsight 0.8.1: a sweep of the residual stream.

A GPT-2 with random weights, 8 layers of width 256, vocabulary 5,000, prompts of 24 tokens: 192 cells, layer
by position, one pinned core, one thread. Both sides patch the clean stream into the corrupted run and read
the difference of two logits at the last position; every cell must agree to 1e-3. TransformerLens runs in
three ways:

- *helper*: ``get_act_patch_resid_pre``, its own sweep: one whole forward pass a cell;
- *cells*: a loop over ``start_at_layer`` by hand, one pass a cell;
- *layers*: the same with all positions of a layer as rows of one pass, its best.

nnsight runs in two, both with logits of the last position only:

- *invokes*: all positions of a layer as invokes of one trace;
- *skips*: all positions of a layer as rows of one trace, the blocks below skipped, its best.

Ours runs its check (one cell in full, a pass an example) in every sweep, and that is in its time. The pairs
differ in their sixth token: ours does not run the cells before it, where both runs are the same. In *nothing
shared* they differ in the first.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from _race import Row, finish, is_quick, say
from _train_peer import Told, Worker, core, in_turn, peer_python, peer_version, versus
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.testbed.tokens import build_tokenizer

TOLERANCE = 1e-3
"""Most difference of a cell, in logits of a size of about 1: sums in another order."""
LENGTH, VOCABULARY = 24, 5000
TARGETS = {
    (1, "helper", 5): 10.0, (4, "helper", 5): 3.5, (1, "cells", 5): 2.0, (4, "cells", 5): 2.0,
    (1, "layers", 5): 0.0, (4, "layers", 5): 0.0, (1, "invokes", 5): 2.0, (4, "invokes", 5): 2.0,
    (1, "skips", 5): 2.0, (4, "skips", 5): 2.0, (1, "skips", 0): 0.0, (4, "skips", 0): 0.0,
}  # fmt: skip
"""(pairs in the batch, the peer's way, the token that differs) -> ratio to reach; 0 where there is none."""
NNSIGHT = ("invokes", "skips")
WARM, ROUNDS = 1, 8


def save_model(folder: Path) -> Path:
    """A GPT-2 with random weights, large enough that a patch shows."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=256, n_layer=8, n_head=8, initializer_range=0.06,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def pairs(count: int, changed: int) -> dict[str, Any]:
    """Random prompts, one token changed."""
    generator = torch.Generator().manual_seed(count)
    clean = torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)
    corrupt = clean.clone()
    corrupt[:, changed] = (clean[:, changed] + 17) % VOCABULARY
    ids = torch.randint(2, VOCABULARY, (2, count), generator=generator).tolist()
    return {"clean": clean.tolist(), "corrupt": corrupt.tolist(), "answers": ids[0], "foils": ids[1]}


def agree(name: str, ours: Told, theirs: Told) -> None:
    """Every cell of every sweep."""
    for one, other in zip(ours["losses"], theirs["losses"], strict=True):
        apart = float((torch.tensor(one) - torch.tensor(other)).abs().max())
        assert apart <= TOLERANCE, f"{name}: cells differ by {apart:.1e}"


def race(course: tuple[int, str, int], model: Path, folder: Path, quick: bool) -> Row:
    """Both in turn, sweep by sweep."""
    count, way, changed = course
    peer = "nnsight" if way in NNSIGHT else "transformer_lens"
    title, package = ("nnsight", "nnsight") if way in NNSIGHT else ("TransformerLens", "transformer-lens")
    rounds, python = 1 if quick else ROUNDS, peer_python(peer)
    job = {"model": str(model), "warm": WARM, "rounds": rounds, "core": None if quick else core()}
    job |= pairs(count, changed)
    name = f"understand.patch, residual stream, batch {count}, against {title}'s {way}"
    name += "" if changed else ", nothing shared"
    say(name)
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(Path(sys.executable), "_worker_patch.py", job, folder / "ours"))
        other = stack.enter_context(Worker(python, f"_worker_{peer}.py", job | {"way": way}, folder / "peer"))
        start = [[ours.next()], [other.next()]]
        agree(name, start[0][0], start[1][0])
        mine, theirs = in_turn(start, (ours, other), rounds)
        for one, two in zip(mine, theirs, strict=True):
            agree(name, one, two)
    row = versus(name, mine, theirs, WARM + rounds, TARGETS[course])
    return row._replace(versions=row.versions | {package: peer_version(peer, package)})


def main() -> None:
    """Race every batch and way."""
    quick = is_quick(__doc__)
    courses = [(1, "helper", 5), (1, "layers", 5), (1, "skips", 5)] if quick else list(TARGETS)
    with tempfile.TemporaryDirectory() as temporary:
        model = save_model(Path(temporary) / "model")
        finish([race(course, model, Path(temporary) / str(at), quick) for at, course in enumerate(courses)])


if __name__ == "__main__":
    main()
