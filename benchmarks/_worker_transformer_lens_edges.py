"""TransformerLens's edges as a worker: run by its own interpreter, reads a job, tells results and costs.

    .peers/transformer_lens/bin/python benchmarks/_worker_transformer_lens_edges.py JOB.json

The job: ``model`` (a folder), ``clean`` and ``corrupt`` (ids, a list a prompt), ``answers`` and ``foils``,
``circuits`` (names of the edges that each keeps; none: edges are scored), ``way`` ('helper' or 'hand'),
``warm`` and ``rounds``, ``core``. Its edges are of one position each; ours are of all, so a score is the sum
over positions, and a circuit keeps an edge at every position.
"""

from __future__ import annotations

from typing import Any

import torch
from _pace import Pace, read_job
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import attribution_patching as tl
from transformers import AutoTokenizer, GPT2LMHeadModel

LETTERS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def main() -> None:
    """Score or run as the job says."""
    job = read_job()
    pace = Pace(job["warm"], 1)
    loaded = GPT2LMHeadModel.from_pretrained(job["model"], attn_implementation="eager").eval()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])  # without one the library asks the hub
    model: Any = TransformerBridge.boot_transformers("gpt2", hf_model=loaded, tokenizer=tokenizer)
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    pairs = list(zip(job["answers"], job["foils"], strict=True))
    circuits = at_every_position(model, job["circuits"], clean.shape[1]) if job["circuits"] else []
    run = by_hand if job["way"] == "hand" else faithfulness
    for number in range(job["warm"] + job["rounds"]):
        if circuits:
            pace.step(run(model, clean, corrupt, pairs, circuits))
        else:
            found = scores(model, clean, corrupt, pairs)
            told: Any = summed(found) if number < job["warm"] else sum(found.values())
            pace.step(told)


def reading(answer: int, foil: int) -> Any:
    """The difference of two logits at the last position of one example."""
    return lambda logits: logits[0, -1, answer] - logits[0, -1, foil]


def scores(model: Any, clean: Any, corrupt: Any, pairs: Any) -> dict[Any, float]:
    """The library's own, over all pairs; each has a metric of its own, so pair by pair."""
    config = tl.EdgeAttributionConfig(granularity="edge")
    total: dict[Any, float] = {}
    for at, (answer, foil) in enumerate(pairs):
        here = slice(at, at + 1)
        found = tl.attribution_patch(model, clean[here], corrupt[here], reading(answer, foil), config)
        if len(pairs) == 1:
            total = dict(found.edge_scores)
            break
        for edge, score in found.edge_scores.items():
            total[edge] = total.get(edge, 0.0) + score / len(pairs)
    return total


def faithfulness(model: Any, clean: Any, corrupt: Any, pairs: Any, circuits: Any) -> Any:
    """The library's own, a pair and a circuit a call; it also gives the share without each class of edge."""
    return [
        [
            tl.faithfulness(
                model, clean[at : at + 1], corrupt[at : at + 1], reading(*pair), circuit
            ).recovered
            for at, pair in enumerate(pairs)
        ]
        for circuit in circuits
    ]


def by_hand(model: Any, clean: Any, corrupt: Any, pairs: Any, circuits: Any) -> Any:
    """Its best: its inner function by hand, one pass a circuit, what is shared between circuits made once."""
    found: list[list[float]] = [[] for _ in circuits]
    with torch.no_grad(), tl._edge_hook_flags(model):
        for at, pair in enumerate(pairs):
            one, other, read = clean[at : at + 1], corrupt[at : at + 1], reading(*pair)
            names = tl._edge_hook_names(int(model.cfg.n_layers))
            cache = tl.cache_activation_and_gradient(
                model, other, read, names_filter=names, compute_gradient=False
            )
            edges, writers = tl.enumerate_edges(model, cache), tl.capture_writer_outputs(model, other)
            low, high = float(cache.metric), float(read(model(one)))
            for values, circuit in zip(found, circuits, strict=True):
                logits = tl._ablate_edges(model, one, edges, circuit, writers)
                values.append((float(read(logits)) - low) / (high - low))
    return found


def name_of(edge: Any) -> str:
    """An edge of ours."""
    writer, reader = edge
    first = "input" if writer.kind == "embed" else f"m{writer.layer}"
    if writer.kind == "attn_head_out":
        first = f"a{writer.layer}.h{writer.head}"
    second = "logits" if reader.kind == "logits" else f"m{reader.layer}"
    if reader.kind in LETTERS:
        second = f"a{reader.layer}.h{reader.head}<{LETTERS[reader.kind]}>"
    return f"{first}->{second}"


def summed(found: dict[Any, float]) -> dict[str, float]:
    """Scores by our names."""
    total: dict[str, float] = {}
    for edge, score in found.items():
        total[name_of(edge)] = total.get(name_of(edge), 0.0) + score
    return total


def at_every_position(model: Any, circuits: Any, length: int) -> list[set[Any]]:
    """The library's edges of each circuit."""
    with torch.no_grad(), tl._edge_hook_flags(model):
        names = tl._edge_hook_names(int(model.cfg.n_layers))
        ids = torch.arange(length)[None] + 2
        cache = tl.cache_activation_and_gradient(
            model, ids, reading(0, 1), names_filter=names, compute_gradient=False
        )
        edges = tl.enumerate_edges(model, cache)
    kept = [set(names) for names in circuits]
    return [{edge for edge in edges if name_of(edge) in some} for some in kept]


if __name__ == "__main__":
    main()
