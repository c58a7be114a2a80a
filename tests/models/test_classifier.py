"""Classifier: scores as of a plain loop, wherever padding stands; folders in and out; what is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from calibrant.core import CapabilityError, Chat, InputError, NumericalError
from calibrant.models.classifier import Classifier
from calibrant.models.loading import module_identity, save_weights

CHATS = [Chat.ask(t) for t in ("the cat", "one two three four", "the cat", "a", "the cat")]
REPLIES = ["sat on the mat", "", "and then again", "nine ten", "sat on the mat"]


@pytest.fixture
def made(lm):
    """A classifier of each family, with three scores."""
    return Classifier.from_lm(lm, heads=3, seed=5)


def by_hand(model, chats, replies):
    """Each reply alone: no batch, no padding, no mask; the state at its last token times the head."""
    found = []
    with torch.no_grad():
        for prompt, reply in zip(*model.ids(chats, replies), strict=True):
            hidden = model.backbone(input_ids=torch.tensor([prompt + reply])).last_hidden_state
            found.append(hidden[0, -1] @ model.head.weight.T)
    return torch.stack(found)


def close(one, two):
    return torch.allclose(one, two, atol=2e-5, rtol=2e-4)


def weights(model):
    return module_identity(model.module, model.tokenizer, "").parts["weights"]


def test_scores_are_those_of_a_plain_loop(made):
    ids = made.ids(CHATS, REPLIES)
    assert close(made.read_all(*ids), by_hand(made, CHATS, REPLIES))
    assert made.read_all(*ids).shape == (5, 3)
    assert made.read_all([], []).shape == (0, 3)


def test_company_order_and_budget_do_not_matter(made):
    prompts, replies = made.ids(CHATS, REPLIES)
    whole = made.read_all(prompts, replies)
    assert close(made.read_all(prompts[::-1], replies[::-1]), whole.flip(0))
    assert close(torch.cat([made.read_all([p], [r]) for p, r in zip(prompts, replies, strict=True)]), whole)
    made.token_budget = 1
    assert close(made.read_all(prompts, replies), whole)


@pytest.mark.parametrize("told", [1, 7], ids=["pad is eos", "pad is another token"])
def test_padding_is_never_looked_at(tiny, told):
    """transformers reads the last id that is not padding: so padding is never the end token, whoever pads."""
    made = Classifier.from_lm(tiny("llama", pad_token_id=told), seed=1)
    pad = made.module.config.pad_token_id
    assert (pad == told) == (told != 1)
    prompts, replies = made.ids(CHATS[:2], REPLIES[:2])
    assert replies[0][-1] == 1
    truth = by_hand(made, CHATS[:2], REPLIES[:2])
    assert close(made.read_all(prompts, replies), truth)
    rows = [p + r for p, r in zip(prompts, replies, strict=True)]
    width = max(map(len, rows)) + 2
    for right in (True, False):
        gaps = [[pad] * (width - len(row)) for row in rows]
        ids = torch.tensor([r + g if right else g + r for r, g in zip(rows, gaps, strict=True)])
        seen = [[1] * len(r) + [0] * len(g) for r, g in zip(rows, gaps, strict=True)]
        mask = torch.tensor([s if right else s[::-1] for s in seen])
        with torch.no_grad():
            theirs = made.module(
                input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
            ).logits
        assert close(theirs, truth)


def test_gradients_are_those_of_a_plain_loop(tiny):
    grads = []
    for route in (lambda m: m.read(*m.ids(CHATS, REPLIES)), None):
        made = Classifier.from_lm(tiny("llama"), heads=2).copy()
        if route is None:
            ids = zip(*made.ids(CHATS, REPLIES), strict=True)
            rows = [made.backbone(input_ids=torch.tensor([p + r])).last_hidden_state[0, -1] for p, r in ids]
            values = made.head(torch.stack(rows))
        else:
            values = route(made)
        (values**2).sum().backward()
        grads.append([p.grad for p in made.module.parameters()])
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, atol=1e-3 * float(two.abs().max()) + 1e-6)


def test_the_trunk_is_the_models_and_the_model_stays(tiny):
    lm = tiny("qwen2")
    before, world = weights(lm), torch.get_rng_state()
    made = Classifier.from_lm(lm, seed=3)
    trunk = lm.module.base_model.state_dict()
    for name, tensor in made.backbone.state_dict().items():
        assert torch.equal(tensor, trunk[name])
        assert tensor.data_ptr() != trunk[name].data_ptr()
    assert weights(lm) == before
    assert torch.equal(torch.get_rng_state(), world)
    assert not any(p.requires_grad for p in made.module.parameters())
    assert made.identity.kind == "reward"


def test_the_head_is_drawn_as_said(tiny):
    """N(0, 1 / (d + 1)) with d = 32, by seed; more heads do not change the first."""
    head = Classifier.from_lm(tiny("llama"), heads=400, seed=1).head.weight
    assert head.std().item() == pytest.approx(33**-0.5, rel=0.03)
    assert head.mean().item() == pytest.approx(0.0, abs=0.01)
    assert torch.equal(Classifier.from_lm(tiny("llama"), heads=2, seed=1).head.weight, head[:2])
    assert not torch.equal(Classifier.from_lm(tiny("llama"), heads=2, seed=2).head.weight, head[:2])


def test_a_copy_is_a_twin_of_its_own(tiny):
    made = Classifier.from_lm(tiny("llama"))
    twin = made.copy()
    before = weights(made)
    with torch.no_grad():
        twin.head.weight.add_(1)
    assert weights(made) == before != weights(twin)
    assert all(p.requires_grad for p in twin.module.parameters())


def test_what_is_saved_opens_here_and_in_transformers(lm, tmp_path):
    made = Classifier.from_lm(lm, heads=2, seed=4)
    made.save(tmp_path)
    again = Classifier.from_folder(tmp_path)
    ids = made.ids(CHATS, REPLIES)
    assert again.ids(CHATS, REPLIES) == ids
    assert torch.equal(again.read_all(*ids), made.read_all(*ids))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(theirs) is type(made.module)
    assert weights(again) == weights(made)
    assert not list(tmp_path.glob("*.bin"))


def test_opening_and_saving_changes_no_identity(tiny, tmp_path):
    """transformers would note in the tokenizer's config how it was opened."""
    Classifier.from_lm(tiny("llama")).save(tmp_path / "a")
    opened = Classifier.from_folder(tmp_path / "a")
    opened.save(tmp_path / "b")
    assert Classifier.from_folder(tmp_path / "b").identity.digest == opened.identity.digest


