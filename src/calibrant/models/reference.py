"""Log-probs under a frozen reference policy: computed once, cached by model and example.

The cache lies in ``run.cache``, one SQLite file a model (its identity's digest), one row an example (the
digest of its prompt and reply ids, temperature and precision). So any order of rows, any number of epochs and
any later job with the same model finds it. Sums found there were made in another batch and may differ from
new ones in the last bit.
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate, chain, islice
from pathlib import Path

import torch
from torch import Tensor

from calibrant.core import InputError, NumericalError, OpenLM, Run
from calibrant.models.branches import Branches, pack, score, shares
from calibrant.models.generate import buckets

_CPU = 2048  # tokens in one pass on a CPU: larger batches leave its caches and are slower
_DEVICE = 16_384
_ASK = 500  # keys in one question to SQLite


def reference_sums(
    model: OpenLM, branches: Branches, run: Run, temperature: float = 1.0, bf16: bool = False
) -> Tensor:
    """Summed log-probs (M,) float32, in nats, of every reply under ``model``, in order; no gradients.

    ``bf16``: under bfloat16 autocast, as the policy that is compared with them learns.

    Raises:
        NumericalError: a sum is NaN or infinite.
        InputError: the cache cannot be read or written; it may be deleted.
    """
    how = f"{temperature!r} bf16" if bf16 else repr(temperature)
    keys = [_key(prompt, reply, how) for prompt, replies in zip(*branches, strict=True) for reply in replies]
    store = run.cache / "reference" / f"{model.identity.digest}.sqlite"
    sums = _read(store, keys)
    unread, missing = _missing(branches, keys, sums)
    if missing:
        fresh = branch_sums(model, unread, temperature, bf16).tolist()
        for key, value in zip(missing, fresh, strict=True):
            if value != value or abs(value) == float("inf"):
                raise NumericalError(
                    f"a log-prob under the reference '{model.identity.name}' is {value}",
                    hint="load the model in float32, and check its weights",
                )
            sums[key] = value
        _write(store, dict(zip(missing, fresh, strict=True)))
    return torch.tensor([sums[key] for key in keys])


@torch.inference_mode()
def branch_sums(
    model: OpenLM,
    branches: Branches,
    temperature: float = 1.0,
    bf16: bool = False,
    most: int | None = None,
) -> Tensor:
    """The same without a cache: (M,) on the CPU, in passes of a bounded number of tokens (or ``most``)."""
    device = next(model.module.parameters()).device
    shared = not shares(model.module)
    groups = [len(replies) for replies in branches.replies]
    firsts = [0, *accumulate(groups)]
    sums = torch.zeros(sum(groups))
    costs = [
        len(prompt) + sum(map(len, replies)) if shared else sum(len(prompt) + len(reply) for reply in replies)
        for prompt, replies in zip(*branches, strict=True)
    ]
    budget = _CPU if device.type == "cpu" else _DEVICE
    for rows in buckets(costs, budget if most is None else min(most, budget)):
        some = Branches([branches.prompts[i] for i in rows], [branches.replies[i] for i in rows])
        packed = pack(some, shared=shared, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            values = score(model.module, packed, temperature=temperature).sums()
        places = list(chain.from_iterable(range(firsts[i], firsts[i] + groups[i]) for i in rows))
        sums[torch.tensor(places)] = values.float().cpu()
    return sums


def _missing(branches: Branches, keys: Sequence[str], sums: dict[str, float]) -> tuple[Branches, list[str]]:
    """What still has to be read, prompts kept together, with its keys in order."""
    wanted: dict[str, None] = {}  # in order; a pair that occurs twice is read once
    left = Branches([], [])
    ahead = iter(keys)
    for prompt, group in zip(*branches, strict=True):
        fresh = {key: reply for key, reply in zip(islice(ahead, len(group)), group, strict=True)
                 if key not in sums and key not in wanted}  # fmt: skip
        if fresh:
            left.prompts.append(prompt)
            left.replies.append(list(fresh.values()))
            wanted |= dict.fromkeys(fresh)
    return left, list(wanted)


def _key(prompt: Sequence[int], reply: Sequence[int], how: str) -> str:
    ids = array("q", [len(prompt), *prompt, *reply])
    return hashlib.sha256(ids.tobytes() + how.encode()).hexdigest()


def _read(store: Path, keys: Sequence[str]) -> dict[str, float]:
    if not store.is_file():
        return {}
    sums: dict[str, float] = {}
    try:
        with closing(sqlite3.connect(store, timeout=60)) as base:
            for start in range(0, len(keys), _ASK):
                some = keys[start : start + _ASK]
                marks = ",".join("?" * len(some))
                sums.update(base.execute(f"select key, total from sums where key in ({marks})", some))
    except sqlite3.DatabaseError as error:
        raise InputError(f"{store}: {error}", hint="delete the file: it is a cache") from error
    return sums


def _write(store: Path, fresh: dict[str, float]) -> None:
    """All of them or none, safely beside other processes."""
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(store, timeout=60)) as base, base:
            base.execute("create table if not exists sums (key text primary key, total real not null)")
            base.executemany("insert or ignore into sums values (?, ?)", fresh.items())
    except sqlite3.DatabaseError as error:
        raise InputError(f"{store}: {error}", hint="free space, or delete the file: it is a cache") from error
