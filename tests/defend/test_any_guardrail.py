"""The adapter of any-guardrail, against a stand-in of that package: nothing but a clear yes passes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from calibrant.app.guarding import opened_stack
from calibrant.app.references.openers import Openers
from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    Guard,
    InputError,
    Message,
    resolve,
)
from calibrant.defend.any_guardrail import AnyGuardrail, any_guardrail
from calibrant.defend.defended import Defended, Layer
from calibrant.ledger import Ledger
from calibrant.models.scripted import ScriptedModel

FAKE = Path(__file__).parent / "fake_peer"
ASKED = Chat.ask("may i?").then("assistant", "so it is.")


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKE))


@pytest.fixture
def made():
    """Guards, whose processes end with the test."""
    guards = []

    def make(mode="words", guardrail="deepset", settings=None, **config):
        config = {"revision": "unpinned", **config}
        settings = {"mode": mode, **(settings or {})}
        guards.append(any_guardrail(AnyGuardrail(guardrail=guardrail, settings=settings, **config)))
        return guards[-1]

    yield make
    for guard in guards:
        guard._peer.close()


def answers(guard, texts, side="input"):
    return [one.answer for one in guard.ask([Chat.ask(text) for text in texts], side)]


def test_planted_and_null(made):
    guard = made()
    assert isinstance(guard, Guard)
    assert answers(guard, ["bring the zorble", "bring the loaf", "zorble"]) == ["no", "yes", "no"]
    chats = [Chat.ask("so?").then("assistant", text) for text in ("a zorble", "a loaf")]
    assert [one.answer for one in guard.ask(chats, "output")] == ["no", "yes"]
    system = Defended(ScriptedModel(lambda chat: "so"), [Layer("peer", "input", guard)])
    assert [r.stop for r in system.generate([Chat.ask("zorble?"), Chat.ask("loaf?")])] == ["blocked", "eos"]
    assert guard.ask([], "input") == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", "unknown"),
        ("text", "unknown"),
        ("one", "unknown"),
        ("no score", "unknown"),
        ("nan", "unknown"),
        ("nan, invalid", "unknown"),
        ("inf", "unknown"),
        ("percent", "unknown"),
        ("negative", "unknown"),
        ("true score", "unknown"),
        ("worded score", "unknown"),
        ("list", "unknown"),
        ("unparsed", "unknown"),
        ("unparsed, valid", "unknown"),
        ("rewritten", "unknown"),
        ("nothing", "unknown"),
        ("no json", "unknown"),
        ("raise", "unknown"),
        ("ask", "unknown"),  # what it reads from the keyboard is empty: an EOFError
        ("print", "yes"),  # what it prints is no answer, and spoils none
    ],
)
def test_a_peer_that_is_not_clear_is_unknown(made, mode, expected):
    guard = made(mode)
    first = guard.ask([Chat.ask("a loaf")], "input")[0]
    assert first.answer == expected
    assert first.reason
    assert guard.ask([Chat.ask("a loaf")], "input")[0] == first


@pytest.mark.parametrize("mode", ["die", "crash", "exit", "noise", "endless", "no load", "exit on load"])
def test_a_process_that_misbehaves_fails_the_guard_and_blocks(made, mode):
    guard = made(mode)
    with pytest.raises(CapabilityError, match=r"died|no answer|can not load it: ValueError: Only supports"):
        guard.ask([Chat.ask("a loaf")], "input")
    reply = Defended(ScriptedModel(["so"]), [Layer("peer", "input", guard)]).generate([Chat.ask("a loaf")])[0]
    assert (reply.stop, reply.layers[0].verdict.answer, reply.layers[0].status) == (
        "blocked",
        "unknown",
        "failed",
    )


def test_a_process_that_hangs_is_killed_and_blocks(made):
    guard = made("sleep", timeout=2.0)
    with pytest.raises(CapabilityError, match="gave no answer within 2 s"):
        guard.ask([Chat.ask("a loaf")], "input")
    assert guard._peer._process is None


def test_a_process_that_was_killed_is_replaced(made):
    guard = made()
    assert answers(guard, ["a loaf"]) == ["yes"]
    first = guard._peer._process
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with pytest.raises(CapabilityError, match="died"):
        guard.ask([Chat.ask("a loaf")], "input")
    assert answers(guard, ["a loaf", "a zorble"]) == ["yes", "no"]
    second = guard._peer._process
    guard._peer.close()
    assert second.poll() is not None


def test_an_answer_to_another_question_is_no_answer(made, monkeypatch):
    """A stale line, as one from before an interrupt, is not taken for the next text's verdict."""
    guard = made()
    assert answers(guard, ["a loaf"]) == ["yes"]
    pipe = guard._peer._process.stdin
    pipe.write(b'{"id": "stale", "do": "validate", "text": "a loaf", "reply": null}\n')
    pipe.flush()
    with pytest.raises(CapabilityError, match="no answer"):
        guard.ask([Chat.ask("a zorble")], "input")


