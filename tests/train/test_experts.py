"""A model with experts: that its router loss is left out stands in the caveats of whatever trained it."""

from __future__ import annotations

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from calibrant.core import Quiet
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.train.dpo import DPO, dpo
from calibrant.train.sft import SFT, sft


@pytest.mark.parametrize("weight", [0.02, 0.0])
def test_a_router_loss_that_is_left_out_is_said(examples, pairs, tmp_path, weight):
    tokenizer = build_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, max_position_embeddings=64,
        router_aux_loss_coef=weight, pad_token_id=None,
    )  # fmt: skip
    model = OpenModel.from_module(MixtralForCausalLM(config), tokenizer, "experts")
    results = [
        sft(model, examples(4), SFT(batch_size=4), Quiet(work=tmp_path / "sft")),
        dpo(model, pairs(4), DPO(batch_size=4), Quiet(work=tmp_path / "dpo")),
    ]
    for result in results:
        said = [caveat for caveat in result.caveats if "router_aux_loss_coef = 0.02" in caveat]
        assert len(said) == (weight > 0)
