"""ApiModel against a real HTTP server on this machine, with every fault that servers show in the wild."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from api_stub import (
    KEY,
    Answer,
    Server,
    as_json,
    drop,
    in_turn,
    model_at,
    patient,
    raw,
    reply,
    say,
    status,
    trickle,
)  # fmt: skip

from calibrant.core import LM, Chat, Completion, InputError, OpenLM, Sampling, ScoringLM, Verdict, outcome_of
from calibrant.measure._rates import reply_caveats
from calibrant.models.api import ApiConfig, ApiModel, read_reply
from calibrant.models.endpoint import endpoint_url, retry_after
from calibrant.models.seeds import item_seeds


def test_is_an_lm_and_nothing_more(server: Server) -> None:
    model = model_at(server)
    assert isinstance(model, LM)
    assert not isinstance(model, ScoringLM) and not isinstance(model, OpenLM)
    assert model.generate([]) == []
    assert server.bodies == []


def test_sends_what_was_asked(server: Server) -> None:
    chat = Chat.ask("name a colour", system="be brief").then("assistant", "red").then("user", "another")
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, seed=3)
    (completion,) = model_at(server).generate([chat], sampling)
    assert (completion.text, completion.stop, completion.ids) == ("hi", "eos", None)
    (body,) = server.bodies
    assert body["messages"] == [m.model_dump() for m in chat.messages]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("toy", 7, 0.5, 0.9)
    assert body["seed"] == item_seeds([chat], 3)[0]
    assert "logprobs" not in body and server.keys == [None]
    model_at(server, limit_key="max_completion_tokens", logprobs=True).generate([chat], sampling)
    assert server.bodies[1]["max_completion_tokens"] == 7 and "max_tokens" not in server.bodies[1]
    assert server.bodies[1]["logprobs"] is True


def test_order_is_kept_and_concurrency_is_bounded(server: Server) -> None:
    lock, under_way, seen = threading.Lock(), set[str](), [0]

    def echo(handler: BaseHTTPRequestHandler, body: Any) -> None:
        text = body["messages"][-1]["content"]
        with lock:
            under_way.add(text)
            seen.append(len(under_way))
        time.sleep(0.03 if int(text) % 3 == 0 else 0.005)  # answers overtake each other
        with lock:
            under_way.remove(text)  # before the client can see the answer and ask again
        say(text)(handler, body)

    server.answer = echo
    chats = [Chat.ask(str(i)) for i in range(24)]
    texts = [c.text for c in model_at(server, concurrency=4).generate(chats)]
    assert texts == [str(i) for i in range(24)]
    assert 2 <= max(seen) <= 4
    seen.clear()
    model_at(server, concurrency=1).generate(chats[:4])
    assert max(seen) == 1


def test_seeds_belong_to_the_item_and_not_to_its_place() -> None:
    a, b = Chat.ask("a"), Chat.ask("b")
    first, second, third = item_seeds([a, b, a], 0)
    assert len({first, second, third}) == 3
    assert item_seeds([b, a, a], 0) == [second, first, third]
    assert item_seeds([a], 1) != [first]
    assert all(0 <= seed < 2**31 for seed in item_seeds([a] * 100, 5))


@pytest.mark.parametrize(
    ("reason", "stop"), [("stop", "eos"), ("length", "length"), ("content_filter", "length")]
)
def test_finish_reasons(reason: str, stop: str) -> None:
    completion = read_reply(reply("words", reason))
    assert (completion.text, completion.stop) == ("words", stop)


@pytest.mark.parametrize("reason", [None, "tool_calls", ["stop"], 3])
def test_unknown_finish_reason_is_an_error_that_keeps_the_text(reason: object) -> None:
    completion = read_reply(reply("words", reason))
    assert (completion.text, completion.stop) == ("words", "error")
    assert "finish_reason" in (completion.error or "")


def test_a_refusal_field_is_a_reply_and_a_silent_filter_is_blocked() -> None:
    refused = reply(None)
    refused["choices"][0]["message"]["refusal"] = "I would rather not."
    assert read_reply(refused).text == "I would rather not."
    for text in (None, "", " "):
        assert read_reply(reply(text, "content_filter")).stop == "blocked"


def test_what_comes_through_a_content_filter_is_a_reply_that_was_cut() -> None:
    """It counted as blocked, whatever it said: a server that answers and then says so never complied."""
    found = read_reply(reply("take the kettle", "content_filter"))
    assert (found.text, found.stop) == ("take the kettle", "length")
    assert outcome_of(found, Verdict(question="?", answer="yes")) == "success"
    assert "1 of 2 replies were cut by a content filter" in reply_caveats([found, Completion(text="x")], 9)[0]


def test_logprobs_are_mapped_or_none() -> None:
    def got(*values: object) -> object:
        content = [{"token": "t", "logprob": v} for v in values]
        return read_reply(reply(logprobs={"content": content})).logprobs

    assert got(-0.5, -2, 0) == (-0.5, -2.0, 0.0)
    for bad in (None, "x", float("nan"), float("-inf"), 10**400):
        assert got(-0.5, bad) is None
    assert got() is None
    for odd in (None, {}, [], {"content": None}, {"content": ["t"]}):
        assert read_reply(reply(logprobs=odd)).logprobs is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (raw(b'{"choices": [{"mess'), "not JSON"),
        (raw(b"<html><h1>Welcome</h1></html>"), "not JSON: <html>"),
        (raw(b"\xff\xfe\x00"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw(b"[" * 900 + b"]" * 900), "no choices"),
        (as_json({"id": "x"}), "no choices"),
        (as_json({"choices": []}), "no choices"),
        (as_json({"choices": [{"text": "old protocol"}]}), "no choices"),
        (as_json({"choices": [{"message": None, "finish_reason": "stop"}]}), "no choices"),
        (as_json([1]), "no choices"),
        (as_json(None), "no choices"),
        (as_json({"error": {"message": "upstream is away"}}), "upstream is away"),
        (say(""), "empty"),
        (say(None), "empty"),
        (say([{"type": "text"}]), "no text"),
        (status(400, "bad request"), "HTTP 400: bad request"),
        (status(302, location="http://127.0.0.1:1/"), "HTTP 302"),
        (raw(b"no", 200, content_encoding="gzip"), "DecodingError"),
        (raw(b"\x00" * 10, 401), "HTTP 401"),
        (
            status(403, "no"),
            "HTTP 403: no (no key was sent; commands read it from $CALIBRANT_API_KEY_127_0_0_1_",
        ),
    ],
)
def test_a_bad_answer_is_an_error_for_that_item_alone(server: Server, answer: Answer, says: str) -> None:
    def one_bad(handler: BaseHTTPRequestHandler, body: Any) -> None:
        (answer if body["messages"][-1]["content"] == "bad" else say("fine"))(handler, body)

    server.answer = one_bad
    good, bad, also = model_at(server, max_retries=1).generate(
        [Chat.ask("good"), Chat.ask("bad"), Chat.ask("also")]
    )
    assert (good.text, also.text) == ("fine", "fine")
    assert (bad.text, bad.stop) == ("", "error")
    assert says in (bad.error or "")
    assert len(bad.error or "") < 400


def test_lone_surrogates_do_not_reach_the_record(server: Server) -> None:
    server.answer = raw(json.dumps(reply("a\ud800b")).encode())
    (completion,) = model_at(server).generate([Chat.ask("x")])
    assert completion.text == "a?b"


def test_a_compressed_answer_is_read_and_a_huge_one_is_not(server: Server) -> None:
    server.answer = raw(gzip.compress(json.dumps(reply("small")).encode()), content_encoding="gzip")
    assert model_at(server).generate([Chat.ask("x")])[0].text == "small"
    server.answer = raw(gzip.compress(b" " * (17 * 2**20)), content_encoding="gzip")
    assert "larger than" in (model_at(server).generate([Chat.ask("x")])[0].error or "")


@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), status(408), raw(b"<html>502</html>", 502), drop]
)
def test_passing_faults_are_tried_again(server: Server, fault: Answer) -> None:
    waits: list[float] = []
    server.answer = in_turn(fault, fault, say("at last"))
    (completion,) = model_at(server, waits, max_retries=2).generate([Chat.ask("x")])
    assert completion.text == "at last"
    assert waits == [0.5, 1.0]
    assert [b["seed"] for b in server.bodies] == [server.bodies[0]["seed"]] * 3


def test_a_cut_body_is_tried_again(server: Server) -> None:
    server.answer = in_turn(raw(b'{"cho', content_length="500"), say("whole"))
    assert model_at(server).generate([Chat.ask("x")])[0].text == "whole"


def test_lasting_faults_end_after_max_retries(server: Server) -> None:
    server.answer = status(503, "busy")
    (completion,) = model_at(server, max_retries=2).generate([Chat.ask("x")])
    assert completion.error == "HTTP 503: busy (after 3 tries)"
    server.bodies.clear()
    server.answer = status(400)
    model_at(server, max_retries=2).generate([Chat.ask("x")])
    assert len(server.bodies) == 1  # the request itself is wrong: the same again is wrong too


def test_full_jitter_doubles_up_to_the_longest_wait(server: Server) -> None:
    """Upper limits .5, 1, 2, 3, 3 (backoff .5, max_wait 3); jitter .25 takes a quarter of each."""
    server.answer = status(500)
    waits: list[float] = []
    config = ApiConfig(max_retries=5, max_wait=3.0)
    ApiModel.open(server.url, "toy", config, patient(waits, 0.25)).generate([Chat.ask("x")])
    assert waits == [0.125, 0.25, 0.5, 0.75, 0.75]


def test_retry_after_is_honoured_or_given_up(server: Server) -> None:
    waits: list[float] = []
    server.answer = in_turn(status(429, retry_after="7"), say("thanks"))
    assert model_at(server, waits).generate([Chat.ask("x")])[0].text == "thanks"
    assert waits == [7.0]
    server.answer = status(429, retry_after="3600")
    (late,) = model_at(server, waits).generate([Chat.ask("x")])
    assert "asks to wait 3600 s" in (late.error or "") and waits == [7.0]


def test_retry_after_as_a_date_is_read_against_the_servers_clock() -> None:
    date, later = "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:09 GMT"
    assert retry_after({"retry-after": later, "date": date}) == 9.0
    assert retry_after({"retry-after": date, "date": later}) == 0.0
    assert retry_after({"retry-after": "9" * 5_000}) == retry_after({"retry-after": "1" + "0" * 400}) == 1e9
    far = later.replace("20", "9" * 30, 1)
    assert retry_after({"retry-after": far, "date": date}) is None
    for useless in ({}, {"retry-after": later}, {"retry-after": "soon"}, {"retry-after": "-3"}):
        assert retry_after(useless) is None


def test_a_slow_body_ends_at_the_time_limit(server: Server) -> None:
    server.answer = trickle
    (completion,) = model_at(server, timeout=0.2, max_retries=0).generate([Chat.ask("x")])
    assert "ReadTimeout" in (completion.error or "") and completion.stop == "error"


def test_a_silent_server_ends_at_the_time_limit(server: Server) -> None:
    server.answer = lambda handler, body: time.sleep(0.4)
    (completion,) = model_at(server, timeout=0.1, max_retries=0).generate([Chat.ask("x")])
    assert "ReadTimeout" in (completion.error or "")


def test_request_budget_is_checked_before_each_call(server: Server) -> None:
    model = model_at(server, max_requests=3, concurrency=1)
    done = model.generate([Chat.ask(str(i)) for i in range(5)])
    assert [c.stop for c in done] == ["eos"] * 3 + ["error"] * 2
    assert (done[4].error or "").startswith("budget: 3 requests made")
    assert len(server.bodies) == 3
    model.generate([Chat.ask("later")])
    assert len(server.bodies) == 3  # the budget is for the life of the object


def test_retries_count_as_requests(server: Server) -> None:
    server.answer = status(500, "down")
    (completion,) = model_at(server, max_requests=2).generate([Chat.ask("x")])
    assert len(server.bodies) == 2
    assert (completion.error or "").startswith("budget: 2 requests") and "down" in (completion.error or "")


@pytest.mark.parametrize("concurrency", [1, 8])
def test_token_budget_uses_the_servers_count(server: Server, concurrency: int) -> None:
    """Limit 100, at most 30 a reply, 10 really used: 8 calls (0, 10, .. 70 used before) fit, the ninth
    could reach 110. With eight at once the answer is the same, since a call waits for those under way."""
    server.answer = say("hi", usage=10)
    model = model_at(server, max_tokens=100, concurrency=concurrency)
    done = model.generate([Chat.ask(str(i)) for i in range(12)], Sampling(max_tokens=30))
    assert sum(c.stop == "eos" for c in done) == 8 == len(server.bodies)
    assert all("budget: 80 tokens used" in (c.error or "") for c in done if c.stop == "error")


@pytest.mark.parametrize(
    ("fault", "calls"),
    [(say("no count"), 3), (say("x", usage=10**30), 3), (say(""), 3), (drop, 3), (status(400), 9)],
)
def test_tokens_that_nobody_counted_cost_the_most(server: Server, fault: Answer, calls: int) -> None:
    """Limit 100, at most 30 a reply: three uncounted replies fit; a refused request costs nothing."""
    server.answer = fault
    model = model_at(server, max_tokens=100, concurrency=1, max_retries=0)
    model.generate([Chat.ask(str(i)) for i in range(9)], Sampling(max_tokens=30))
    assert len(server.bodies) == calls


def test_the_key_is_read_at_call_time_and_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    config = ApiConfig(api_key_env="TOY_KEY")
    model = ApiModel.open(server.url, "toy", config, patient())
    monkeypatch.setenv("TOY_KEY", KEY + "-new")
    model.generate([Chat.ask("x")])
    assert server.keys == [f"Bearer {KEY}-new"]
    monkeypatch.setenv("TOY_KEY", KEY)
    for fault in (
        status(401, f"key {KEY} is not valid"),
        raw(f"{'x' * 190} {KEY}".encode(), 403),  # cut in the middle of the key
        as_json({"error": f"no {KEY}"}),
        say("text", f"no {KEY}"),
        raw(f"no {KEY}".encode()),
    ):
        server.answer = fault
        (completion,) = model.generate([Chat.ask("x")])
        assert completion.stop == "error"
        assert KEY[:12] not in (completion.error or "")
        assert ("the key in $TOY_KEY was sent" in (completion.error or "")) == ("HTTP 40" in completion.error)
    shown = repr(model) + model.identity.model_dump_json() + config.model_dump_json()
    assert KEY not in shown


def test_a_server_that_sends_the_key_back_gets_it_struck(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    for text in (f"You sent: Bearer {KEY}", f"{b64encode(f'Bearer {KEY}'.encode()).decode()} is yours"):
        for answer in (say(text), say(text, "content_filter"), as_json({"error": {"message": text}}, 400)):
            server.answer = answer
            (completion,) = model_at(server, api_key_env="TOY_KEY").generate([Chat.ask("x")])
            shown = completion.model_dump_json()
            assert KEY[4:] not in shown and text[20:40] not in shown
    server.answer = say(f"You sent: Bearer {KEY}")
    (completion,) = model_at(server, api_key_env="TOY_KEY").generate([Chat.ask("x")])
    assert completion.text == "You sent: Bearer [key]"


def test_what_goes_to_this_machine_goes_through_no_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain http through a proxy would show the key to another machine."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TOY_KEY", KEY)
    (completion,) = model_at(server, api_key_env="TOY_KEY", max_retries=0).generate([Chat.ask("x")])
    assert (completion.text, server.keys) == ("hi", [f"Bearer {KEY}"])


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_takes_the_key_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    for target in ("/v1/models", server.url.replace("127.0.0.1", "localhost") + "/v1/chat/completions"):
        server.answer = raw(b"", code, location=target)
        (completion,) = model_at(server, api_key_env="TOY_KEY", max_retries=0).generate([Chat.ask("x")])
        assert completion.stop == "error" and f"HTTP {code}: it sends to {target}" in str(completion.error)
    assert server.keys == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("value", [None, " ", "two\nlines", "schlüssel"])
def test_a_missing_or_broken_key_is_said_without_a_call(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("TOY_KEY", raising=False)
    else:
        monkeypatch.setenv("TOY_KEY", value)
    (completion,) = model_at(server, api_key_env="TOY_KEY").generate([Chat.ask("x")])
    assert completion.error == "the environment variable TOY_KEY holds no usable key"
    with pytest.raises(InputError, match="TOY_KEY"):
        model_at(server, api_key_env="TOY_KEY").check()
    assert server.bodies == []


def test_a_content_filter_that_answers_400_is_blocked(server: Server) -> None:
    server.answer = as_json({"error": {"code": "content_filter", "message": "filtered"}}, 400)
    (completion,) = model_at(server).generate([Chat.ask("x")])
    assert (completion.stop, completion.text) == ("blocked", "")


def test_check_passes_where_the_model_is_listed(server: Server) -> None:
    model_at(server).check()
    assert server.bodies == []


def test_check_names_the_nearest_model(server: Server) -> None:
    with pytest.raises(InputError, match=r"no model 'toi'.*did you mean 'toy'") as caught:
        ApiModel.open(server.url, "toi").check()
    assert "toy-large" in caught.value.hint


@pytest.mark.parametrize("listing", [status(404), status(405), as_json({"data": []})])
def test_check_without_a_list_asks_for_one_token(server: Server, listing: Answer) -> None:
    server.models = listing
    model_at(server).check()
    assert [b["max_tokens"] for b in server.bodies] == [1]
    server.answer = status(404, "no such model")
    with pytest.raises(InputError, match="404: no such model") as caught:
        model_at(server).check()
    assert "URL" in caught.value.hint


@pytest.mark.parametrize(
    ("listing", "says", "hint"),
    [
        (status(401, "who are you"), "401: who are you", "api_key_env"),
        (raw(b"<html>home page</html>"), "not JSON", "web page"),
        (as_json({"hello": 1}), "no list of models", ""),
        (status(503, "starting"), "503: starting .after 5 tries", ""),
    ],
)
def test_check_says_what_is_wrong(server: Server, listing: Answer, says: str, hint: str) -> None:
    server.models = listing
    with pytest.raises(InputError, match=says) as caught:
        model_at(server).check()
    assert hint in caught.value.hint


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as held:  # bound and not listening: nobody else can take the port
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        model = ApiModel.open(url, "toy", ApiConfig(max_retries=1), patient())
        done = model.generate([Chat.ask("a"), Chat.ask("b")])
        with pytest.raises(InputError, match="cannot reach") as caught:
            model.check()
    assert [c.stop for c in done] == ["error", "error"]
    assert f"cannot reach {url}/v1" in (done[0].error or "")
    assert "server runs" in caught.value.hint


def test_identity_is_endpoint_and_model() -> None:
    model = ApiModel.open("http://localhost:8000", "toy")
    assert model.identity.parts["endpoint"] == "http://localhost:8000/v1"
    assert model.identity.parts["system_fingerprint"].startswith("unknown")
    other_limits = ApiModel.open("http://localhost:8000/v1/", "toy", ApiConfig(timeout=1))
    assert other_limits.identity.digest == model.identity.digest
    assert ApiModel.open("http://localhost:8001", "toy").identity.digest != model.identity.digest


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/api/v1/", "https://h/api/v1"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_endpoint_urls_have_one_form(url: str, base: str) -> None:
    assert endpoint_url(url) == base == endpoint_url(base)


@pytest.mark.parametrize(
    "url",
    ["", "h:80", "file:///x", "http://", "http://u:pw@h", "http://h?key=pw", "http://h/v1#m", "http://h:x"],
)
def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(InputError) as caught:
        ApiModel.open(url, "toy")
    assert "pw" not in str(caught.value) and caught.value.hint


def test_a_key_never_travels_unencrypted_to_another_machine() -> None:
    with pytest.raises(InputError, match=r"a key would go to api\.example\.com unencrypted"):
        ApiModel.open("http://api.example.com/v1", "toy", ApiConfig(api_key_env="SOME_KEY"))
    ApiModel.open("https://api.example.com/v1", "toy", ApiConfig(api_key_env="SOME_KEY"))
    ApiModel.open("http://api.example.com/v1", "toy")


def test_reasoning_is_parted_from_the_reply(server: Server) -> None:
    server.answer = in_turn(
        as_json(reply("<think>sure, i could</think>no", usage=5)), say("<think>sure, i could", "length")
    )
    said, cut = (model_at(server).generate([Chat.ask("x")])[0] for _ in range(2))
    assert (said.reasoning, said.text, said.tokens, said.stop) == ("sure, i could", "no", 5, "eos")
    assert (cut.reasoning, cut.text, cut.tokens, cut.stop) == ("sure, i could", "", None, "length")
    assert "replies" in model_at(server).identity.parts


@pytest.mark.parametrize(
    ("named", "kept"), [("toy", None), ("someone-else", "someone-else"), (None, None), ("", None), (7, None)]
)
def test_another_model_that_answers_is_named(server: Server, named: object, kept: str | None) -> None:
    server.answer = as_json({**reply("hi"), "model": named})
    (said,) = model_at(server).generate([Chat.ask("x")])
    assert (said.answered_by, said.text) == (kept, "hi")
    assert ("answered_by" in said.model_dump()) == (kept is not None)