def test_threads_get_the_verdicts_of_their_own_texts(made):
    guard, found = made(), {}
    texts = [f"{'zorble' if n % 3 else 'loaf'} {n}" for n in range(24)]

    def ask(text):
        found[text] = answers(guard, [text])[0]

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: "no" if "zorble" in text else "yes" for text in texts}


@pytest.mark.parametrize(
    "limits", [{"limit": 12}, {"limit": 10**30, "table": 14}, {"limit": 12, "table": 512}]
)
@pytest.mark.parametrize("place", [0, 9, 10, 11, 137, 399])
def test_nothing_is_truncated_where_the_peer_truncates_silently(made, limits, place):
    words = ["loaf"] * 400
    words[place] = "zorble"
    text = " ".join(words)
    guard = made(settings=limits, chunk=300, overlap=60, most=200)
    assert answers(guard, [text, " ".join(["loaf"] * 400)]) == ["no", "yes"]
    said = guard.ask([Chat.ask("so?").then("assistant", text)], "output")[0]
    assert said.answer == "no"


@pytest.mark.parametrize("words", range(8, 16))
def test_a_text_is_as_long_as_the_model_takes_and_no_longer(made, words):
    guard = made(settings={"table": 14})  # two of whose places no token takes: more is an IndexError
    assert answers(guard, ["loaf " * words, "loaf " * words + "zorble"]) == ["yes", "no"]


def test_a_passage_as_long_as_the_overlap_stands_whole_in_a_chunk(made):
    guard = made(settings={"limit": 512}, chunk=40, overlap=12, most=200)
    for start in range(60):
        assert answers(guard, ["y" * start + " zorble " + "y" * 50]) == ["no"]


def test_without_a_tokenizer_a_long_text_is_unknown(made):
    for settings in ({"tokenizer": False, "limit": 12}, {}):
        guard = made(settings=settings, longest=50)
        assert answers(guard, ["a loaf", "a zorble", "loaf " * 11]) == ["yes", "no", "unknown"]
    hosted = made(guardrail="hosted", longest=50)
    assert answers(hosted, ["a loaf", "loaf " * 11]) == ["yes", "unknown"]


def test_a_chat_of_too_many_parts_is_unknown(made):
    guard = made(settings={"limit": 12}, chunk=20, overlap=0, most=4)
    assert answers(guard, ["loaf " * 10, "loaf " * 10_000]) == ["yes", "unknown"]
    assert "more than 4 parts" in guard.ask([Chat.ask("loaf " * 10_000)], "input")[0].reason
    impossible = made(settings={"limit": 2})
    assert answers(impossible, ["loaf"]) == ["unknown"]


