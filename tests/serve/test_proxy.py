"""The guard proxy on a real socket: what passes, what does not, and what stands in the audit."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
from proxy_stub import REFUSAL, WORD, ask, both, chunk, ends, said, words

from calibrant.defend.defended import Layer


def test_what_is_allowed_comes_whole(stub, front):
    proxy = front(both(), stub)
    answer = proxy.post(ask()).json()
    assert answer["choices"][0]["message"]["content"] == stub.text
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    found = proxy.stream(ask())
    assert (said(found), ends(found)) == (stub.text, ["stop"])
    assert [line["outcome"] for line in proxy.lines()] == ["answered"] * 2
    assert [line["released"] for line in proxy.lines()] == [len(stub.text)] * 2


def test_a_blocked_request_never_reaches_the_model(stub, front):
    proxy = front(both(), stub)
    whole = proxy.post(ask("how do i zorble?")).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (REFUSAL, "content_filter")
    found = proxy.stream(ask("how do i zorble?"))
    assert (said(found), ends(found)) == (REFUSAL, ["content_filter"])
    assert stub.asked == []
    assert [(line["outcome"], line["why"]) for line in proxy.lines()] == [("blocked_input", "asked")] * 2


def test_a_blocked_reply_looks_the_same_as_a_blocked_request(stub, front):
    proxy, stub.text = front(both(), stub), "zorble it"
    inputs, outputs = proxy.post(ask("zorble?")).json(), proxy.post(ask()).json()
    for answer in (inputs, outputs):
        for key in ("id", "created", "usage"):
            answer.pop(key)
    assert inputs == outputs
    first, second = proxy.stream(ask("zorble?")), proxy.stream(ask())
    for found in (first, second):
        for one in found:
            if isinstance(one, dict):
                one.pop("id"), one.pop("created")
    assert first == second


def test_a_block_in_the_middle_ends_the_reply_and_the_upstream_is_let_go(stub, front):
    proxy = front(both(), stub)
    stub.text = (
        "well, my friend, there is this and that to say of the barn, and zorble is one, " + "x " * 2000
    )
    found = proxy.stream(ask())
    assert stub.text.startswith(said(found))
    assert WORD not in said(found)
    assert len(said(found)) > 30
    assert ends(found) == ["content_filter"]
    line = proxy.lines()[0]
    assert (line["outcome"], line["released"]) == ("blocked_output", len(said(found)))
    assert line["held_back"] < 3000


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
@pytest.mark.parametrize("place", ["first", "last", "beyond 20 kB", "in a part", "in a field"])
def test_every_message_that_reaches_the_model_is_read(stub, front, role, place):
    proxy = front(both(), stub)
    content = {
        "first": "a zorble",
        "last": "a zorble",
        "beyond 20 kB": "well " * 4500 + "zorble",
        "in a part": [{"type": "text", "text": "a zor"}, {"type": "text", "text": "ble"}],
        "in a field": "hello",
    }[place]
    message = {"role": role, "content": content} | ({"name": WORD} if place == "in a field" else {})
    rest = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well."}]
    messages = [message, *rest] if place == "first" else [*rest, message]
    answer = proxy.post({"model": "m", "messages": messages}).json()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert stub.asked == []


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "a zorble"}}]},
        {"tools": [{"type": "function", "function": {"name": WORD, "parameters": {}}}]},
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"properties": {WORD: {}}}}}
            ]
        },
        {"stop": [WORD]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": [WORD]}},
            }
        },
        {"user": WORD},
        {"vendor_field": {"deep": [["zor\\u0062le"]]}},
        {"prediction": {"type": "content", "content": WORD}},
    ],
)
def test_every_other_text_of_a_request_is_read(stub, front, more):
    answer = front(both(), stub).post(ask(**more)).json()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert stub.asked == []


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "zorble"}', '{"a": "\\u007aorble"}', '{"zorble": 1}', '{"a": ["x", {"b": "z o r b l e"}]}',
                  '{"a": "zorble"', '{"a": "{\\"b\\": \\"\\\\u007aorble\\"}"}', "zorble"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_read_before_they_leave(stub, front, arguments, stream):
    proxy = front(both(), stub)
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    stub.answer = {
        "choices": [
            {"index": 0, "message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        ]
    }
    stub.pieces = [
        chunk({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]}),
        *(chunk({"tool_calls": [{"index": 0, "function": {"arguments": c}}]}) for c in arguments),
        chunk({}, "tool_calls"),
    ]
    if stream:
        found = proxy.stream(ask())
        assert (said(found), ends(found)) == (REFUSAL, ["content_filter"])
        assert "tool_calls" not in json.dumps(found)
    else:
        choice = proxy.post(ask()).json()["choices"][0]
        assert choice["message"].get("tool_calls") is None
        assert choice["finish_reason"] == "content_filter"


def test_calls_of_tools_that_are_allowed_come_as_they_were(stub, front):
    proxy = front(both(), stub)
    stub.pieces = [
        chunk({"content": "let me see. "}),
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"x":'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "hear", "arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]}),
        chunk({}, "tool_calls"),
    ]
    found = proxy.stream(ask())
    calls = [
        c
        for one in found
        if isinstance(one, dict)
        for x in one["choices"]
        for c in x["delta"].get("tool_calls", ())
    ]
    assert [(c["index"], c["id"], c["function"]) for c in calls] == [
        (0, "a", {"name": "look", "arguments": '{"x": 1}'}),
        (1, "b", {"name": "hear", "arguments": "{}"}),
    ]
    assert (said(found), ends(found)) == ("let me see. ", ["tool_calls"])


def test_reasoning_is_read_and_shown_or_dropped(stub, front):
    for name in ("reasoning_content", "reasoning"):
        stub.pieces = [chunk({name: "i think. "}), chunk({"content": "well."}), chunk({}, "stop")]
        found = front(both(), stub).stream(ask())
        assert (said(found, "reasoning_content"), said(found)) == ("i think. ", "well.")
        stub.pieces = [
            chunk({name: "i zor"}),
            chunk({name: "ble"}),
            chunk({"content": "well."}),
            chunk({}, "stop"),
        ]
        found = front(both(), stub).stream(ask())
        assert (said(found, "reasoning_content"), ends(found)) == ("", ["content_filter"])
        hidden = front(both(), stub, show_reasoning=False).stream(ask())
        assert (said(hidden, "reasoning_content"), said(hidden), ends(hidden)) == ("", "well.", ["stop"])


def test_each_choice_has_its_own_verdict(stub, front):
    proxy = front(both(), stub)
    pairs = zip("all is well, friend", "a zorble it is, yes", strict=True)
    stub.pieces = [chunk({"content": c}, index=at) for pair in pairs for at, c in enumerate(pair)]
    stub.pieces += [chunk({}, "stop", 0), chunk({}, "stop", 1)]
    found = proxy.stream(ask(n=2))
    assert said(found, index=0) == "all is well, friend"
    assert WORD not in said(found, index=1)
    assert sorted(ends(found)) == ["content_filter", "stop"]
    stub.answer = {
        "choices": [
            {"index": 0, "message": {"content": "well."}, "finish_reason": "stop"},
            {"index": 1, "message": {"content": "zorble"}, "finish_reason": "stop"},
        ]
    }
    whole = proxy.post(ask(n=2)).json()["choices"]
    assert [choice["finish_reason"] for choice in whole] == ["stop", "content_filter"]
    assert [choice["message"]["content"] for choice in whole] == ["well.", REFUSAL]


def test_what_is_not_known_stays_behind(stub, front):
    """Log-probs, audio, annotations: a field that no layer reads is not passed on."""
    proxy = front(both(), stub)
    stub.pieces = [
        {
            **chunk({"content": "well.", "audio": {"transcript": WORD}}),
            "system_fingerprint": WORD,
            "model": WORD,
        },
        {
            "choices": [
                {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": {"content": [{"token": WORD}]}}
            ]
        },
    ]
    assert WORD not in json.dumps(proxy.stream(ask()))
    stub.answer = {
        "model": WORD,
        "choices": [
            {
                "index": 0,
                "message": {"content": "well.", "annotations": [WORD]},
                "finish_reason": WORD,
                "logprobs": {"content": [{"token": WORD}]},
            }
        ],
    }
    answer = proxy.post(ask()).json()
    assert WORD not in json.dumps(answer)
    assert answer["choices"][0]["message"]["content"] == "well."


def test_only_what_is_named_goes_on_to_the_model(stub, front):
    proxy = front(both(), stub)
    proxy.post(
        ask(temperature=0.5), headers={"authorization": "Bearer k", "cookie": "c", "x-forwarded-for": "1"}
    )
    assert stub.asked[0]["temperature"] == 0.5
    assert stub.headers[0]["authorization"] == "Bearer k"
    assert "cookie" not in stub.headers[0]
    assert "x-forwarded-for" not in stub.headers[0]


def test_a_second_key_of_one_name_does_not_pass_unread(stub, front):
    one, two = (json.dumps(ask(text)["messages"]) for text in ("zorble", "hello"))
    raw = f'{{"model": "m", "messages": {one}, "messages": {two}}}'
    front(both(), stub).post(None, content=raw, headers={"content-type": "application/json"})
    assert [body["messages"][0]["content"] for body in stub.asked] == ["hello"]


def test_models_health_metrics_and_paths(stub, front):
    import httpx

    proxy = front(both(), stub, token="t")
    with httpx.Client(base_url=proxy.url, trust_env=False) as client:
        assert client.get("/v1/models").status_code == 401
        listed = client.get("/v1/models", headers={"authorization": "Bearer t"}).json()
        assert [row["id"] for row in listed["data"]] == ["stub-1", "stub-2"]
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"ready": True, "reasons": []}
        assert proxy.post(ask()).status_code == 401
        assert proxy.post(ask(), headers={"authorization": "Bearer t"}).status_code == 200
        numbers = client.get("/metrics").text
        assert 'calibrant_requests_total{outcome="answered"} 1.0' in numbers
        assert 'layer="replied"' in numbers
        for path in ("/v1/responses", "/v1/completions"):
            told = client.post(path, json={})
            assert told.status_code == 404
            assert "/v1/chat/completions" in told.json()["error"]["message"]
        assert client.get("/v1/embeddings").status_code == 404
        assert client.get("/v1/chat/completions").status_code == 405
        assert client.get("/v1/chat/../models").status_code in (200, 401, 404)
    assert len(stub.asked) == 1


def test_a_layer_that_reads_whole_replies_holds_them_with_comments(stub, front):
    class Slow:
        identity = words().identity

        def ask(self, chats, side):
            return words().ask(chats, side)

    proxy = front([Layer("whole", "output", Slow())], stub, quiet=0.02)
    stub.pause = 0.03
    stub.text = "a reply."
    found = proxy.stream(ask())
    assert said(found) == "a reply."
    assert any(isinstance(one, str) and one.startswith(":") for one in found)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "zor", "x": 1}, {"type": "text", "text": "ble"}],
        [{"type": "text", "text": "zor", "cache_control": {"a": "b"}}, {"type": "text", "text": "ble"}],
        [{"type": "refusal", "refusal": "hi", "text": "a zorble"}],
        [{"type": "text", "text": "hi", "refusal": "zorble"}],
        [{"type": "text", "text": "hi", "refusal": {"a": "zorble"}}],
    ],
)
def test_parts_of_a_message_are_read_as_they_may_be_put_together(stub, front, content):
    answer = front(both(), stub).post({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
    assert stub.asked == []


def test_numbers_are_read_and_settings_and_names_are_not(stub, front):
    proxy = front([Layer("asked", "input", words("4111111111111111", "true", "zorble"))], stub)
    for more in ({"metadata": {"a": 4111111111111111}}, {"documents": [True, 6]}):
        assert proxy.post({**ask(), **more}).json()["choices"][0]["finish_reason"] == "content_filter"
    assert proxy.post(ask(stream=False, temperature=1, n=1)).json()["choices"][0]["finish_reason"] == "stop"


def test_the_token_of_the_proxy_does_not_go_on(stub, front):
    proxy = front(both(), stub, token="sesame")
    assert proxy.post(ask(), headers={"authorization": "Bearer sesame"}).status_code == 200
    assert "authorization" not in stub.headers[0]


def test_a_header_that_is_no_ascii_is_refused(stub, front):
    proxy = front(both(), stub)
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer \xe9")]
    assert proxy.post(ask(), headers=headers).status_code == 400
    assert "invalid_header" in str(proxy.stream(ask(), headers=headers))
    assert [line["outcome"] for line in proxy.lines()] == ["refused", "error"]


def test_a_blocked_reply_does_not_tell_its_length(stub, front):
    proxy = front(both(), stub)
    stub.text = "zorble"
    stub.pieces = [
        chunk({"content": "zorble"}),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}},
        chunk({}, "stop"),
    ]
    options = {"stream_options": {"include_usage": True}}
    inputs, outputs = proxy.stream(ask("zorble", **options)), proxy.stream(ask(**options))
    assert len(inputs) == len(outputs)
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert proxy.post(ask()).json()["usage"] == proxy.post(ask("zorble")).json()["usage"] == nothing


def test_an_audit_of_digests_holds_no_text(stub, front):
    proxy = front(both(), stub, keep="digest")
    proxy.post({"model": "secret-name", "messages": [{"role": "secret role", "content": "x"}]})
    proxy.post({"model": "secret-name", "messages": [{"role": "user", "content": "secret words"}]})
    stub.status = 400
    proxy.post(ask("secret words"))
    assert "secret" not in proxy.audit.path.read_text()
    assert len(proxy.lines()) == 3


def test_a_guard_that_scores_reads_the_messages_and_nothing_of_the_proxys_own(stub, front):
    class Reads:
        identity = words().identity
        read: ClassVar[list] = []

        def ask(self, chats, side):
            self.read += [[turn.content for turn in chat.messages] for chat in chats]
            return words().ask(chats, side)

    proxy = front([Layer("reads", "input", Reads())], stub)
    proxy.post(ask("hello", model="Qwen/Qwen2.5-7B-Instruct", temperature=0.5, max_tokens=5, stream=False))
    assert Reads.read == [["hello"]]
    assert proxy.post(ask(model="a name with blanks")).status_code == 400


def test_an_audit_tells_the_kind_of_a_failure_and_is_for_its_owner(stub, front):
    class Breaks:
        identity = words().identity

        def ask(self, chats, side):
            raise ValueError("secret words")

    proxy = front([Layer("breaks", "input", Breaks())], stub, keep="digest")
    proxy.post(ask())
    assert proxy.lines()[0]["verdicts"][0]["layers"][0]["failure"] == "ValueError"
    assert "secret" not in proxy.audit.path.read_text()
    assert proxy.audit.path.stat().st_mode & 0o077 == 0


def test_paths_are_taken_as_they_are(stub, front):
    import httpx

    proxy = front(both(), stub)
    with httpx.Client(base_url=proxy.url, trust_env=False) as client:
        assert client.post("/v1/chat/completions/", json=ask()).status_code == 404


def test_choices_in_any_order_are_asked_again_as_they_were(stub, front):
    from calibrant.serve.proxy.replay import replayed

    proxy = front(both(), stub)
    stub.answer = {
        "choices": [
            {"index": 1, "message": {"content": "zorble"}, "finish_reason": "stop"},
            {"index": 0, "message": {"content": "well."}, "finish_reason": "stop"},
        ]
    }
    proxy.post(ask(n=2))
    proxy.stream(ask())
    told = replayed(proxy.audit.path, both())
    assert (told.requests, told.unread, told.changed) == (2, [], [])
    assert told.cut and "no closing line" in told.summary()  # it still serves
    less = replayed(proxy.audit.path, [*both()[:1], Layer("new", "input", words("barn"))])
    assert less.unread == ["layer 'new' (input) is new", "layer 'replied' (output) is gone"]
    assert len(less.changed) == 1  # the plain request; the other one is blocked now as it was
    assert "would be blocked on the input by 'new'" in less.changed[0]
    stub.answer["choices"][1]["index"] = 1
    assert proxy.post(ask(n=2)).status_code == 502


def test_a_stack_that_hides_or_refuses_otherwise_is_told():
    from calibrant.defend.defended import StackSpec
    from calibrant.defend.pii_guard import PiiGuard
    from calibrant.serve.proxy.replay import _otherwise
    from calibrant.serve.proxy.run import policy_of

    def stack(**rest):
        layer = {"name": "a", "side": "input", "guard": "x"}
        return StackSpec.model_validate({"layer": [layer], **rest})

    hides, less = stack(hide=PiiGuard(kinds=("email", "phone"))), stack(hide=PiiGuard(kinds=("phone",)))
    for then, now, told in [
        (hides, stack(), "hidden then would reach the model"),
        (hides, less, "other personal data is hidden"),
        (stack(), hides, "which the model read then"),
        (stack(), stack(refusal="no."), "another refusal"),
        (stack(), stack(show_reasoning=False), "reasoning is hidden now"),
    ]:
        assert [told in line for line in _otherwise(policy_of(then, [], "u"), now)] == [True]
        assert not list(_otherwise(policy_of(then, [], "u"), then))


@pytest.mark.parametrize("score", [None, 0.1, 1.0, 1e-7, 123456.7, 1e300, float("nan"), float("-inf")])
def test_a_line_of_the_audit_is_canonical_json(stub, front, score):
    """Its digest is that of its content, so other programs can check the chain."""
    from calibrant.core import Identity, Verdict
    from calibrant.core.digest import canonical

    class Scores:
        identity = Identity(name="scores", kind="guard", parts={"scores": "1"})

        def ask(self, chats, side):
            return [Verdict(question="?", answer="yes", score=score) for _ in chats]

    proxy = front([Layer("scores", "input", Scores())], stub)
    proxy.post(ask("tout va très bien \U0001f600 \x07 \u2028"))
    for line in proxy.audit.path.read_bytes().splitlines():
        assert canonical(json.loads(line)) == line
