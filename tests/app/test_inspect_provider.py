"""Our models answer Inspect as they answer us: in batches, with their own log-probs, under their own name."""

from __future__ import annotations

import threading

import anyio
import pytest

pytest.importorskip("inspect_ai.model", reason="needs the extra 'inspect'")

from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)

import calibrant.app.inspect_registry  # noqa: F401 - as Inspect imports it
from calibrant.app.inspect_batching import Batcher
from calibrant.app.inspect_provider import CalibrantAPI, chat_of, reference_of
from calibrant.app.references.openers import Openers
from calibrant.core import LM, Chat, ConfigError, InputError, Sampling
from calibrant.ledger import Ledger

QUESTIONS = [f"what is {n} plus {n % 3}?" for n in range(9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Openers(Ledger(tmp_path_factory.mktemp("ledger"))).open("testbed:model/tiny", LM).load()


@pytest.fixture
def api(tmp_path):
    return CalibrantAPI("testbed-tiny", ledger=str(tmp_path))


def gather(api, config, chats):
    """Ask all at once."""
    outputs = {}

    async def one(place, text):
        outputs[place] = await api.generate([ChatMessageUser(content=text)], [], "none", config)

    async def every():
        async with anyio.create_task_group() as group:
            for place, text in enumerate(chats):
                group.start_soon(one, place, text)

    anyio.run(every)
    return [outputs[place] for place in range(len(chats))]


def test_inspect_finds_the_provider_by_name():
    found = get_model("calibrant/testbed-tiny")
    assert isinstance(found.api, CalibrantAPI)
    assert found.name == f"testbed-tiny@sha256:{found.api.identity[:12]}"


def test_replies_are_those_of_the_model_and_share_a_batch(api, model):
    config = GenerateConfig(max_tokens=12, logprobs=True)
    outputs = gather(api, config, QUESTIONS)
    own = model.generate([Chat.ask(text) for text in QUESTIONS], Sampling(max_tokens=12))
    assert [one.completion for one in outputs] == [one.text for one in own]
    assert len(api.batcher.batches) < len(QUESTIONS)
    for output, completion in zip(outputs, own, strict=True):
        told = output.choices[0].logprobs.content
        assert [one.logprob for one in told] == pytest.approx(completion.logprobs, abs=1e-5)
        assert [one.token for one in told] == [model.tokenizer.decode([i]) for i in completion.ids]
        assert output.usage.output_tokens == len(completion.ids)
        assert output.stop_reason == {"eos": "stop", "length": "max_tokens"}[completion.stop]


def test_logprobs_are_of_what_was_drawn_and_not_of_the_likeliest(api, model):
    config = GenerateConfig(max_tokens=12, temperature=1.5, seed=3, logprobs=True)
    outputs = gather(api, config, QUESTIONS)
    own = model.generate(
        [Chat.ask(text) for text in QUESTIONS], Sampling(max_tokens=12, temperature=1.5, seed=3)
    )
    assert [one.completion for one in outputs] == [one.text for one in own]
    values = [one.logprob for output in outputs for one in output.choices[0].logprobs.content]
    assert values == pytest.approx([value for one in own for value in one.logprobs], abs=1e-5)
    assert min(values) < -2  # a token that was not the likeliest


def test_epochs_draw_anew_and_a_run_repeats(tmp_path):
    config = GenerateConfig(max_tokens=8, temperature=1.5, seed=1)
    runs = []
    for _ in range(2):
        api = CalibrantAPI("testbed-tiny", ledger=str(tmp_path))
        runs.append(sorted(one.completion for one in gather(api, config, ["what is 2 plus 2?"] * 6)))
    assert runs[0] == runs[1] and len(set(runs[0])) > 1


def test_a_pinned_name_is_held_to(api, tmp_path):
    pinned = CalibrantAPI(api.model_name, ledger=str(tmp_path))
    assert pinned.model_name == api.model_name
    with pytest.raises(InputError, match="is not the model that was measured"):
        CalibrantAPI("testbed-tiny@sha256:000000000000", ledger=str(tmp_path))
    with pytest.raises(InputError, match="no such model"):
        CalibrantAPI("testbed-tinny", ledger=str(tmp_path))
    with pytest.raises(ConfigError, match="no model argument 'dtype'"):
        CalibrantAPI("testbed-tiny", ledger=str(tmp_path), dtype="float16")
    assert reference_of("testbed-base") == "testbed:model/base" and reference_of("a/folder") == "a/folder"


@pytest.mark.parametrize(
    "config",
    [{"stop_seqs": ["x"]}, {"top_k": 5}, {"num_choices": 2}, {"top_logprobs": 3}, {"frequency_penalty": 1.0}],
)
def test_what_is_not_served_is_refused(api, config):
    with pytest.raises(ConfigError, match=f"does not heed '{next(iter(config))}'"):
        anyio.run(api.generate, [ChatMessageUser(content="hello.")], [], "none", GenerateConfig(**config))


def test_a_chat_that_does_not_fit_is_an_error_and_no_score(api):
    with pytest.raises(InputError, match="context holds"):
        anyio.run(api.generate, [ChatMessageUser(content="wug " * 3000)], [], "none", GenerateConfig())


def test_chats_are_text():
    turns = [
        ChatMessageSystem(content="be brief."),
        ChatMessageUser(content="hello."),
        ChatMessageAssistant(content="hi."),
    ]
    assert [(m.role, m.content) for m in chat_of(turns).messages] == [
        ("system", "be brief."), ("user", "hello."), ("assistant", "hi."),
    ]  # fmt: skip
    with pytest.raises(InputError, match="serves no tools"):
        chat_of([*turns, ChatMessageTool(content="4")])
    with pytest.raises(InputError, match="a part of type 'image'"):
        chat_of([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,")])])


def test_a_batch_is_what_came_together():
    batcher = Batcher(lambda numbers: [n * n for n in numbers], window=0.05, most=8)
    found = {}

    async def ask(n):
        found[n] = await batcher.result(n)

    async def every():
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(ask, n)

    anyio.run(every)
    assert found == {n: n * n for n in range(20)}
    assert sum(batcher.batches) == 20 and max(batcher.batches) == 8 and len(batcher.batches) == 3
    anyio.run(ask, 5)  # another loop
    assert batcher.batches[-1] == 1


def test_an_error_is_told_to_every_caller_and_ends_with_its_batch():
    def work(numbers):
        if 13 in numbers:
            raise ValueError("thirteen")
        return numbers

    batcher = Batcher(work, window=0.05)
    found = []

    async def ask(n):
        try:
            found.append(await batcher.result(n))
        except ValueError as error:
            found.append(str(error))

    async def every():
        async with anyio.create_task_group() as group:
            for n in (12, 13):
                group.start_soon(ask, n)

    anyio.run(every)
    anyio.run(ask, 14)
    assert found == ["thirteen", "thirteen", 14]


def test_a_cancelled_caller_takes_no_other_with_it():
    gone, batches = threading.Event(), []

    def work(numbers):
        batches.append(list(numbers))
        return numbers

    batcher = Batcher(work, window=0.2)
    found = []

    async def ask(n):
        found.append(await batcher.result(n))

    async def leave():
        with anyio.move_on_after(0.01):
            await batcher.result(0)
        gone.set()

    async def every():
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            for n in (1, 2, 3):
                group.start_soon(ask, n)

    anyio.run(every)
    assert gone.is_set() and sorted(found) == [1, 2, 3]
    assert 0 not in {n for batch in batches for n in batch}
