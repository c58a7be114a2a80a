"""RelP less AtP on deep planted models, and on trained ones: how much nearer to exact patching.

    .venv/bin/python tools/relp_table.py              seven draws of each: minutes
    .venv/bin/python tools/relp_table.py --draws 4
    .venv/bin/python tools/relp_table.py --trained    trains seven GPT-2s of six blocks, a minute each

Every cell of a site is patched exactly. Agreement is Spearman's and Pearson's correlation, over cells, of
the estimated and the exact mean effect, at both ends. The table shows that of RelP (``pattern = "slope"``)
less that of AtP: its mean over draws, with a 95 % interval. Where the interval holds 0 it says 'no gain';
where all cells are alike, as MLPs that write nothing are, 'unknown'.

The models are ``testbed:plant/induction?negative=1`` (three blocks) and ``name_mover?backup=1`` (four). A
draw is other weights and other pairs. The trained ones (six blocks of width 64, as transformers initialises
them) learn to go on with repeated words; one that is right on fewer than .95 of new prompts is trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import Estimate, Identity, OpenLM, Quiet
from calibrant.data.rows import Contrasts
from calibrant.models.open_model import OpenModel
from calibrant.stats import mean
from calibrant.testbed import circuits, name_mover
from calibrant.understand._cells import HEADS, Cells, Site, cells_of
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import WAYS, Floats, both_ways, effects_of
from calibrant.understand._slopes import Method, estimated

SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "z", "k")
MEASURES = tuple(f"{name}, {way}" for name in ("Spearman", "Pearson") for way in WAYS)
PAIRS = 24
"""A draw."""
DEEP = ("induction?negative=1", "name_mover?backup=1")
"""Planted models of three blocks and of four."""


class Draw(NamedTuple):
    """A model, and the pairs that ask for what it does."""

    model: OpenLM
    contrasts: Contrasts


def agreement(guess: Floats, exact: Floats) -> dict[str, float]:
    """Measure -> correlation over cells; NaN where one side is the same for all.

    Args:
        guess, exact: (2, C) mean effects, denoising and noising.
    """
    found = {}
    for name, measure in (("Spearman", spearmanr), ("Pearson", pearsonr)):
        for side, way in enumerate(WAYS):
            varies = min(np.ptp(guess[side]), np.ptp(exact[side])) > 0
            found[f"{name}, {way}"] = float(measure(guess[side], exact[side])[0]) if varies else float("nan")
    return found


def gains(draw: Draw, site: Site) -> dict[str, float] | None:
    """Measure -> RelP's agreement less AtP's; None where the corruption does not change the answer."""
    pairs = encode(draw.model, draw.contrasts)
    where = Cells(site=site, positions="all" if site in HEADS else "each")
    cells = cells_of(draw.model, where, pairs.clean.shape[1])
    swept = both_ways(draw.model, pairs, [(cell.edit,) for cell in cells], Quiet())
    exact = effects_of(cells, pairs, *swept)
    if not exact.testable:
        return None
    methods: tuple[Method, Method] = ("relp", "atp")
    relp, atp = (
        agreement(
            estimated(draw.model, pairs, cells, site, method, False, Quiet()).values.mean(2),
            exact.values.mean(2),
        )
        for method in methods
    )
    return {measure: relp[measure] - atp[measure] for measure in MEASURES}


def said(values: Sequence[float]) -> str:
    """A cell of the table: gain, loss or no gain, with the mean over draws and its interval."""
    seen = [value for value in values if np.isfinite(value)]
    if len(seen) < 2:
        return f"unknown: {len(seen)} draws"
    one: Estimate = mean(seen, better="higher", unit="draw", bounds=(-2.0, 2.0))
    if one.low is None or one.high is None:
        return f"unknown: {one.reason}"
    shown = f"{one.value:+.2f} [{one.low:.2f}, {one.high:.2f}]"
    if one.low <= 0 <= one.high:
        return f"no gain: {shown}"
    return shown if one.low > 0 else f"a loss: {shown}"


def table(title: str, draws: Sequence[Draw]) -> Iterator[str]:
    """Lines of Markdown, each as soon as it is known."""
    yield f"\n{title}, {len(draws)} draws\n"
    yield f"| Site | {' | '.join(MEASURES)} | draws |"
    yield f"| {' | '.join('---' for _ in range(len(MEASURES) + 2))} |"
    for site in SITES:
        found = [one for draw in draws if (one := gains(draw, site)) is not None]
        cells = [said([one[measure] for one in found]) for measure in MEASURES]
        yield f"| `{site}` | {' | '.join(cells)} | {len(found)} |"


def planted(name: str, draws: int) -> list[Draw]:
    """One of ``DEEP``, drawn anew each time."""
    task, _, option = name.partition("?")
    module = {"induction": circuits, "name_mover": name_mover}[task]
    key, _, value = option.partition("=")
    return [
        Draw(
            module.open_plant(task, {key: value, "seed": str(seed)}),
            module.open_contrasts(task, {"n": str(PAIRS), "seed": str(seed)}),
        )
        for seed in range(draws)
    ]


def lesson(words: int, length: int, batch: int, way: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (B, L) and what comes next (B, L), -100 where nothing tells.

    Half are a list said over and over, of 3 to 9 words, so that no fixed distance helps; half end with one
    word of theirs, as the pairs do.
    """
    ids = torch.rand(batch, words, generator=way).argsort(1)[:, :length]
    half, at = batch // 2, torch.arange(length)
    period = torch.randint(3, 10, (half, 1), generator=way)
    ids[:half] = ids[:half].gather(1, at % period)
    after = torch.full_like(ids, -100)
    after[:half, :-1] = torch.where(at[1:] > period, ids[:half, 1:], -100)
    tail, rows = ids[half:], torch.arange(batch - half)
    place = torch.randint(0, length - 2, (batch - half,), generator=way)
    after[half:, -1] = tail[rows, place + 1]
    tail[:, -1] = tail[rows, place]
    return ids, after


