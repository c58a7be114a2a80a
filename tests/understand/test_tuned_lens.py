"""The tuned lens undoes a planted change of basis; where a layer says nothing, neither does the lens."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import CapabilityError, Chat, Identity, InputError, NumericalError, Quiet
from calibrant.data.rows import Item, Items, Prompt, Prompts
from calibrant.models.loading import module_identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.circuit_weights import HEADS, WIDTH, basis, rows, write
from calibrant.testbed.circuits import tokenizer
from calibrant.understand._translators import Translators, read_translators
from calibrant.understand.lens import Lens, lens
from calibrant.understand.tuned_lens import TunedLens, tuned_lens

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

WORDS = [f"w{number:02d}" for number in range(24)]
LENGTH, SIZE = 10, WIDTH // HEADS
SHORT = TunedLens(steps=60, positions=8, lr=1e-2)


def texts(n=80, seed=0, first=""):
    rng = random.Random(seed)
    return Prompts(
        rows=tuple(
            Prompt(
                id=str(i), prompt=Chat.ask(first + " ".join(rng.choices(WORDS[1:], k=rng.randint(6, LENGTH))))
            )
            for i in range(n)
        )
    )


def plant(seed=0, reads="here", loud=0.0):
    """A GPT-2 of two layers whose second attends to one place with every head, and moves what it reads there.

    ``here``: the place is the token itself, and the move is a rotation R of the stream: x + (R - I) x. The
    unembedding reads the rotated basis, so nothing but the basis lies between the layers. ``before``: it is
    the token before (w00 says nothing), so that the first layer knows nothing of what comes next. ``loud``:
    the second layer also adds a vector of this size that the unembedding does not read.
    """
    generator = torch.Generator().manual_seed(seed)
    config = GPT2Config(
        vocab_size=25, n_positions=LENGTH + 2, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=24,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    whole = basis(WIDTH - 1, generator)
    word, position, output = torch.split(whole[:62], [25, LENGTH + 2, 25])
    turned = torch.linalg.qr(torch.randn(WIDTH - 1, WIDTH - 1, generator=generator)).Q
    rotation = whole.T @ turned @ whole  # of the vectors with mean 0
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        module.transformer.wte.weight.copy_(word)
        module.transformer.wpe.weight.copy_(position)
        unit = math.sqrt(WIDTH / 2)
        move = (rotation - whole.T @ whole).T if reads == "here" else word[1:].T @ output[1:]
        sharp = math.sqrt(60 * math.sqrt(SIZE)) / unit
        shift = torch.roll(
            torch.eye(LENGTH + 2), -1 if reads == "before" else 0, 0
        )  # i wants the key of i - 1
        for head in range(HEADS):
            part = slice(head * SIZE, (head + 1) * SIZE)
            write(
                module.transformer.h[1].attn, head, rows(shift @ position, SIZE) * sharp,
                rows(position, SIZE) * sharp, torch.eye(WIDTH)[part], move[part] / unit,
            )  # fmt: skip
        if loud:
            module.transformer.h[1].mlp.c_proj.bias.copy_(loud * whole[70])
        read = word @ rotation.T if reads == "here" else output
        module.lm_head.weight.copy_(torch.roll(read, 1, 0) * 1.2)
    return OpenModel(module, tokenizer(WORDS), identity=Identity(name="rotated", parts={"seed": str(seed)}))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_change_of_basis_is_undone(seed):
    """The words of the texts are not held out, their order is; the logit lens reads the wrong basis."""
    found = tuned_lens(plant(seed), texts(), SHORT, Quiet(seed=seed)).metrics
    assert found["plain/top1_agreement/layer_0"].high < 0.3 and found["plain/kl_to_final/layer_0"].low > 1
    assert found["tuned/top1_agreement/layer_0"].value > 0.95
    assert found["tuned/kl_to_final/layer_0"].high < 0.1 * found["plain/kl_to_final/layer_0"].low
    assert found["gain"].low > 1 and found["beyond_control/layer_0"].low > 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_nothing_is_read_where_a_layer_says_nothing(seed):
    """What comes next hangs on the word before alone, which the first layer does not have: the lens is no
    better than its control. (The first token, which has none before it, is always w00.)"""
    found = tuned_lens(plant(seed, "before"), texts(240, seed, "w00 "), SHORT, Quiet(seed=seed)).metrics
    beyond = found["beyond_control/layer_0"]
    assert beyond.low < 0.02 and beyond.value < 0.1
    assert found["tuned/top1_agreement/layer_0"].value < 0.3


def test_each_layer_is_read_with_its_own_scale():
    """Holds against TransformerLens#1076: a lens that took the final norm's scale from the last layer read
    layer 0 as noise. Here the last is 100 times as long as the first, in a direction that says nothing.
    """
    model = plant(loud=100.0)
    weight = model.module.lm_head.weight
    word = model.module.transformer.wte.weight
    weight.data.copy_(1.2 * torch.roll(word, 1, 0))  # read layer 0 in its own basis
    answer = "w04"
    items = Items(rows=(Item(id="a", chat=Chat.ask("w07 w03"), answer=answer),) * 1)
    found = lens(model, items, Lens(positions="first"), Quiet()).metrics["answer_probability/layer_0"].value
    batch = model.encode([items.rows[0].chat])
    names = [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    with torch.no_grad():
        first, last = (model.trace(batch, names)[name][0, -1] for name in names)
        own = (first - first.mean()) / first.std(correction=0)
        borrowed = (first - first.mean()) / last.std(correction=0)
        told = [float((weight @ state).softmax(-1)[4]) for state in (own, borrowed)]
    assert told[0] > 0.99 and told[1] < 0.1
    assert found == pytest.approx(told[0], abs=1e-4)
    site = "blocks.0.hook_resid_post"
    untrained = Translators.identity([site], WIDTH, torch.device("cpu")).logits(model, site, first[None])
    assert float(untrained.detach().softmax(-1)[0, 4]) == pytest.approx(told[0], abs=1e-4)


def test_an_untrained_lens_is_the_logit_lens():
    found = tuned_lens(build("llama"), letters(), TunedLens(steps=1, lr=1e-12), Quiet()).metrics
    for key in ("kl_to_final", "ce", "bias", "top1_agreement"):
        assert found[f"tuned/{key}/layer_0"].value == pytest.approx(
            found[f"plain/{key}/layer_0"].value, abs=1e-5
        )


def letters(n=24):
    rng = random.Random(1)
    return Prompts(
        rows=tuple(
            Prompt(id=str(i), prompt=Chat.ask("".join(rng.choices("abcdefgh", k=12)))) for i in range(n)
        )
    )


def slow_values(model, stream, final, follows, matrix, bias):
    """KL, cross-entropy and bias of one position, in float64 Python numbers."""
    moved = stream + matrix @ stream + bias
    with torch.no_grad():
        here = model.unembed(moved[None, None].float())[0, 0].double().log_softmax(-1).tolist()
    final = final.double().log_softmax(-1).tolist()
    kl = math.fsum(math.exp(p) * (p - q) for p, q in zip(final, here, strict=True))
    return kl, -here[follows], here[follows] - final[follows]


@pytest.mark.parametrize(
    "name",
    [
        "gemma2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "llama", "olmo2", "opt", "cohere")),
    ],
)
def test_values_are_those_of_a_slow_reading(name, tmp_path):
    """Every position of every held-out text, one at a time, with the stored maps."""
    model, table = build(name), letters()
    config = TunedLens(steps=20, positions=64, held_out=0.25, batch=8)
    found = tuned_lens(model, table, config, Quiet(seed=2, work=tmp_path)).metrics
    stored = read_translators(tmp_path / "artifacts" / "tuned_lens")
    site = "blocks.0.hook_resid_post"
    matrix, bias = (one.double() for one in stored.maps[site])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).tolist()
    sums = []
    for at in order[:6]:
        batch = model.encode([table.rows[at].prompt])
        with torch.no_grad():
            stream = model.trace(batch, [site])[site][0].double()
            logits = model.forward(batch)[0]
        ids = batch.ids[0].tolist()
        values = [
            slow_values(model, stream[t], logits[t], ids[t + 1], matrix, bias) for t in range(len(ids) - 1)
        ]
        sums.append([math.fsum(column) / len(column) for column in zip(*values, strict=True)])
    for number, key in enumerate(("kl_to_final", "ce", "bias")):
        expected = math.fsum(row[number] for row in sums) / 6
        assert found[f"tuned/{key}/layer_0"].value == pytest.approx(expected, abs=2e-4)
    assert found["gain/layer_0"].value > 0


def test_the_stored_lens_reads_as_it_did_and_names_its_model(tmp_path):
    model = build("llama")
    tuned_lens(model, letters(), TunedLens(steps=3), Quiet(work=tmp_path))
    folder = tmp_path / "artifacts" / "tuned_lens"
    about = json.loads((folder / "config.json").read_text())
    assert about["model"] == model.identity.digest and about["sites"] == ["blocks.0.hook_resid_post"]
    assert set(load_file(folder / "params.safetensors")) == {
        f"blocks.0.hook_resid_post.{name}" for name in ("weight", "bias")
    }


def test_the_librarys_own_folder_is_read(tmp_path):
    """Its map number i reads what enters block i; nothing in the file is run."""
    state = {f"{i}.{name}": torch.full(shape, i + 1.0) for i in (0, 1) for name, shape in
             (("weight", (32, 32)), ("bias", (32,)))}  # fmt: skip
    torch.save(state, tmp_path / "params.pt")
    found = read_translators(tmp_path)
    assert list(found.maps) == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]
    assert found.maps["blocks.0.hook_resid_post"][0].unique().tolist() == [2.0]
    model, hidden = build("llama"), torch.randn(1, 3, 32)
    moved = hidden + hidden @ torch.full((32, 32), 2.0) + 2.0
    torch.testing.assert_close(found.logits(model, "blocks.0.hook_resid_post", hidden), model.unembed(moved))
    with pytest.raises(InputError, match="no map for"):
        found.logits(model, "blocks.7.hook_resid_post", hidden)
    with pytest.raises(InputError, match="32 wide"):
        found.logits(model, "blocks.0.hook_resid_post", torch.randn(1, 3, 16))


class _Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("what", ["nothing", "code", "words", "shapes", "nan"])
def test_what_is_no_lens_is_refused(tmp_path, what, capsys):
    if what == "code":
        torch.save({"0.weight": _Evil()}, tmp_path / "params.pt")
    elif what == "words":
        (tmp_path / "params.safetensors").write_text("hello")
    elif what == "shapes":
        torch.save({"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(3)}, tmp_path / "params.pt")
    elif what == "nan":
        torch.save(
            {"0.weight": torch.full((3, 3), torch.nan), "0.bias": torch.zeros(3)}, tmp_path / "params.pt"
        )
    with pytest.raises(InputError, match=r"holds n|not square"):
        read_translators(tmp_path)
    assert "run" not in capsys.readouterr().out


def test_the_model_is_left_as_it_was():
    model = build("gpt2")
    before = module_identity(model.module, model.tokenizer, "").digest
    with torch.inference_mode():
        inside = tuned_lens(model, letters(), TunedLens(steps=3), Quiet()).metrics
    outside = tuned_lens(model, letters(), TunedLens(steps=3), Quiet()).metrics
    assert inside["tuned/kl_to_final/layer_0"].value == pytest.approx(
        outside["tuned/kl_to_final/layer_0"].value
    )
    assert module_identity(model.module, model.tokenizer, "").digest == before
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_a_copy_is_on_one_side_only():
    table = letters(8)
    twice = Prompts(rows=(*table.rows, *(row.model_copy(update={"id": f"{row.id}b"}) for row in table.rows)))
    one, two = (tuned_lens(build("llama"), t, TunedLens(steps=2), Quiet()) for t in (table, twice))
    assert one.metrics == two.metrics and "8 of 16 texts left out" in two.caveats[-1]


def test_without_a_control():
    metrics = tuned_lens(build("llama"), letters(), TunedLens(steps=2, control=False), Quiet()).metrics
    assert "gain" in metrics and not any("control" in name for name in metrics)


def test_half_precision():
    model = build("llama")
    model.module.bfloat16()
    assert tuned_lens(model, letters(), TunedLens(steps=5), Quiet()).metrics["gain"].value is not None


@pytest.mark.parametrize("rows_", [0, 3])
def test_too_few_texts(rows_):
    with pytest.raises(InputError, match="four distinct texts of two tokens or more, got"):
        tuned_lens(build("llama"), Prompts(rows=letters().rows[:rows_]), SHORT, Quiet())


def test_one_layer_and_a_model_without_numbers_are_refused():
    with pytest.raises(CapabilityError, match="it has 1 blocks"):
        tuned_lens(build("llama", num_hidden_layers=1), letters(), SHORT, Quiet())
    model = build("llama")
    model.module.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises((NumericalError, CapabilityError), match=r"no numbers|does not give its own logits"):
        tuned_lens(model, letters(), SHORT, Quiet())


def test_training_mode_is_refused():
    model = build("llama")
    model.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        tuned_lens(model, letters(), SHORT, Quiet())
