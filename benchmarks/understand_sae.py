"""A training step of a TopK autoencoder against SAELens 6.54.12 and sparsify 1.3.3.

512 dimensions, 8,192 features, k = 32, batches of 1,024 rows, float32, one pinned core, one thread. All start
from the same weights and rows. Losses must agree: of every step where the algorithm is the same; of the first
step, before any update, against SAELens's default, which rescales activations by the decoder's norms.

- SAELens's *default*: dense activations, rescaled by norm;
- SAELens's *best*: ``use_sparse_activations=True``, ``rescale_acts_by_decoder_norm=False``;
- *sparsify*: its fused encoder; decoder rows keep norm 1, as ours do then.

Each takes Adam as its trainer makes it: PyTorch's default for them, the fused one for us. That is in the
ratio; two more rows, without a target, give the peers the fused one, too.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _race import Row, finish, is_quick, say
from _train_peer import Told, Worker, core, in_turn, peer_python, peer_version, versus
from safetensors.torch import save_file

WIDTH, FEATURES, K, BATCH = 512, 8192, 32, 1024
WARM, ROUNDS = 2, 15
TOLERANCE = 1e-4
"""Most relative difference of two losses: sums in another order."""


class Peer(NamedTuple):
    """One way to train the same."""

    title: str
    package: str
    worker: str
    options: dict[str, Any]
    target: float
    unit: bool
    same: bool
    """Whether its updates are ours, so that every loss must agree."""
    fused: bool = False
    """Whether it is given the fused Adam."""


PEERS = {
    "default": Peer("SAELens's default", "sae-lens", "saelens", {}, 3.0, True, False),
    "best": Peer(
        "SAELens's best", "sae-lens", "saelens",
        {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}, 2.0, False, True,
    ),
    "sparsify": Peer("sparsify", "eai-sparsify", "sparsify", {}, 1.0, True, True),
}  # fmt: skip
PEERS |= {
    f"{name}, fused": PEERS[name]._replace(
        title=f"{PEERS[name].title} with the fused Adam", target=0.0, fused=True
    )
    for name in ("best", "sparsify")
}


def save_start(folder: Path) -> dict[str, str]:
    """Weights with decoder rows of norm 1, and rows with a little structure."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(FEATURES, WIDTH, generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    start = {
        "encoder": decoder.clone(), "decoder": decoder, "bias": torch.zeros(FEATURES),
        "decoder_bias": torch.zeros(WIDTH),
    }  # fmt: skip
    mixed = torch.randn(8, BATCH, 24, generator=generator).abs()
    picks = torch.randint(0, FEATURES, (8, BATCH, 24), generator=generator)
    rows = torch.einsum("sbk,sbkd->sbd", mixed, decoder[picks])
    save_file(start, folder / "start.safetensors")
    save_file({"rows": rows.contiguous()}, folder / "rows.safetensors")
    return {"weights": str(folder / "start.safetensors"), "rows": str(folder / "rows.safetensors")}


def agree(name: str, ours: Told, theirs: Told, first_only: bool) -> None:
    """Losses, step by step."""
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    for one, other in pairs[:1] if first_only else pairs:
        assert abs(one - other) <= TOLERANCE * abs(other), f"{name}: losses differ: {pairs}"


def race(peer: Peer, files: dict[str, str], folder: Path, quick: bool) -> Row:
    """Both in turn, step by step."""
    rounds, python = 3 if quick else ROUNDS, peer_python(peer.worker)
    job: dict[str, Any] = files | {
        "k": K, "lr": 1e-4, "warm": WARM, "rounds": rounds, "core": None if quick else core(),
        "unit": peer.unit, "options": peer.options, "fused": peer.fused,
    }  # fmt: skip
    name = f"understand.sae, a TopK step, against {peer.title}"
    say(name)
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(Path(sys.executable), "_worker_sae.py", job, folder / "ours"))
        theirs = stack.enter_context(Worker(python, f"_worker_{peer.worker}.py", job, folder / "peer"))
        start = [[ours.next()], [theirs.next()]]
        agree(name, start[0][0], start[1][0], not peer.same)
        mine, others = in_turn(start, (ours, theirs), rounds)
        if peer.same:
            for one, other in zip(mine, others, strict=True):
                agree(name, one, other, False)
    row = versus(name, mine, others, WARM + rounds, peer.target)
    return row._replace(versions=row.versions | {peer.package: peer_version(peer.worker, peer.package)})


def main() -> None:
    """Race every peer."""
    quick = is_quick(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = save_start(Path(temporary))
        finish([race(peer, files, Path(temporary) / name, quick) for name, peer in PEERS.items()])


if __name__ == "__main__":
    main()
