"""Mistakes that users of other tools reported, and that no test of one technique holds by itself.

``docs/parity.md`` has the whole list, with the tests of other files.
"""

from __future__ import annotations

import csv
import gc
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calibrant.core import Chat, InputError, Quiet
from calibrant.data.rows import Contrast, Contrasts
from calibrant.data.shapes import Refused, contrast_of
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.directions import ablated
from calibrant.models.open_model import OpenModel
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._contrasts import encode, first_token
from calibrant.understand._engine.harvest import Texts, harvest, source_of
from calibrant.understand._engine.patches import Edit
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._sae_pages import spelt
from calibrant.understand._sae_scores import Sites
from calibrant.understand.attribute import attribute
from calibrant.understand.edges import Edges, edges
from calibrant.understand.patch import Patching, patch
from calibrant.understand.sae import SAE, _rows

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from zoo import build

CHAT = Chat.ask("where is the mill?")


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "bloom", "granite"])
def test_what_attention_adds_is_the_step_of_the_stream(family):
    """Holds against TransformerLens#1648: attn_out was taken before the norm behind it. Put in together with
    the stream before the block, it makes the stream behind attention."""
    lm = build(family)
    ids = torch.randint(4, 90, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    names = [f"blocks.1.hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid")]
    sources = traced(lm, ids[0], names)
    before, added, middle = (Edit(name) for name in names)
    read = LogitDifference([5, 6, 7], [8, 9, 10])
    found = sweep(lm, ids[1], sources, [(before, added), (middle,), (before,)], read)
    torch.testing.assert_close(found.values[0], found.values[1], rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(sources[names[0]] + sources[names[1]], sources[names[2]], rtol=1e-4, atol=1e-4)
    assert (found.values[1] - found.base).abs().max() > 1e-3


def test_a_direction_is_taken_out_whatever_its_length_and_once():
    """Holds against neuronpedia#172: a projector without 1 / |v|^2. v = (2, 0, ...), applied twice."""
    model, site = build("llama"), "blocks.1.hook_resid_post"
    way = torch.zeros(32)
    way[0] = 2.0
    batch = model.encode([CHAT])
    with torch.no_grad():
        with ablated(model, way):
            once, logits = model.trace(batch, [site])[site], model.forward(batch)
            with ablated(model, way):
                twice = model.forward(batch)
        plain = model.trace(batch, [site])[site]
    assert float(once[..., 0].abs().max()) < 1e-6 < float(plain[..., 0].abs().max())
    torch.testing.assert_close(twice, logits, rtol=0, atol=1e-5)


def tokenizer_of(*, keeps_blank):
    """Three letters and one word, with the blank before it as in SentencePiece, or with blanks dropped."""
    pieces = ["</s>", "\u2581", "d", "o", "g", "a", "\n", "do", "dog", "\u2581dog"]
    inner = Tokenizer(
        models.BPE(
            vocab={piece: at for at, piece in enumerate(pieces)},
            merges=[("d", "o"), ("do", "g"), ("\u2581", "dog")],
        )
    )
    if keeps_blank:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        inner.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def test_the_token_of_an_answer_has_its_blank():
    """Holds against EasyEdit#390: a tokenizer that drops the leading blank gives the token of another word,
    and is refused; one that keeps it as part of the word, and does not show it when the token is decoded
    alone, is read."""
    module = build("llama").module
    kept = OpenModel.from_module(module, tokenizer_of(keeps_blank=True), "kept")
    dropped = OpenModel.from_module(module, tokenizer_of(keeps_blank=False), "dropped")
    vocab = kept.tokenizer.get_vocab()
    assert kept.tokenizer.decode([vocab["\u2581dog"]]) == "dog"
    assert first_token(kept, "pair", " dog") == vocab["\u2581dog"]
    assert first_token(kept, "pair", "dog") == vocab["dog"]
    assert dropped.reply_ids(" dog") == [vocab["dog"]]
    with pytest.raises(InputError, match="the first token of ' dog' reads 'dog'"):
        first_token(dropped, "pair", " dog")
    with pytest.raises(InputError, match="a blank alone"):
        first_token(kept, "pair", " god")
    tokens = ChatTokens(kept.tokenizer)  # as feature pages show them
    assert [spelt(tokens, vocab[piece]) for piece in ("\u2581dog", "dog", "</s>")] == [" dog", "dog", "</s>"]


@pytest.mark.real
def test_a_blank_alone_tells_no_answers_apart(real_data: Path):
    """Holds against EasyEdit#390, on real weights: ' Amber' begins with a token that is the blank alone."""
    lm = OpenModel.from_folder(real_data / "stories260K")
    with pytest.raises(InputError, match="a blank alone"):
        first_token(lm, "pair", " Amber")
    assert lm.tokenizer.convert_ids_to_tokens(first_token(lm, "pair", " Tom")) == "\u2581T"


def test_token_ids_of_another_tokenizer_are_no_answers():
    """Holds against EAP-IG's ``ioi.csv``, whose columns name ids: a row without words is refused."""
    row = {"clean": "a gives b to", "corrupted": "c gives b to", "correct_idx": "47764", "incorrect_idx": "2"}
    made = contrast_of(1, row)
    assert isinstance(made, Refused)
    assert "answer" in made.reason
    assert isinstance(contrast_of(1, row | {"answer": " a", "foil": " b"}), Contrast)


@pytest.mark.real
def test_tokens_of_ioi_are_computed_from_its_text(real_data: Path):
    """Holds against ``circuits/ioi.csv``: its ids are beyond this model's vocabulary. The answer is the name
    that the clean prompt has once, and its token is the one that the whole text has there."""
    lm = OpenModel.from_folder(real_data / "stories260K")
    with (real_data / "circuits" / "ioi.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))[:60]
    rows = []
    for at, row in enumerate(table):
        words = Counter(re.findall(r"\b[A-Z][a-z]+\b", row["clean"]))
        (subject,) = (word for word, times in words.items() if times == 2)
        (answer,) = (word for word in words if word not in (subject, "Then", "After", "When"))
        clean, corrupt = (Chat.ask(row[name] + " ") for name in ("clean", "corrupted_hard"))
        rows.append(Contrast(id=str(at), clean=clean, corrupt=corrupt, answer=answer, foil=subject))
    lengths = [(len(lm.prompt_ids(row.clean)), len(lm.prompt_ids(row.corrupt))) for row in rows]
    common = max(set(lengths), key=lambda pair: (pair[0] == pair[1], lengths.count(pair)))
    usable = [row for row, pair in zip(rows, lengths, strict=True)
              if pair == common and lm.reply_ids(row.answer)[0] != lm.reply_ids(row.foil)[0]]  # fmt: skip
    assert len(usable) >= 2
    pairs = encode(lm, Contrasts(rows=tuple(usable)))
    for row, prompt, token in zip(usable, pairs.clean.tolist(), pairs.answers, strict=True):
        whole = lm.prompt_ids(Chat.ask(row.clean.last_user + row.answer))
        assert whole[: len(prompt) + 1] == [*prompt, token]
        assert token < lm.module.config.vocab_size < int(table[int(row.id)]["correct_idx"])


def test_no_tensor_outlives_a_call():
    """Holds against nnsight#396, #538 and #102: memory came back only after a garbage collection. Counted
    with the collector off, from the second call on."""
    model, contrasts = open_plant("induction", {}), open_contrasts("induction", {"n": "4"})
    calls = (
        lambda: patch(model, contrasts, Patching(site="z", positions="all"), Quiet()),
        lambda: attribute(model, contrasts, run=Quiet()),
        lambda: edges(model, contrasts, Edges(draws=10), Quiet()),
    )
    for call in calls:
        call()
    gc.collect()
    gc.disable()
    try:
        for call in calls:
            before = alive()
            call()
            assert alive() == before
    finally:
        gc.enable()


def alive():
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_training_reads_rows_in_another_order_than_the_file(tmp_path):
    """Holds against SAELens#277 and PR#612: what was asked to be shuffled was not. Every row once an epoch,
    neighbours seldom together."""
    model = build("llama")
    chats = tuple(Chat.ask(f"{chr(97 + at)} mill is by the stone") for at in range(12))
    texts = Texts(chats, tuple(tuple(model.prompt_ids(chat)) for chat in chats), "data")
    site = "blocks.0.hook_resid_post"
    store = harvest(model, texts, source_of(model, texts, [site], dtype="float32"), tmp_path)
    everything = torch.arange(len(store))
    count = len(store) // 4
    rows = _rows(store, Sites(site, site), everything, everything[:0], SAE(batch=count), 0)
    seen = torch.cat([rows.batch(step)[0] for step in range(len(store) // count)])
    whole = store.rows(site, everything)
    places = torch.cdist(seen.double(), whole.double()).argmin(1)
    assert len(set(places.tolist())) == len(places)
    assert float((places[1:] - places[:-1] == 1).double().mean()) < 0.1


def test_a_position_is_that_of_the_token_in_the_prompt():
    """Holds against pyvene#193 (which tokens are meant?): before the first block, the one token that differs
    carries everything, by its number in ``prompt_ids``; the last can be named 'last'."""
    model, words = open_plant("induction", {}), ["w03", "w04", "w05", "w06", "w03"]
    rows = []
    for at, other in enumerate(f"w{number:02}" for number in range(7, 15)):
        corrupt = [*words[:1], other, *words[2:]]
        rows.append(Contrast(id=str(at), clean=Chat.ask(" ".join(words)), answer="w04", foil=other,
                             corrupt=Chat.ask(" ".join(corrupt))))  # fmt: skip
    contrasts = Contrasts(rows=tuple(rows))
    pairs = encode(model, contrasts)
    differ = (pairs.clean != pairs.corrupt).any(0).nonzero()[:, 0].tolist()
    assert len(differ) == 1
    each = patch(model, contrasts, Patching(interactions=0), Quiet()).metrics
    last = patch(model, contrasts, Patching(interactions=0, positions="last"), Quiet()).metrics
    end = pairs.clean.shape[1] - 1
    for way in ("denoise", "noise"):
        shares = [each[f"{way}/layer_0/position_{at}"].value for at in range(end + 1)]
        assert shares == pytest.approx([float(at in differ) for at in range(end + 1)], abs=1e-4)
        for layer in (0, 1):
            assert last[f"{way}/layer_{layer}"].value == pytest.approx(
                each[f"{way}/layer_{layer}/position_{end}"].value, abs=1e-5
            )


def test_the_table_names_tests_that_say_so():
    """Each test in the table of docs/parity.md is there, and names the project that it is held against."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "parity.md").read_text(encoding="utf-8")
    section = text.partition("## Interpretability: mistakes")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
    assert len(named) > 20
    for path, name in named:
        body = (root / path).read_text(encoding="utf-8").partition(f"def {name}(")[2].partition("\ndef ")[0]
        assert "Holds against" in body, name