def test_every_message_and_view_is_read(made):
    guard = made(views=("rot13",))
    for place in range(3):
        turns = [Message(role=role, content="hello") for role in ("system", "user", "assistant")]
        turns[place] = turns[place].model_copy(update={"content": "bring the zorble"})
        assert guard.ask([Chat(messages=tuple(turns))], "input")[0].answer == "no"
    assert answers(guard, ["mbeoyr", "ybns"]) == ["no", "yes"]
    assert answers(made(), ["mbeoyr", "zor\u200bble"]) == ["yes", "no"]


def test_a_reply_beside_its_request(made):
    guard = made(guardrail="pair", reply="beside the request", settings={"limit": 20})
    long = "loaf " * 40
    for before, reply, expected in (
        ("a loaf", "a zorble", "no"),
        ("a zorble", "a loaf", "no"),
        ("a loaf", "a loaf", "yes"),
        (long, f"{long} zorble", "no"),
        (f"zorble {long}", long, "no"),
        (long, long, "yes"),
    ):
        assert guard.ask([Chat.ask(before).then("assistant", reply)], "output")[0].answer == expected
    alone = Chat(messages=(Message(role="assistant", content="a loaf"),))
    assert guard.ask([alone], "output")[0].answer == "yes"
    few = made(guardrail="pair", reply="beside the request", settings={"limit": 20}, most=8)
    assert few.ask([Chat.ask(long).then("assistant", long)], "output")[0].answer == "unknown"
    other = made(reply="beside the request")  # a guardrail without a place for the reply
    assert other.ask([ASKED], "output")[0].answer == "unknown"


def test_the_side_that_the_guardrail_does_not_read_is_unknown(made):
    replies, requests = made(guardrail="replies"), made(guardrail="hosted")
    assert replies.ask([ASKED], "output")[0].answer == "yes"
    assert replies.ask([ASKED], "input")[0].answer == "unknown"
    assert "reads input" in requests.ask([ASKED], "output")[0].reason
    for chat in (Chat.ask("hello"), Chat(messages=())):
        assert replies.ask([chat], "output")[0].answer == "unknown"
    with pytest.raises(InputError, match="no side 'sideways'"):
        replies.ask([ASKED], "sideways")


def test_a_reply_that_was_cut_does_not_count_as_valid(made):
    """any-guardrail PR 249; its 0.7.7 calls whatever has no 'unsafe' in it valid, of Llama Guard."""
    guard = made(guardrail="llama_guard", safe_reply="safe")
    cut, safe, unsafe = guard.ask([Chat.ask(text) for text in ("long", "safe", "bad")], "input")
    assert [cut.answer, safe.answer, unsafe.answer] == ["unknown", "yes", "no"]
    assert "valid = True" in cut.reason
    assert "ends too early" in cut.reason
    assert answers(made(guardrail="llama_guard"), ["safe"]) == ["unknown"]
    assert answers(made("no score", safe_reply="safe"), ["loaf", "zorble"]) == ["yes", "no"]
    assert answers(made("no score", safe_reply="saf"), ["loaf"]) == ["unknown"]


def test_a_threshold_blocks_more_and_never_less(made):
    assert answers(made(threshold=0.1), ["loaf", "zorble"]) == ["no", "no"]
    assert answers(made(threshold=0.11), ["loaf", "zorble"]) == ["yes", "no"]
    assert answers(made(threshold=1.0), ["loaf", "zorble"]) == ["yes", "no"]


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "a \ud800 b", "\x00", "{} %s", "y" * 100_000])
def test_odd_texts_get_a_verdict(made, text):
    guard = made(settings={"limit": 512}, most=100)
    blank = not text.strip(" \n\u200b\x00")
    said = guard.ask([Chat.ask(text)], "input")[0]
    assert said.answer == ("unknown" if blank else "yes")


