"""A sentence encoder: the mean of the last states by hand, nothing truncated, batches change nothing."""

from __future__ import annotations

import string

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from calibrant.core import InputError, NumericalError
from calibrant.models.encoder import open_encoder
from calibrant.models.sentence import SentenceEncoder, encoder_identity


def build(folder, seed=0):
    """A BERT of one narrow layer that reads characters, 32 at once."""
    ends = [f"{end}{char}" for char in string.ascii_lowercase for end in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *ends]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bert"))


def test_the_vector_is_the_mean_of_the_last_states_at_length_one(folder):
    encoder = open_encoder(folder)
    assert isinstance(encoder, SentenceEncoder)
    ids = BertTokenizerFast.from_pretrained(folder)("zorble tea", return_tensors="pt")
    with torch.inference_mode():
        states = BertModel.from_pretrained(folder).eval()(**ids).last_hidden_state[0].double()
    mean = states.mean(0).numpy()
    assert np.allclose(encoder.vectors(["zorble tea"])[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert encoder.size("zorble tea") == ids["input_ids"].shape[1] == 11


def test_no_vector_depends_on_what_stands_beside_it(folder):
    encoder, texts = open_encoder(folder), ["a", "zorble", "a lamp by the road"]
    alone = np.concatenate([encoder.vectors([text]) for text in texts])
    assert (encoder.vectors(texts) == alone).all() and (encoder.vectors(texts[::-1]) == alone[::-1]).all()


def test_what_is_too_long_is_refused_and_not_truncated(folder):
    encoder = open_encoder(folder)
    assert encoder.most == 32 and encoder.size("a" * 30) == 32
    encoder.vectors(["a" * 30])
    with pytest.raises(InputError, match="33 tokens, but the encoder reads 32"):
        encoder.vectors(["a" * 31])


def test_a_vector_that_is_no_number_is_refused(folder):
    encoder = open_encoder(folder)
    encoder._module.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="length nan"):
        encoder.vectors(["a"])


def test_identity_is_known_without_opening_and_follows_the_weights(folder, tmp_path):
    assert open_encoder(folder).identity.digest == encoder_identity(folder).digest
    assert encoder_identity(build(tmp_path / "other", seed=1)).digest != encoder_identity(folder).digest
    with pytest.raises(InputError, match="is not a folder"):
        open_encoder(tmp_path / "nowhere")


@pytest.mark.real_model
def test_minilm_tells_paraphrases_from_other_texts(real_models):
    folder = real_models / "all-minilm-l6-v2"
    if not folder.is_dir():
        pytest.skip("needs all-minilm-l6-v2 in CALIBRANT_MODELS")
    vectors = open_encoder(folder).vectors(["the cat sat", "a cat is sitting", "stock market"])
    alike, apart = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert alike > 0.75 and apart < 0.15
