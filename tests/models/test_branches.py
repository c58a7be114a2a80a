"""One prompt for all its replies: the same numbers and gradients as row by row, or a reason why not."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from calibrant.core import Chat
from calibrant.models.branches import Branches, last_states, pack, score, shares, spread, states, tokenised

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = Branches(
    prompts=[[5, 6, 7, 8], [9], [3, 4]],
    replies=[[[10, 11, 1], [12, 1]], [[13, 14, 15, 16, 1]], [[17, 1], [18], [19, 20, 1]]],
)


def made(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def llama(**more):
    shape = SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return made(LlamaForCausalLM, LlamaConfig(**(shape | more)))


def by_hand(module, temperature=1.0):
    """Each reply alone, the whole vocabulary at each place, float64 at the end."""
    found = []
    for prompt, replies in zip(*ROWS, strict=True):
        for reply in replies:
            ids = torch.tensor([prompt + reply])
            logits = module(input_ids=ids).logits[0].double() / temperature
            table = logits.log_softmax(-1)
            found.append([table[len(prompt) - 1 + i, token] for i, token in enumerate(reply)])
    return found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_each_reply_alone(shared, temperature):
    module = llama()
    found = score(module, pack(ROWS, shared=shared), temperature=temperature, entropy=True)
    slow = by_hand(module, temperature)
    assert found.lengths.tolist() == [3, 2, 5, 2, 1, 3]
    flat = torch.stack([value for row in slow for value in row])
    torch.testing.assert_close(found.logprobs.double(), flat, atol=2e-6, rtol=0)
    torch.testing.assert_close(
        found.sums().double(), torch.stack([sum(row) for row in slow]), atol=1e-5, rtol=0
    )
    assert found.padded().shape == (6, 5)
    assert found.padded()[4].tolist()[1:] == [0.0] * 4


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_each_reply_alone(tied):
    module = llama(tie_word_embeddings=tied)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.25])
    grads = []
    for shared in (True, False):
        module.zero_grad()
        (score(module, pack(ROWS, shared=shared)).sums() * weights).sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    module.zero_grad()
    sum(w * sum(row) for w, row in zip(weights, by_hand(module), strict=True)).backward()
    for shared, plain, slow in zip(*grads, [p.grad for p in module.parameters()], strict=True):
        torch.testing.assert_close(shared, slow, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(plain, slow, atol=2e-5, rtol=1e-4)


def test_a_reply_does_not_see_its_neighbours():
    """Another second reply leaves the first one's numbers, to the bit where the width stays."""
    module = llama()
    other = Branches([[5, 6]], [[[7, 8, 1], [9, 1]]]), Branches([[5, 6]], [[[7, 8, 1], [40, 41]]])
    one, two = (score(module, pack(rows, shared=True)).sums() for rows in other)
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_states_are_read_where_a_token_is_predicted_and_where_a_reply_ends():
    module = llama()
    backbone, at = module.model, 0
    found, ends = (read(backbone, pack(ROWS, shared=True)) for read in (states, last_states))
    for number, (prompt, reply) in enumerate(
        (p, r) for p, replies in zip(*ROWS, strict=True) for r in replies
    ):
        alone = backbone(input_ids=torch.tensor([prompt + reply])).last_hidden_state[0]
        first = len(prompt) - 1
        torch.testing.assert_close(
            found[at : at + len(reply)], alone[first : first + len(reply)], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(ends[number], alone[-1], atol=1e-5, rtol=1e-4)
        at += len(reply)


def test_spreading_flat_values():
    packed = pack(Branches([[1]], [[[2, 3], [4, 5, 6]]]), shared=True)
    table = spread(torch.arange(5.0), packed)
    assert table.tolist() == [[0.0, 1.0, 0.0], [2.0, 3.0, 4.0]]


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, intermediate_size=64), ""),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4), ""),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SMALL, intermediate_size=64), ""),
    "opt": (OPTForCausalLM, OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32), None),
    "mistral, windowed": (
        MistralForCausalLM,
        MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=8),
        "sliding",
    ),
    "gemma2, windowed and capped": (
        Gemma2ForCausalLM,
        Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8),
        "sliding",
    ),
    "mamba": (
        MambaForCausalLM,
        MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4),
        "",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_right_numbers(family):
    """Where replies may share a row the numbers agree; where not, it says why and the plain path does."""
    kind, config, said = FAMILIES[family]
    module = made(kind, config)
    reason = shares(module)
    if family == "mamba":
        assert reason
    elif said is not None:
        assert (said in reason) if said else reason == ""
    found = score(module, pack(ROWS, shared=not reason)).logprobs
    flat = torch.stack([value for row in by_hand(module) for value in row])
    torch.testing.assert_close(found.double(), flat, atol=1e-5, rtol=0)


def test_capped_logits_take_the_model_s_own_head():
    """Gemma 2 bounds its logits after the unembedding: hidden states times weights would be wrong."""
    module = made(FAMILIES["gemma2, windowed and capped"][0], Gemma2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1e-2
    ))  # fmt: skip
    found = score(module, pack(ROWS, shared=False)).logprobs
    flat = torch.stack([value for row in by_hand(module) for value in row])
    torch.testing.assert_close(found.double(), flat, atol=1e-5, rtol=0)


def test_replies_are_tokenised_as_the_model_joins_them(tiny):
    tiny = tiny("llama")
    chats = [Chat.ask("how"), Chat.ask("where is the barn?")]
    prompts, replies = tokenised(tiny, chats, ["ember", ""])
    assert prompts == [tiny.prompt_ids(chat) for chat in chats]
    assert replies == [[*tiny.reply_ids("ember"), tiny.chat_tokens.end_id], [tiny.chat_tokens.end_id]]


def test_the_fast_path_scores_as_the_model_does(tiny):
    tiny = tiny("llama")
    chats = [Chat.ask("how do i mend the old mill?"), Chat.ask("what")]
    replies = ["say it is dusk", "ember"]
    prompts, answers = tokenised(tiny, chats, replies)
    packed = pack(Branches(prompts, [[a] for a in answers]), shared=True)
    with torch.no_grad():
        sums = score(tiny.module, packed).sums()
    slow = [scored.total for scored in tiny.logprobs(chats, replies)]
    assert sums.tolist() == pytest.approx(slow, abs=1e-4)
