"""understand.causal_trace against a loop as ROME describes it: one forward pass a cell, 11 rows each.

A GPT-2 with random weights, 8 layers of width 256, vocabulary 5,000, one prompt of 24 tokens whose subject is
tokens 1 to 3. The loop is ours, on the same transformers model with plain hooks, from the paper's description
(Meng et al. 2022, 2202.05262): a batch of the clean prompt and 10 with noise on the subject; at a cell, the
clean row's activation goes into the others; the answer's probability is averaged over the 10. Every effect
must agree to 1e-7 before the clock runs. CPU seconds in turn, one thread on one pinned core.

Ours has its own checks in its time, and leaves out the token before the subject, where nothing can change
(the loop's effects there must be 0).
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from _race import Row, finish, is_quick, make_row, race, say
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import Chat, Identity, Quiet
from calibrant.data.rows import Fact
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._facts import Asked
from calibrant.understand._trace_runs import Corruption, layers_of, restore

LAYERS, LENGTH, VOCABULARY, DRAWS = 8, 24, 5000, 10
SUBJECT = (1, 4)
TOLERANCE = 1e-7
"""Most difference of an effect on the probability."""
ROUNDS = 5
COURSES = {"resid_post": (1, "states"), "mlp_out": (2, "MLPs in a window of 2 layers")}
"""Site -> layers that are restored together, and what it is called."""
TARGET = 4.0


def build() -> OpenModel:
    """A GPT-2 with random weights, large enough that a state shows."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=256, n_layer=LAYERS, n_head=8, initializer_range=0.06,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return OpenModel(GPT2LMHeadModel(config), build_tokenizer(), identity=Identity(name="race", parts={}))


def draw(model: OpenModel) -> Asked:
    """Random tokens, and as the answer what the model says."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (1, LENGTH), generator=generator)
    with torch.inference_mode():
        answer = int(model.module(ids).logits[0, -1].argmax())
    row = Fact(id="race", prompt=Chat.ask("-"), subject="-", answer="-")
    return Asked(row, tuple(ids[0].tolist()), SUBJECT, answer, answer)


@torch.inference_mode()
def loop(model: OpenModel, one: Asked, noise: Tensor, site: str, width: int) -> Tensor:
    """(layers, tokens) effects on the answer's probability: a forward pass for each."""
    module: Any = model.module
    ids = torch.tensor([one.ids]).repeat(1 + len(noise), 1)

    def corrupt(_: Any, __: Any, output: Tensor) -> Tensor:
        output[1:, slice(*one.subject)] += noise
        return output

    def answered() -> float:
        logits: Tensor = module(ids, use_cache=False).logits
        return float(logits[1:, -1].softmax(-1)[:, one.answer].mean())

    handle = module.transformer.wte.register_forward_hook(corrupt)
    low, effects = answered(), torch.zeros(LAYERS, LENGTH)
    for layer in range(LAYERS):
        window = module.transformer.h[max(0, layer - width // 2) : layer + (width + 1) // 2]
        for token in range(LENGTH):

            def put(_: Any, __: Any, output: Any, token: int = token) -> Any:
                value = output[0] if isinstance(output, tuple) else output
                value[1:, token] = value[0, token]
                return output

            restored = window if site == "resid_post" else [block.mlp for block in window]
            handles = [part.register_forward_hook(put) for part in restored]
            effects[layer, token] = answered() - low
            for hook in handles:
                hook.remove()
    handle.remove()
    return effects


def course(model: OpenModel, one: Asked, site: str, quick: bool) -> Row:
    """One site: equality, then both in turn."""
    width, called = COURSES[site]
    how = Corruption(scale=0.18, draws=DRAWS, seed=0)
    noise = how.noise(one, 256)

    def ours() -> Tensor:
        found = restore(model, [one], how, layers_of(model, site), width, True, Quiet())
        return torch.tensor(found.effects[0]).view(LAYERS, LENGTH - SUBJECT[0])

    mine, theirs = ours(), loop(model, one, noise, site, width)
    apart = float((mine - theirs[:, SUBJECT[0] :]).abs().max())
    before = float(theirs[:, : SUBJECT[0]].abs().max())
    assert max(apart, before) <= TOLERANCE, f"{site}: effects differ by {apart:.1e}, {before:.1e}"
    say(f"{site}: effects up to {float(mine.abs().max()):.3f}, apart by {apart:.1e}")
    ratios = race(
        ours, lambda: loop(model, one, noise, site, width), 1 if quick else ROUNDS, time.process_time
    )
    name = f"understand.causal_trace, {called}, 8 layers by 24 tokens, against a pass a cell"
    return make_row(name, ratios, equal=True, target=TARGET)


def main() -> None:
    """Race every site."""
    quick = is_quick(__doc__)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    model = build()
    one = draw(model)
    finish([course(model, one, site, quick) for site in COURSES])


if __name__ == "__main__":
    main()
