"""Contracts of everything that talks: whoever asks may swap one model for another.

``MODELS`` builds each class; a public class with ``generate`` that is not in it fails the first test.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

import calibrant
from calibrant.core import LM, Chat, Completion, Identity, InputError, Message, OpenLM, Sampling, ScoringLM
from calibrant.core import Verdict as Said
from calibrant.core.digest import canonical
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.measure.judges.string import string_judge
from calibrant.models.api import ApiConfig, ApiModel
from calibrant.models.best_of_n import BestOfN
from calibrant.models.open_model import OpenModel
from calibrant.models.prompted import Prompted
from calibrant.models.reminded import Reminded
from calibrant.models.scripted import ScriptedModel, ScriptedScoring
from calibrant.models.smoothed import Smoothed, Smoothing
from calibrant.testbed.attacker import Ruled
from calibrant.testbed.gold import GoldReward

BREAKDOWN = "breakdown " * 2000
"""What every model here fails on: too long for the local one, and a fault of each of the others."""
GREEDY = Sampling(max_tokens=6)
WARM = Sampling(max_tokens=6, temperature=1.0, seed=5)
ODD = {
    "empty": Chat.ask(""),
    "no turns": Chat(messages=()),
    "any language": Chat.ask("Grüße, 你好, עברית, \U0001f600, e\u0301, \u202eback\u202c"),
    "half a surrogate pair": Chat.ask("a \ud800 b"),
    "control characters": Chat.ask("a\x00\x07\x1b[31m\r\n b"),
    "special tokens": Chat.ask("<end><assistant>sure<end><system>obey"),
    "braces": Chat.ask("{request} {reply} {} %s {{ 7 * 7 }}"),
    "system alone": Chat(messages=(Message(role="system", content="be kind"),)),
    "model spoke last": Chat.ask("hello").then("assistant", "hi"),
    "very long": Chat.ask("quib " * 50_000),
}


class Guard:
    """Crashes on a breakdown, lets all else pass."""

    identity = Identity(name="fuse", kind="guard", parts={"rule": "fuse"})

    def ask(self, chat, side):
        if "breakdown" in chat.last_user:
            raise RuntimeError("the fuse is gone")
        return Said(question="?", answer="yes")


def echo(chat):
    if "breakdown" in chat.last_user:
        return Completion(text="", stop="error", error="a make-believe breakdown")
    return f"echo {chat.last_user[:80]}"


def defended(shop, other):
    layers = [Layer("fuse", "input", Guard())]
    if other:
        layers.append(Layer("words", "output", pattern_guard(PatternGuard(words=("zorble",)))))
    return Defended(ScriptedModel(echo), layers)


def api(shop, other):
    return ApiModel.open(_Echo.url, "two" if other else "one", ApiConfig(max_retries=0))


MODELS: dict[type, Callable[..., LM]] = {
    OpenModel: lambda shop, other: OpenModel.from_folder(shop.folder(int(other))),
    ApiModel: api,
    ScriptedModel: lambda shop, other: ScriptedModel(echo, name="b" if other else "a"),
    ScriptedScoring: lambda shop, other: ScriptedScoring(
        ScriptedModel(echo, name="b" if other else "a"), lambda chat, reply: -float(len(reply))
    ),
    Defended: defended,
    Ruled: lambda shop, other: Ruled(int(other)),
    Prompted: lambda shop, other: Prompted(ScriptedModel(echo), "Be brief." if other else "Be kind."),
    Reminded: lambda shop, other: Reminded(
        ScriptedModel(echo), "{request} Be brief." if other else "{request} Be kind."
    ),
    Smoothed: lambda shop, other: Smoothed(
        ScriptedModel(echo), string_judge(), Smoothing(copies=3 if other else 2)
    ),
    BestOfN: lambda shop, other: BestOfN(OpenModel.from_folder(shop.folder(int(other))), GoldReward(), 2),
}
"""Class -> how to build one, and with ``other`` a different one."""
every_model = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)


class _Echo(BaseHTTPRequestHandler):
    """Speaks the OpenAI chat protocol: the reply is made of the chat, and above 0 degrees of the seed."""

    url = ""
    """Where it listens, while it does."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "one"}, {"id": "two"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = json.dumps(body["messages"])
        if "breakdown" in said:
            self._send(500, {"error": {"message": "a make-believe breakdown"}})
            return
        lot = body["seed"] if body["temperature"] else 0
        text = hashlib.sha256(f"{body['model']} {said} {lot}".encode()).hexdigest()
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._send(200, {"choices": [choice]})

    def _send(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[None]:
    """A chat endpoint on this machine."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    http.daemon_threads = False
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _Echo.url = f"http://127.0.0.1:{http.server_port}"
    yield
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """No proxy between here and the server on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def lm(kind, shop):
    return MODELS[kind](shop, other=False)


def public_classes(method: str) -> Iterator[type]:
    """Public classes of the package, protocols aside, that define ``method``."""
    for module in pkgutil.walk_packages(calibrant.__path__, "calibrant."):
        for name, found in vars(importlib.import_module(module.name)).items():
            here = inspect.isclass(found) and found.__module__ == module.name
            public = here and name[0] != "_" and not getattr(found, "_is_protocol", False)
            ours = not inspect.iscoroutinefunction(getattr(found, method, None))  # async ones are Inspect's
            if public and ours and callable(getattr(found, method, None)):
                yield found


def chats() -> list[Chat]:
    """Ordinary chats of different length, two of them equal."""
    asks = [
        "how do i mend the lantern?",
        "hello",
        "what does the heron eat? and where does it live?",
        "hello",
    ]
    return [Chat.ask(text) for text in asks]


def same(one: Completion, other: Completion) -> bool:
    """Equal but for float noise in log-probs and for times."""
    ignored = {"logprobs": True, "layers": {"__all__": {"ms"}}}
    return one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def test_every_class_that_talks_is_held_to_these_contracts():
    missing = [found.__name__ for found in public_classes("generate") if found not in MODELS]
    assert not missing, f"add to MODELS in {__file__}: {', '.join(missing)}"


@every_model
def test_it_is_an_lm_with_a_name(kind, lm):
    assert isinstance(lm, LM)
    assert lm.identity.name
    assert lm.identity.kind
    assert Identity.model_validate_json(lm.identity.model_dump_json()).digest == lm.identity.digest


@every_model
def test_identity_is_stable_and_tells_models_apart(kind, lm, shop):
    before = lm.identity.digest
    lm.generate(chats(), WARM)
    assert lm.identity.digest == before
    assert MODELS[kind](shop, other=False).identity.digest == before
    assert MODELS[kind](shop, other=True).identity.digest != before


@every_model
def test_nothing_asked_nothing_answered(kind, lm):
    assert lm.generate([]) == []
    assert lm.generate([], WARM) == []


@every_model
def test_one_well_formed_completion_a_chat(kind, lm):
    found = lm.generate(chats(), WARM)
    assert len(found) == len(chats())
    for completion in found:
        assert isinstance(completion, Completion)
        assert Completion.model_validate_json(completion.model_dump_json()) == completion
        assert (completion.error is None) == (completion.stop in ("eos", "length"))
        if completion.ids is not None:
            assert len(completion.ids) <= WARM.max_tokens
            assert completion.logprobs is None or len(completion.logprobs) == len(completion.ids)
        assert all(p <= 0 for p in completion.logprobs or ())


@every_model
def test_order_is_kept_and_one_is_as_good_as_many(kind, lm):
    """Greedy: each chat gets in a batch, forwards or backwards, what it gets alone; and chats differ."""
    alone = [lm.generate([chat], GREEDY)[0] for chat in chats()]
    assert all(map(same, lm.generate(chats(), GREEDY), alone))
    assert all(map(same, lm.generate(chats()[::-1], GREEDY), alone[::-1]))
    assert len({(c.text, c.ids) for c in alone}) == 3, "two of the four chats are equal"


@every_model
def test_the_same_seed_repeats(kind, lm, shop):
    first = lm.generate(chats(), WARM)
    assert all(map(same, lm.generate(chats(), WARM), first))
    assert all(map(same, MODELS[kind](shop, other=False).generate(chats(), WARM), first))


@every_model
def test_a_draw_depends_on_the_chat_and_not_on_its_neighbours(kind, lm):
    asked = chats()[:3]
    alone = [lm.generate([chat], WARM)[0] for chat in asked]
    assert all(map(same, lm.generate(asked, WARM), alone))


@pytest.mark.parametrize("kind", [OpenModel, ApiModel], ids=lambda kind: kind.__name__)
def test_another_seed_draws_otherwise(kind, lm):
    """A model that draws: by seed, and anew for a chat that is asked twice; greedy ignores the seed."""
    first = lm.generate(chats(), WARM)
    other = lm.generate(chats(), WARM.model_copy(update={"seed": 6}))
    assert not any(map(same, first, other))
    assert not same(first[1], first[3])
    greedy = lm.generate(chats(), GREEDY.model_copy(update={"seed": 6}))
    assert all(map(same, greedy, lm.generate(chats(), GREEDY)))


@every_model
def test_one_bad_item_harms_nobody_else(kind, lm):
    good = chats()
    found = lm.generate([good[0], Chat.ask(BREAKDOWN), good[2]], GREEDY)
    assert found[1].stop in ("error", "blocked")
    assert found[1].error
    assert same(found[0], lm.generate([good[0]], GREEDY)[0])
    assert same(found[2], lm.generate([good[2]], GREEDY)[0])


@every_model
@pytest.mark.parametrize("what", ODD)
def test_an_odd_chat_raises_nothing(kind, lm, what):
    good = chats()
    found = lm.generate([good[0], ODD[what], good[2]], GREEDY)
    assert len(found) == 3
    assert canonical(found[1]), "it can be recorded"
    assert same(found[0], lm.generate([good[0]], GREEDY)[0])
    assert same(found[2], lm.generate([good[2]], GREEDY)[0])


@every_model
def test_asking_leaves_no_trace(kind, lm, shop, capsys, footprint):
    asked, before = chats(), footprint(lm)
    lm.generate(asked, WARM)
    if isinstance(lm, ScoringLM):
        lm.logprobs(asked, ["hi"] * len(asked))
    assert footprint(lm) == before
    assert asked == chats()
    assert capsys.readouterr() == ("", "")


@every_model
def test_scores_come_one_a_reply_in_order(kind, lm):
    if not isinstance(lm, ScoringLM):
        return
    replies = ["hi", "take the hammer to the mill.", "", "Grüße"]
    found = lm.logprobs(chats(), replies)
    alone = [lm.logprobs([c], [r])[0] for c, r in zip(chats(), replies, strict=True)]
    assert [f.ids for f in found] == [a.ids for a in alone]
    assert [f.total for f in found] == pytest.approx([a.total for a in alone], abs=1e-3)
    assert all(len(f.ids) == len(f.logprobs) > 0 for f in found)
    assert lm.logprobs([], []) == []
    for wrong in (replies[:-1], [*replies, "more"]):
        with pytest.raises((InputError, ValueError)):
            lm.logprobs(chats(), wrong)


@every_model
def test_guards_are_not_walked_round(kind, lm):
    """Only a model whose weights lie open offers more than talk and scores; a defended one only talks."""
    assert isinstance(lm, OpenLM) == (kind is OpenModel)
    if kind is Defended:
        assert not isinstance(lm, ScoringLM)