def test_the_end_token_of_the_template_is_kept(tiny, chatml, tmp_path):
    """A chat model ends turns with a token that only its generation config names; a folder must keep it."""
    lm = tiny("llama", chatml)
    lm.module.generation_config.eos_token_id = [1, 2]
    lm = type(lm).from_module(lm.module, lm.tokenizer, "chat")
    assert lm.chat_tokens.end_id == 2
    made = Classifier.from_lm(lm)
    made.save(tmp_path)
    assert made.chat_tokens.end_id == Classifier.from_folder(tmp_path).chat_tokens.end_id == 2
    assert made.ids(CHATS[:1], ["sat"])[1][0][-1] == 2


def test_a_folder_of_somebody_else(tiny, tmp_path):
    """One output and plain transformers: no file of ours in it."""
    lm = tiny("llama", num_labels=1, pad_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = AutoModelForSequenceClassification.from_config(lm.module.config)
    save_weights(theirs, tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    made = Classifier.from_folder(tmp_path)
    assert made.heads == 1
    assert close(made.read_all(*made.ids(CHATS, REPLIES)), by_hand(made, CHATS, REPLIES))


def config(folder, **changes):
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def test_folders_that_are_refused(tiny, tmp_path):
    lm = tiny("llama")
    good = tmp_path / "good"
    Classifier.from_lm(lm, heads=2).save(good)
    language = tmp_path / "lm"
    lm.save(language)
    with pytest.raises(InputError, match=r"lacks 1 weights that its config asks for: score.weight") as caught:
        Classifier.from_folder(language)
    assert "train.reward" in caught.value.hint

    classes = shutil.copytree(good, tmp_path / "classes")
    config(classes, problem_type=None)
    with pytest.raises(InputError, match="2 outputs"):
        Classifier.from_folder(classes)

    endless = shutil.copytree(good, tmp_path / "endless")
    path = endless / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    with pytest.raises(InputError, match="end-of-sequence"):
        Classifier.from_folder(endless)

    pickled = shutil.copytree(good, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        Classifier.from_folder(pickled)

    torn = shutil.copytree(good, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="no safetensors file"):
        Classifier.from_folder(torn)

    code = shutil.copytree(good, tmp_path / "code")
    config(code, model_type="own", auto_map={"AutoModelForSequenceClassification": "own.Own"})
    with pytest.raises(InputError, match="cannot be opened"):
        Classifier.from_folder(code)
    with pytest.raises(InputError, match="not a folder"):
        Classifier.from_folder(tmp_path / "nothing")


def test_an_encoder_is_refused(tiny, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=1, **shape))
    save_weights(module, tmp_path)
    tiny("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CapabilityError, match="no linear head"):
        Classifier.from_folder(tmp_path)


def test_odd_rows(tiny):
    made = Classifier.from_lm(tiny("llama"))
    with pytest.raises(InputError, match="2 chats, 1 replies"):
        made.ids(CHATS[:2], ["a"])
    with pytest.raises(InputError, match=r"row 1 has .* holds 64"):
        made.ids(CHATS[:2], ["a", "the cat sat " * 30])
    with torch.no_grad():
        made.head.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="row 0"):
        made.read_all(*made.ids(CHATS, REPLIES))


def test_many_replies_to_one_prompt_stay_within_a_row(tiny):
    """Rows of at most 1,024 tokens: 600 replies fall into several."""
    made = Classifier.from_lm(tiny("llama"))
    prompts, replies = made.ids(CHATS[:1] * 600, ["sat on the mat"] * 600)
    found = made.read(prompts, replies)
    assert close(found, found[:1].expand_as(found))
    assert len(set(made.read_all(prompts, replies).flatten().tolist())) == 1


def test_half_precision_scores_are_read_in_float32(tiny):
    lm = tiny("llama")
    lm.module.to(torch.bfloat16)
    made = Classifier.from_lm(lm)
    assert made.head.weight.dtype == torch.bfloat16
    found = made.read(*made.ids(CHATS, REPLIES))
    assert found.dtype == torch.float32
