"""Tiny random models of every tested family, and a tiny tokenizer trained on a few lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from calibrant.models.open_model import OpenModel

sys.path.insert(0, str(Path(__file__).parent))

from api_stub import server  # noqa: F401  a fixture of this folder

FAMILIES = ("gpt2", "llama", "qwen2", "gpt_neox", "mistral", "gemma2", "olmo2")
LINES = (
    "The cat sat on the mat and the dog sat on the log.",
    "User: what is the colour of the sky? Assistant: the sky is blue today.",
    "One two three four five six seven eight nine ten, and then again.",
)
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <s> put before every text, as Llama 3 has it."""
    special = ["<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(LINES, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special[2:],
        chat_template=template,
    )


def _config(family: str, **changes: Any) -> Any:
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,  # large, so that the likeliest token is likeliest by far
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    grouped = {"num_key_value_heads": 2}
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "gpt2": (GPT2Config, {"n_inner": 48}),
        "llama": (LlamaConfig, grouped),
        "qwen2": (Qwen2Config, grouped),
        "gpt_neox": (GPTNeoXConfig, {}),
        "mistral": (MistralConfig, {**grouped, "sliding_window": 6}),
        "gemma2": (Gemma2Config, {**grouped, **caps, "head_dim": 8, "sliding_window": 6}),
        "olmo2": (Olmo2Config, grouped),
    }
    kind, extra = kinds[family]
    return kind(**{**shape, **extra, **changes})


@pytest.fixture(scope="session")
def tiny() -> Callable[..., OpenModel]:
    """Build a tiny random model: ``tiny(family, template=None, **config changes)``."""

    def build(family: str = "llama", template: str | None = None, **changes: Any) -> OpenModel:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            module = Causal.from_config(_config(family, **changes))
        return OpenModel.from_module(module, _tokenizer(template), family)

    return build


@pytest.fixture(scope="session")
def chatml() -> str:
    """A chat template that ends every turn with <|end|>."""
    return CHATML


@pytest.fixture(scope="session", params=FAMILIES)
def lm(request: pytest.FixtureRequest, tiny: Callable[..., OpenModel]) -> OpenModel:
    """One model of each family in turn."""
    return tiny(request.param)