def right(module: GPT2LMHeadModel, words: int, length: int, seed: int) -> float:
    """Share of 512 new prompts whose next word it says."""
    ids, after = lesson(words, length, 1024, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        said_last = module(ids[512:]).logits[:, -1].argmax(1)
    return float((said_last == after[512:, -1]).float().mean())


def learned(seed: int, words: int = circuits.WORDS, length: int = circuits.LENGTH) -> OpenModel:
    """A GPT-2 of six blocks that goes on with repeated words.

    Raises:
        RuntimeError: it has not learned after 6,000 steps.
    """
    torch.manual_seed(seed)
    tokens = circuits.tokenizer([f"w{word:02}" for word in range(words)])
    module = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokens), n_positions=16, n_embd=64, n_layer=6, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=words,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    way = torch.Generator().manual_seed(seed)
    for step in range(1, 6_001):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 100)
        ids, after = lesson(words, length, 64, way)
        loss = cross_entropy(module(ids).logits.flatten(0, 1), after.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 and (share := right(module, words, length, 10_000 + seed)) >= 0.95:
            sys.stderr.write(f"model {seed}: {step} steps, right on {share:.3f}\n")
            return OpenModel(module.train(False), tokens, identity=Identity(name=f"learned-{seed}", parts={}))
    raise RuntimeError(f"model {seed} has not learned to repeat")


def trained(draws: int) -> list[Draw]:
    """Models that learned, and pairs whose earlier word is corrupted."""
    return [
        Draw(learned(seed), circuits.open_contrasts("induction", {"n": str(PAIRS), "seed": str(seed)}))
        for seed in range(draws)
    ]


def told(lines: Iterator[str]) -> None:
    """Print lines, each as soon as it is known."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="RelP less AtP, agreement with exact patching")
    parser.add_argument("--draws", type=int, default=7, help="models of each kind; 2 or more")
    parser.add_argument("--trained", action="store_true", help="train small GPT-2s instead")
    asked = parser.parse_args(arguments)
    if asked.draws < 2:
        parser.error("an interval needs two draws")
    if asked.trained:
        told(table("GPT-2 of six blocks, trained to go on with repeated words", trained(asked.draws)))
        return
    for name in DEEP:
        told(table(f"testbed:plant/{name}", planted(name, asked.draws)))


if __name__ == "__main__":
    main(sys.argv[1:])
