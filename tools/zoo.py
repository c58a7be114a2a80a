"""Tiny random models of many families: two layers, width 32, a hundred words, one config each.

``build(name)`` makes the model, ``tokenizer()`` the one tokenizer that all of them share. Configs name what a
family calls its parts; what is not said is the family's own default.
"""

from __future__ import annotations

import string
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from calibrant.models.open_model import OpenModel

_WORDS = ["<pad>", "</s>", "<unk>", "<s>", *(string.ascii_letters + string.digits + string.punctuation + " ")]
_SHAPE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.25,
    "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_PAIRS = {"num_key_value_heads": 2}
_WINDOW = {"sliding_window": 6}
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_STATE = {
    "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}  # fmt: skip
_HALF = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
_LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
    },
    "original_max_position_embeddings": 12,
}  # fmt: skip


class Family(NamedTuple):
    """One family."""

    memory: str
    """What it keeps of the tokens before."""
    config: dict[str, Any]


def _families(memory: str, **configs: dict[str, Any]) -> dict[str, Family]:
    return {name.replace("__", "-"): Family(memory, config) for name, config in configs.items()}


ZOO: dict[str, Family] = {
    **_families(
        "KV cache",
        llama=_GROUPED, qwen2=_GROUPED, qwen3=_GROUPED, gpt_neox={}, phi={}, phi3=_PAIRS, persimmon={},
        gptj=_OLD | {"rotary_dim": 4}, codegen=_OLD | {"rotary_dim": 4}, stablelm=_PAIRS, starcoder2=_PAIRS,
        olmo={}, olmo2={}, nemotron=_GROUPED, glm=_GROUPED, smollm3=_PAIRS, diffllama=_GROUPED,
        granite=_PAIRS | {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
        cohere=_PAIRS | {"logit_scale": 0.25},
    ),
    "phi3, longrope": Family("KV cache", _PAIRS | _LONGROPE),
    **_families("KV cache of few heads (MQA, GQA)", gpt_bigcode=_OLD, falcon={"num_kv_heads": 2}),
    **_families(
        "sliding window",
        mistral=_GROUPED | _WINDOW,
        gemma2=_GROUPED | _WINDOW | {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
        gemma3_text=_GROUPED | _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
        cohere2=_GROUPED | _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
        gpt_oss=_GROUPED | _WINDOW | _EXPERTS,
        gpt_neo={
            "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6,
        },
    ),
    "llama4_text": Family(
        "chunked attention",
        _GROUPED | _EXPERTS | {
            "attention_chunk_size": 6, "intermediate_size_mlp": 48,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    **_families(
        "learned positions",
        gpt2=_OLD, opt={"ffn_dim": 48, "word_embed_proj_dim": 16}, biogpt={}, openai__gpt=_OLD,
    ),
    **_families(
        "sinusoid positions",
        xglm={"num_layers": 2, "attention_heads": 4, "d_model": 32, "ffn_dim": 48}, ctrl=_OLD | {"dff": 48},
    ),
    **_families(
        "ALiBi",
        bloom={"n_layer": 2, "n_head": 4},
        mpt={"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    ),
    **_families(
        "latent KV cache (MLA)",
        deepseek_v2=_LATENT | _EXPERTS | {"topk_method": "greedy"}, deepseek_v3=_LATENT | _EXPERTS,
        minicpm3=_LATENT,
    ),
    **_families(
        "mixture of experts",
        mixtral=_GROUPED | _EXPERTS, olmoe=_EXPERTS, qwen2_moe=_PAIRS | _EXPERTS,
        qwen3_moe=_GROUPED | _EXPERTS,
        granitemoe=_PAIRS | _EXPERTS, jetmoe=_PAIRS | _EXPERTS | {"kv_channels": 8},
    ),
    **_families(
        "recurrent state",
        mamba={"state_size": 4}, falcon_mamba={"state_size": 4},
        mamba2={"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
        rwkv={"attention_hidden_size": 32, "context_length": 128},
        recurrent_gemma=_PAIRS | {
            "lru_width": 32, "attention_window_size": 6, "block_types": ["recurrent", "attention"],
        },
        xlstm={"num_heads": 4, "embedding_dim": 32, "num_blocks": 2},
    ),
    **_families(
        "recurrent state, and KV cache",
        jamba=_PAIRS | _EXPERTS | {
            "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
        },
        bamba=_PAIRS | _STATE | {"attn_layer_indices": [1]},
        falcon_h1=_GROUPED | _STATE | {"mamba_d_ssm": 64},
        zamba2={
            "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_headdim": 8,
            "mamba_ngroups": 1, "chunk_size": 4, "n_mamba_heads": 8, "num_mem_blocks": 1,
            "use_mem_rope": True, "adapter_rank": 4,
        },
        nemotron_h=_GROUPED | {
            "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8,
            "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4,
        },
        granitemoehybrid=_PAIRS | _STATE | _EXPERTS | {
            "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16,
        },
    ),
    **_families(
        "linear attention, and KV cache",
        qwen3_next=_GROUPED | _EXPERTS | _LINEAR, qwen3_5_text=_GROUPED | _LINEAR, olmo_hybrid=_LINEAR,
        minimax=_GROUPED | _EXPERTS | {
            "layer_types": ["linear_attention", "full_attention"], "block_size": 4,
        },
    ),
    **_families(
        "short convolutions, and KV cache",
        lfm2=_PAIRS | {"layer_types": ["conv", "full_attention"]},
        lfm2_moe=_PAIRS | _EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    **_families(
        "decoder of an encoder-decoder",
        bart=_HALF, marian=_HALF | {"decoder_start_token_id": 3}, trocr=_HALF,
    ),
    "bert, as decoder": Family("encoder used as decoder", {"is_decoder": True}),
    "roberta, as decoder": Family("encoder used as decoder", {"is_decoder": True}),
    "electra, as decoder": Family("encoder used as decoder", {"is_decoder": True, "embedding_size": 32}),
    **_families(
        "none: not causal",
        bert={}, xlm={"emb_dim": 32, "n_layers": 2, "n_heads": 4},
        xlnet={"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    ),
}  # fmt: skip
"""Families by the name that transformers has for them, with a word on the variant."""

_OTHERS = ("intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_RENAMED = {"n_embd": ("hidden_size", *_OTHERS), "d_model": ("hidden_size", *_OTHERS), "emb_dim": _OTHERS}
"""What families that name their sizes otherwise take from their own keys."""

SLICE = ("gemma2", "opt", "deepseek_v3", "mamba", "rwkv", "lfm2", "bert")
"""A few of them, of different kinds of memory."""


def build(name: str, **changes: Any) -> OpenModel:
    """A random model of a family, large weights, so that the likeliest token is likeliest by far.

    ``changes`` are made to its config.
    """
    own = ZOO[name].config | changes
    shape = {key: value for key, value in _SHAPE.items() if key not in _RENAMED.get(_sized(own), ())}
    config = AutoConfig.for_model(name.split(",")[0], **shape | own)
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = auto.from_config(config)
        for weight in module.parameters():  # biases of 0 and norms of 1 would hide what padding does
            if weight.dim() == 1:
                weight.data.add_(torch.randn_like(weight), alpha=0.1)
    return OpenModel.from_module(module, tokenizer(), name)


def _sized(config: dict[str, Any]) -> str:
    """By which key a family names its width."""
    return next((key for key in _RENAMED if key in config), "")


def tokenizer() -> Any:
    """One token a character."""
    core = Tokenizer(BPE({word: i for i, word in enumerate(_WORDS)}, [], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    kind: Any = PreTrainedTokenizerFast
    return kind(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
