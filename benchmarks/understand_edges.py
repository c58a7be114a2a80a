"""understand.edges and understand.circuit against TransformerLens 4.3.0: edge scores, and faithfulness.

GPT-2 with random weights, one pinned core, one thread, a process a side; the difference of two logits at the
last position.

- *scores*: EAP of all edges in its denoising form, 8 layers of 8 heads (6,637 edges), prompts of 24 tokens.
  Theirs are a number an edge and position, and are added up over positions before they are compared.
- *faithfulness*: circuits of 10 sizes, .1 % to 100 % of the edges by a random ranking, 4 layers of 4 heads,
  prompts of 12 tokens (at 24 tokens of the larger model one circuit of theirs takes over 10 seconds).
  Against its function ('helper'), which also gives the share without each class of edge, and against its
  inner step by hand ('hand'), one pass a circuit, which does as little as it can.

Ours looks for a model's graph once, before the clock starts.
"""

from __future__ import annotations

import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _race import Row, finish, is_quick, say
from _train_peer import Told, Worker, core, in_turn, peer_python, peer_version, versus
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand.circuit import SIZES

TOLERANCE = 1e-4
"""Most difference of a score, in logits, and of a share."""
VOCABULARY = 5000
WARM, ROUNDS = 1, 6
SAID = {
    ("scores", "helper"): "attribution_patch",
    ("faithfulness", "helper"): "faithfulness",
    ("faithfulness", "hand"): "inner step by hand",
}
"""How the results call what we race against."""


class Course(NamedTuple):
    """One race."""

    what: str
    """'scores' or 'faithfulness'."""
    pairs: int
    way: str
    """Of TransformerLens."""
    target: float
    """Ratio to reach; 0 where there is none."""


COURSES = (
    Course("scores", 1, "helper", 0.0),
    Course("scores", 4, "helper", 25.0),
    Course("faithfulness", 1, "helper", 20.0),
    Course("faithfulness", 1, "hand", 0.0),
    Course("faithfulness", 4, "hand", 20.0),
)


def save_model(folder: Path, layers: int, heads: int) -> Any:
    """A GPT-2 with random weights, large enough that an edge shows."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32 * heads, n_layer=layers, n_head=heads,
        initializer_range=0.06, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    model.eval()
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model


def pairs(count: int, length: int) -> dict[str, Any]:
    """Random prompts, the sixth token changed."""
    generator = torch.Generator().manual_seed(count)
    clean = torch.randint(2, VOCABULARY, (count, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 5] = (clean[:, 5] + 17) % VOCABULARY
    ids = torch.randint(2, VOCABULARY, (2, count), generator=generator).tolist()
    return {"clean": clean.tolist(), "corrupt": corrupt.tolist(), "answers": ids[0], "foils": ids[1]}


def apart(one: Any, other: Any) -> float:
    """The largest difference of two results."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), "the two graphs have different edges"
        return max(abs(float(one[name]) - float(other[name])) for name in one)
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())


def agree(name: str, ours: Told, theirs: Told, warm: bool) -> None:
    """Every score and every share; while scores are timed, only their sum is told."""
    for one, other in zip(ours["losses"], theirs["losses"], strict=True):
        most = apart(one, other)
        assert most <= TOLERANCE, f"{name}: results differ by {most:.1e}"
        if warm:
            say(f"  largest difference {most:.1e}")


def race(course: Course, folder: Path, quick: bool) -> Row:
    """Both in turn."""
    rounds, python = 1 if quick else ROUNDS, peer_python("transformer_lens")
    large = course.what == "scores"
    model = save_model(folder / "model", *((8, 8) if large else (4, 4)))
    job = {"model": str(folder / "model"), "warm": WARM, "rounds": rounds, "core": None if quick else core()}
    job |= pairs(course.pairs, 24 if large else 12) | {"way": course.way, "circuits": []}
    if not large:
        names = list(graph_of(model).names)
        random.Random(0).shuffle(names)
        job["circuits"] = [names[: int(size * len(names))] for size in SIZES]
    name = f"understand.{'edges, EAP' if large else 'circuit, 10 sizes'}, batch {course.pairs}"
    name += f", against TransformerLens's {SAID[course.what, course.way]}"
    say(name)
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(Path(sys.executable), "_worker_edges.py", job, folder / "ours"))
        peer = stack.enter_context(Worker(python, "_worker_transformer_lens_edges.py", job, folder / "peer"))
        start = [[ours.next()], [peer.next()]]
        agree(name, start[0][0], start[1][0], True)
        mine, theirs = in_turn(start, (ours, peer), rounds)
        for one, other in zip(mine[1:], theirs[1:], strict=True):
            agree(name, one, other, False)
    row = versus(name, mine, theirs, WARM + rounds, course.target)
    return row._replace(
        versions=row.versions | {"transformer-lens": peer_version("transformer_lens", "transformer-lens")}
    )


def main() -> None:
    """Run every race."""
    quick = is_quick(__doc__)
    courses = (COURSES[0], COURSES[3]) if quick else COURSES
    with tempfile.TemporaryDirectory() as temporary:
        finish([race(one, Path(temporary) / str(at), quick) for at, one in enumerate(courses)])


if __name__ == "__main__":
    main()