def test_the_model_is_the_one_that_is_asked_for(made, tmp_path):
    (tmp_path / "config.json").write_text("{}")

    def loaded(**config):
        said = made("seen", **config)._peer.ask(do="validate", text="a", reply=None)
        return said["explanation"]

    assert loaded(model_id="own/model") == "own/model@None {}"
    assert loaded(revision="abc", arguments={"policy": "no"}) == "first@abc {'policy': 'no'}"
    assert loaded(folder=str(tmp_path)) == f"{tmp_path}@None {{}}"
    for pinned in ({"folder": str(tmp_path)}, {"revision": "abc"}):
        with pytest.raises(CapabilityError, match="neither folder nor revision counts"):
            made(guardrail="hosted", **pinned).ask([Chat.ask("a")], "input")


def test_the_identity_is_of_the_bytes_and_the_packages(made, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    guard = made(folder=str(one))
    first = guard.identity
    assert first.digest == made(folder=str(other)).identity.digest
    assert first.parts["package any-guardrail"] == "0.7.7"
    assert {"guardrail", "config", "model", "package torch", "package python"} <= first.parts.keys()
    (one / "config.json").write_text("{ }")
    assert made(folder=str(one)).identity.digest != first.digest
    with pytest.raises(CapabilityError, match="another model than before"):
        guard.ask([Chat.ask("a loaf")], "input")
    assert made(model_id="a").identity.digest != made(model_id="b").identity.digest
    assert made(revision="a").identity.digest != made(revision="b").identity.digest


def test_packages_that_changed_since_the_guard_was_made_fail_it(made, monkeypatch):
    guard = made()
    monkeypatch.setitem(guard._versions, "any-guardrail", "0.7.6")
    with pytest.raises(CapabilityError, match="other packages than before"):
        guard.ask([Chat.ask("a loaf")], "input")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "'guardrail' is required"),
        ({"guardrail": "deepset"}, "nothing says which model it is"),
        ({"guardrail": " ", "revision": "a"}, "'guardrail' is required"),
        ({"guardrail": "a", "revision": "a", "overlap": 1500}, "more than half of 'chunk'"),
        ({"guardrail": "a", "revision": "a", "threshold": float("nan")}, "threshold"),
        ({"guardrail": "a", "revision": "a", "settings": {"x": float("nan")}}, "'x' is nan"),
        ({"guardrail": "a", "revision": "a", "settings": {"model_id": "x"}}, "does not belong here"),
        ({"guardrail": "a", "revision": "a", "arguments": {"x": [1]}}, "arguments"),
        ({"guardrail": "a", "revison": "a"}, "did you mean 'revision'"),
    ],
)
def test_bad_settings_are_refused_by_name(config, why):
    with pytest.raises(ConfigError, match=why):
        any_guardrail(resolve(AnyGuardrail, config))


def test_an_environment_without_the_package_is_refused(monkeypatch, tmp_path):
    for python in ("no-such-python", "/bin/false", str(tmp_path)):
        with pytest.raises(ConfigError, match="does not run"):
            any_guardrail(AnyGuardrail(guardrail="deepset", revision="a", python=python))
    with pytest.raises(ConfigError, match="there is no folder"):
        any_guardrail(AnyGuardrail(guardrail="deepset", folder=str(tmp_path / "none")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "def version(name, old=m.version):\n"
        "    if name == 'any-guardrail': raise m.PackageNotFoundError(name)\n"
        "    return old(name)\n"
        "m.version = version\n"
    )
    with pytest.raises(ConfigError, match="has no package any-guardrail"):
        any_guardrail(AnyGuardrail(guardrail="deepset", revision="a"))


def test_a_stack_file_names_it(tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text(
        '[[layer]]\nname = "peer"\nside = "input"\n[layer.guard]\nuse = "defend.any_guardrail"\n'
        f'config = {{ guardrail = "deepset", revision = "unpinned", python = "{sys.executable}" }}\n'
    )
    _, layers = opened_stack(str(file), Openers(Ledger(tmp_path / "ledger"), base=tmp_path))
    system = Defended(ScriptedModel(lambda chat: "so"), layers)
    replies = system.generate([Chat.ask("zorble?"), Chat.ask("loaf?")])
    assert [reply.stop for reply in replies] == ["blocked", "eos"]
    layers[0].guard._peer.close()
