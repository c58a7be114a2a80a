"""What a model may do with several rows is asked of it once, out of sight of its user's hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from calibrant.core import CapabilityError, Chat, ConfigError, Sampling
from calibrant.models.batching import Batching, batching, select
from calibrant.models.branches import Branches, pack, score, tokenised
from calibrant.models.generate import buckets
from calibrant.models.loading import prove_saves
from calibrant.models.lora import LoRA, adapted
from calibrant.models.model_facts import close, first_tensor
from calibrant.models.open_model import OpenModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

Build = Callable[..., OpenModel]
CHATS = [Chat.ask("and then the mill"), Chat.ask("so")]
SHORT = Sampling(max_tokens=3)


def passes(lm: OpenModel, act: Callable[[], object]) -> int:
    """Forward passes that ``act`` takes."""
    seen = list[int]()
    handle = lm.module.register_forward_hook(lambda *_: seen.append(1))
    act()
    handle.remove()
    return len(seen)


def test_ordinary_families_go_together(lm: OpenModel) -> None:
    assert batching(lm.module) == Batching(way="together", positions=True, padded=True, reach=None)
    assert lm.caveats == ()


def test_a_model_and_its_copies_are_asked_once(tiny: Build) -> None:
    lm = tiny()
    first, second = (passes(lm, lambda: lm.generate(CHATS, SHORT)) for _ in range(2))
    twin = lm.copy()
    assert first > second == passes(twin, lambda: twin.generate(CHATS, SHORT))


def test_edits_do_not_see_the_probe(tiny: Build) -> None:
    lm, seen = tiny(), list[tuple[int, ...]]()

    def note(value: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(value.shape))
        return value * 2

    with lm.edit({"blocks.0.hook_resid_post": note}):
        lm.generate(CHATS[:1], Sampling(max_tokens=2))
    width = len(lm.prompt_ids(CHATS[0]))
    assert seen == [(1, width, 32), (1, 1, 32)]


@pytest.mark.parametrize(
    ("family", "way"), [("mamba", "by length"), ("rwkv", "one by one"), ("xlstm", "again")]
)
def test_a_slower_way_is_said_once_it_is_known(family: str, way: str) -> None:
    lm = build(family)
    assert lm.caveats == ()
    lm.generate(CHATS, SHORT)
    assert batching(lm.module).way == way
    assert len(lm.caveats) == 1 and lm.caveats[0].startswith(
        f"slower than it could be: of '{family}', prompts"
    )


def test_a_model_that_sees_what_follows_is_refused_everywhere() -> None:
    lm = build("bert")
    for act in (
        lambda: lm.generate(CHATS, SHORT),
        lambda: lm.logprobs(CHATS, ["a", "b"]),
        lambda: lm.trace(lm.encode(CHATS), ["bert.encoder"]),
    ):
        with pytest.raises(CapabilityError, match="no left-to-right language model"):
            act()


def scored(lm: OpenModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of replies as training packs them, nothing asked before; and of whole rows, one by one."""
    asked, said = tokenised(lm, CHATS, ["not it", "a"])
    packed = pack(Branches(asked, [[reply] for reply in said]), shared=False)
    slow = []
    with torch.no_grad():
        fast = score(lm.module, packed).sums()
        for prompt, reply in zip(asked, said, strict=True):
            logits = lm.module(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            slow.append(logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).sum())
    return fast, torch.stack(slow)


def test_whoever_scores_asks_the_model_first() -> None:
    """RoBERTa counts positions from behind its padding token; an encoder sees what it is asked for."""
    fast, slow = scored(build("roberta, as decoder"))
    assert torch.allclose(fast, slow, atol=1e-3)
    with pytest.raises(CapabilityError, match="no left-to-right language model"):
        scored(build("bert"))


def test_rows_beyond_the_reach_of_positions_go_alone() -> None:
    """Phi-3's long frequencies would take hold of a whole batch: 12 tokens are the limit here."""
    how = batching(build("phi3, longrope").module)
    assert how.reach == 12
    assert how.draws(4, 12, 5) == ("together", 0) and how.draws(4, 13, 5) == ("again", 5)
    assert [how.reads(n) for n in (3, 12, 13)] == [0, 0, 13]


def test_buckets_hold_rows_of_one_key() -> None:
    assert list(buckets([3, 1, 2, 3], 6)) == [[1, 2], [0, 3]]
    assert list(buckets([3, 1, 2, 3], 6, ["a", "b", "a", "b"])) == [[1, 3], [2, 0]]
    assert list(buckets([], 6)) == []


def test_memory_of_every_kind_can_be_selected() -> None:
    rows, memory = torch.tensor([1, 1, 0]), [torch.arange(2.0)[:, None], (torch.arange(2.0),)]
    found = select(memory, rows)
    assert found[0][:, 0].tolist() == found[1][0].tolist() == [1, 1, 0]
    kept = DynamicCache([(torch.arange(2.0).view(2, 1, 1, 1),) * 2])
    assert select(kept, rows).layers[0].keys.flatten().tolist() == [1, 1, 0]
    with pytest.raises(TypeError, match="SimpleNamespace"):
        select(SimpleNamespace(), rows)


def test_close_knows_nan_from_a_number() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert close(nan, nan) and not close(torch.tensor([0.0, 1.0]), nan)
    assert close(torch.tensor([1.0005, -5.0]), torch.tensor([1.0, -5.0]))
    assert not close(torch.tensor([1.01, -5.0]), torch.tensor([1.0, -5.0]))


def test_the_first_tensor_of_an_output() -> None:
    one = torch.zeros(1)
    for output in (one, (one, None), [one], {"hidden": one, "more": None}, BaseModelOutput(one)):
        assert first_tensor(output) is one
    for output in (None, (), {}, (None, one), "text"):
        assert first_tensor(output) is None


def test_what_cannot_be_saved_is_not_trained(tiny: Build) -> None:
    lm = tiny().copy()
    prove_saves(lm.module)
    # Without do_sample: transformers opens it and never saves it.
    lm.module.generation_config.temperature = 0.5
    with pytest.raises(CapabilityError, match="temperature"):
        adapted(lm, None, 0)


def test_an_adapter_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="out_proj past the layer"):
        adapted(build("mamba").copy(), LoRA(targets=("out_proj",)), 0)
    with pytest.raises(ConfigError, match="with adapters the model fails"):
        adapted(build("llama4_text").copy(), LoRA(targets=("router",)), 0)
