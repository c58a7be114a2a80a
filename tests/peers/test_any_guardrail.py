"""any-guardrail 0.7.7 itself, in its own environment, with tiny local models: what its answers are worth."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from calibrant.core import CapabilityError, Chat
from calibrant.defend.any_guardrail import AnyGuardrail, any_guardrail
from calibrant.defend.defended import Defended, Layer
from calibrant.models.scripted import ScriptedModel

pytestmark = pytest.mark.peers

WORDS = ["the", "loaf", "zorble", "bring", "a", "how", "do", "i", "make", "mill", "lantern", "rook"]
LABELS = {0: "LEGIT", 1: "INJECTION"}
LIMIT = 32


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """``classifier(change)``: the folder of a classifier that was trained to find 'zorble'."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(
        vocab={word: place for place, word in enumerate(vocabulary)}, model_max_length=LIMIT
    )
    torch.manual_seed(0)
    rng = random.Random(0)
    module = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=2,
            id2label=LABELS,
            label2id={name: place for place, name in LABELS.items()},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    rule = torch.optim.AdamW(module.parameters(), lr=3e-3)
    others = [word for word in WORDS if word != "zorble"]
    for _ in range(300):
        texts, labels = [], []
        for _ in range(32):
            words = [rng.choice(others) for _ in range(rng.randint(1, 29))]
            labels.append(rng.random() < 0.5)
            if labels[-1]:
                words[rng.randrange(len(words))] = "zorble"
            texts.append(" ".join(words))
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        loss = module(**batch, labels=torch.tensor(labels).long()).loss
        rule.zero_grad()
        loss.backward()
        rule.step()
    module.eval()
    assert loss.item() < 0.05

    def saved(change=lambda module: None):
        path = tmp_path_factory.mktemp("changed")
        changed = BertForSequenceClassification(module.config.__class__.from_dict(module.config.to_dict()))
        changed.load_state_dict(module.state_dict())
        with torch.no_grad():
            change(changed)
        changed.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    return saved


@pytest.fixture
def made(peer):
    guards = []

    def make(guardrail, folder, **config):
        python = str(peer("any_guardrail"))
        guards.append(
            any_guardrail(AnyGuardrail(guardrail=guardrail, folder=folder, python=python, **config))
        )
        return guards[-1]

    yield make
    for guard in guards:
        guard._peer.close()


def answers(guard, texts):
    return [one.answer for one in guard.ask([Chat.ask(text) for text in texts], "input")]


@pytest.mark.parametrize("guardrail", ["deepset", "prompt_guard", "protectai", "harm_guard"])
def test_planted_and_null_with_a_local_folder(made, classifier, guardrail):
    guard = made(guardrail, classifier())
    rng = random.Random(1)
    null = [" ".join(rng.choices([w for w in WORDS if w != "zorble"], k=12)) for _ in range(60)]
    planted = [f"{text} zorble" for text in null]
    assert answers(guard, planted) == ["no"] * 60
    assert answers(guard, null) == ["yes"] * 60
    system = Defended(ScriptedModel(lambda chat: "so"), [Layer("peer", "input", guard)])
    assert [r.stop for r in system.generate([Chat.ask("zorble"), Chat.ask("the loaf")])] == ["blocked", "eos"]
    assert guard.identity.parts["package any-guardrail"] == "0.7.7"


@pytest.mark.parametrize("guardrail", ["prompt_guard", "deepset"])
def test_what_lies_behind_the_limit_is_read(made, classifier, guardrail):
    """By itself prompt_guard truncates at the tokenizer's limit, and deepset runs into the model's."""
    guard = made(guardrail, classifier())
    words = ["loaf"] * 200
    assert answers(guard, [" ".join(words)]) == ["yes"]
    for place in (0, 29, 30, 31, 100, 199):
        text = " ".join([*words[:place], "zorble", *words[place + 1 :]])
        assert answers(guard, [text]) == ["no"], place
    said = guard._peer.ask(do="validate", text=f"{' '.join(words)} zorble", reply=None)
    if guardrail == "prompt_guard":
        assert said["valid"] is True  # as a whole, 'zorble' is missed
    else:
        assert "RuntimeError" in said["error"]


def test_numbers_that_are_none_are_unknown(made, classifier):
    """0.7.7 takes the first label where every number is NaN: valid, with the score NaN."""

    def spoil(module):
        module.classifier.bias.fill_(float("nan"))

    said = made("deepset", classifier(spoil)).ask([Chat.ask("bring the zorble")], "input")[0]
    assert said.answer == "unknown"
    assert "valid = True, score nan" in said.reason


def test_a_model_with_other_labels_is_unknown(made, classifier):
    """0.7.7 calls every text valid where no label of the model is the one that it looks for."""

    def rename(module):
        module.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
        module.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}

    said = made("deepset", classifier(rename)).ask([Chat.ask("bring the zorble")], "input")[0]
    assert said.answer == "unknown"
    assert "valid = True, score None" in said.reason


def test_a_folder_is_no_model_id(made, classifier, peer):
    """Of itself it takes no folder: a name that is not on its list is refused before anything is loaded."""
    folder = classifier()
    config = AnyGuardrail(
        guardrail="deepset", model_id=folder, revision="unpinned", python=str(peer("any_guardrail"))
    )
    with pytest.raises(CapabilityError, match="Only supports"):
        any_guardrail(config).ask([Chat.ask("a")], "input")


def test_a_reply_that_was_cut_is_unknown(made, tmp_path):
    """Llama Guard with a model that never ends: 0.7.7 finds no 'unsafe' in 20 tokens, and says valid."""
    vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", "user", *WORDS])}
    written = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    written.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=written, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'][0]['text'] }} {% endfor %}"
    torch.manual_seed(0)
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    module.generation_config.suppress_tokens = [2]
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    guard = made("llama_guard", str(tmp_path), safe_reply="safe")
    said = guard.ask([Chat.ask("bring the zorble")], "input")[0]
    assert said.answer == "unknown"
    assert "valid = True, score None" in said.reason
    assert "ends too early" in said.reason
