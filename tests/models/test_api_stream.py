"""A streamed reply of an endpoint is the one that ``generate`` gives; what breaks off is an error."""

from __future__ import annotations

import json
import socket
import time

import pytest
from api_stub import KEY, as_json, drop, in_turn, model_at, raw, say, status

from calibrant.core import Chat, Sampling, StreamingLM

CHAT = Chat.ask("name a colour")


def event(delta, reason=None, **more):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def sse(events, end="\n\n"):
    """A body of events, with the last one of the protocol."""
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in events]
    return "".join(f"data: {line}{end}" for line in [*lines, "[DONE]"]).encode()


def stream(body, size=None, pause=0.0, hang_up=False, lacks=0):
    """Sends ``body`` in pieces of ``size`` bytes; says its length, of which ``lacks`` bytes never come."""

    def answer(handler, _):
        handler.send_response_only(200)
        handler.send_header("content-type", "text/event-stream")
        if not hang_up:
            handler.send_header("content-length", str(len(body) + lacks))
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for at in range(0, len(body), size or len(body)):
                handler.wfile.write(body[at : at + (size or len(body))])
                time.sleep(pause)
        except OSError:
            pass
        handler.close_connection = True

    return answer


def cut(text, size=3):
    return [text[at : at + size] for at in range(0, len(text), size)]


def pieces_of(server, body, **config):
    server.answer = stream(body)
    return list(model_at(server, **config).stream(CHAT))


def joined(pieces):
    """Text, reasoning and completion; only the last piece has one, and it agrees with what was told."""
    assert [piece.completion for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1].completion
    assert "".join(piece.text for piece in pieces) == last.text
    assert "".join(piece.reasoning for piece in pieces) == (last.reasoning or "")
    return last


CALL = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"x": "é"}'}}
MESSAGES = {
    "plain": {"content": "tout va très bien, \U0001f600 à la fin. \n"},
    "reasoning beside it": {"content": "blue.", "reasoning_content": "a colour, so "},
    "another field": {"content": "blue.", "reasoning": "a colour"},
    "reasoning alone": {"reasoning_content": "a colour, and then"},
    "tags": {"content": "<think>a colour</think>\n\nblue."},
    "tags behind reasoning": {"content": "<think>more</think> blue.", "reasoning": "a colour"},
    "a lone tag": {"content": "a colour</think>blue."},
    "a lone tag behind reasoning": {"content": "one </think> two", "reasoning": "a colour"},
    "harmony": {"content": "<|channel|>analysis<|message|>so<|end|><|channel|>final<|message|>blue."},
    "a refusal": {"refusal": "i will not."},
    "a call": {"content": "let me see.", "tool_calls": [CALL]},
    "a call alone": {"tool_calls": [CALL, {**CALL, "index": 1}]},
    "parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a colour"}]},
                          {"type": "text", "text": "blue."}]},
    "an odd part": {"content": [{"type": "text", "text": "blue."}, {"type": "image"}]},
    "nothing": {"content": ""},
}  # fmt: skip


def deltas(message, size=3):
    """The message as a server would stream it: reasoning first, then text, then calls."""
    yield {"role": "assistant", "content": ""}
    for name in ("reasoning_content", "reasoning", "content", "refusal"):
        value = message.get(name)
        for part in value if isinstance(value, list) else cut(value or "", size):
            yield {name: [part] if isinstance(part, dict) else part}
    for call in message.get("tool_calls", ()):
        yield {"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]}
        for more in cut(call["function"]["arguments"], size):
            yield {"tool_calls": [{"index": call["index"], "function": {"arguments": more}}]}


@pytest.mark.parametrize("lone_tags", [True, False])
@pytest.mark.parametrize("name", MESSAGES)
def test_a_streamed_reply_is_the_one_that_generate_gives(server, name, lone_tags):
    message, usage, model = MESSAGES[name], {"completion_tokens": 7}, model_at(server, lone_tags=lone_tags)
    for reason in ("stop", "length", "content_filter", "tool_calls", "strange"):
        choice = {"message": message, "finish_reason": reason}
        server.answer = as_json({"model": "m", "choices": [choice], "usage": usage})
        whole = model.generate([CHAT], Sampling(max_tokens=9))[0]
        for size in (1, 3, 1000):
            events = [event(delta, model="m") for delta in deltas(message, size)] + [event({}, reason)]
            server.answer = stream(sse([*events, {"choices": [], "usage": usage}]))
            assert joined(list(model.stream(CHAT, Sampling(max_tokens=9)))) == whole
    asked, streamed, *_ = server.bodies
    assert streamed == asked | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_at_every_cut_of_bytes(server, end):
    text = "très \U0001f600 bien"
    body = sse([event({"content": part}) for part in cut(text, 5)] + [event({}, "stop")], end)
    for place in range(1, len(body)):
        server.answer = lambda handler, _, at=place: stream(body, size=at)(handler, _)
        assert joined(list(model_at(server, lone_tags=False).stream(CHAT))).text == text
    server.answer = stream(body, size=1)
    assert joined(list(model_at(server).stream(CHAT))).stop == "eos"


def test_a_stream_that_ends_at_any_byte_never_counts_as_finished_with_less(server):
    text = "the tower by the river"
    body = sse([event({"content": part}) for part in cut(text, 4)] + [event({}, "stop")])
    finished = 0
    for place in range(len(body)):
        server.answer = stream(body[:place], hang_up=True)
        last = joined(list(model_at(server, lone_tags=False, max_retries=0).stream(CHAT)))
        if last.stop == "error":
            assert last.error
            assert text.startswith(last.text)
        else:
            assert (last.stop, last.text) == ("eos", text)
            finished += 1
    assert 0 < finished < 30  # only where nothing but the last event was missing


def test_a_length_that_is_not_reached_is_an_error(server):
    body = sse([event({"content": "blue"}), event({}, "stop")])
    server.answer = stream(body[:-9], lacks=9)
    last = joined(list(model_at(server, max_retries=0, lone_tags=False).stream(CHAT)))
    assert (last.stop, last.text) == ("error", "blue")
    assert "lost the connection" in last.error


def test_plain_text_comes_as_it_is_generated_where_no_lone_tag_can_come(server):
    body = sse([event({"content": part}) for part in ("the ", "tower", " stands")] + [event({}, "stop")])
    assert [piece.text for piece in pieces_of(server, body, lone_tags=False)] == [
        "the ", "tower", " stands", "",
    ]  # fmt: skip
    assert [piece.text for piece in pieces_of(server, body)] == ["the tower stands"]
    thinks = [event({"reasoning_content": "so"}), event({"reasoning_content": "..."})]
    body = sse([*thinks, event({"content": "the "}), event({"content": "tower"}), event({}, "stop")])
    told = [(piece.reasoning, piece.text) for piece in pieces_of(server, body)]
    assert told == [("so", ""), ("...", ""), ("", "the "), ("", "tower"), ("", "")]


def test_the_first_piece_comes_before_the_server_has_ended(server):
    """The server waits for the client to have read the first one."""
    import threading

    read = threading.Event()

    def answer(handler, _):
        handler.send_response_only(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(sse([event({"content": "the "})]).removesuffix(b"data: [DONE]\n\n"))
        handler.wfile.flush()
        assert read.wait(20)
        handler.wfile.write(sse([event({"content": "tower"}, "stop")]))
        handler.close_connection = True

    server.answer = answer
    pieces = model_at(server, lone_tags=False).stream(CHAT)
    assert next(pieces).text == "the "
    read.set()
    rest = list(pieces)
    assert ("".join(piece.text for piece in rest), rest[-1].completion.text) == ("tower", "the tower")


def test_half_of_a_surrogate_pair_waits_for_the_other(server):
    parts = ['{"choices": [{"index": 0, "delta": {"content": "a \\ud83d"}}]}',
             '{"choices": [{"index": 0, "delta": {"content": "\\ude00 b \\ud83d"}}]}']  # fmt: skip
    pieces = pieces_of(server, sse([*parts, event({}, "stop")]), lone_tags=False)
    assert joined(pieces).text == "a \U0001f600 b ?"
    assert pieces[0].text == "a "


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"error": {"message": "the fuse is gone"}}, "the fuse is gone"),
        ({"error": "the fuse is gone"}, "the fuse is gone"),
        ({"object": "error", "message": "the fuse is gone"}, "the fuse is gone"),
        ("{", "no JSON"),
        ("[1]", "no choices"),
        ("null", "no choices"),
        ("[" * 100_000, "no JSON"),
        ({"choices": {}}, "no choices"),
        ({"choices": [3]}, "malformed"),
        ({"choices": [{"index": 0, "delta": "x"}]}, "malformed"),
        ({"choices": [{"index": 1, "delta": {"content": "x"}}]}, "not asked for"),
        (event({"tool_calls": [3]}), "call of a tool"),
        (event({"tool_calls": {"a": 1}}), "call of a tool"),
        (event({"tool_calls": [{"index": "a", "function": {}}]}), "call of a tool"),
        ("x" * (5 * 2**20), "too long"),
    ],
)
def test_a_bad_event_is_an_error_with_what_had_come(server, bad, said):
    body = sse([event({"content": "the tower"}), bad, event({}, "stop")])
    pieces = pieces_of(server, body, lone_tags=False)
    last = joined(pieces)
    assert (last.stop, last.text) == ("error", "the tower")
    assert said in last.error
    assert len(server.bodies) == 1


def test_a_filter_that_stops_before_the_first_word_blocks(server):
    bad = {"error": {"code": "content_filter", "message": "no"}}
    assert joined(pieces_of(server, sse([bad]))).stop == "blocked"
    body = sse([event({"content": "the"}), bad])
    assert joined(pieces_of(server, body, lone_tags=False)).stop == "error"


def test_a_hang_is_an_error(server):
    body = sse([event({"content": "the tower"})]).removesuffix(b"data: [DONE]\n\n")
    server.answer = stream(body + b": still here\n" * 20, size=len(body), pause=0.4)
    last = joined(list(model_at(server, timeout=0.2, max_retries=0, lone_tags=False).stream(CHAT)))
    assert (last.stop, last.text) == ("error", "the tower")
    assert "Timeout" in last.error


def test_a_trickle_of_comments_is_an_error(server):
    server.answer = stream(b": still here\n" * 100, size=13, pause=0.02)
    last = joined(list(model_at(server, timeout=0.3, max_retries=0).stream(CHAT)))
    assert (last.stop, "more than 0.3 s" in last.error) == ("error", True)


def test_it_tries_again_only_before_the_first_event(server):
    good = stream(sse([event({"content": "blue"}, "stop")]))
    waits = []
    server.answer = in_turn(status(503), drop, status(429, retry_after="2"), good)
    assert joined(list(model_at(server, waits).stream(CHAT))).text == "blue"
    assert (len(server.bodies), waits[-1]) == (4, 2.0)
    broken = stream(sse([event({"role": "assistant"})])[:-5], lacks=5)
    server.answer = in_turn(broken, good)
    assert joined(list(model_at(server).stream(CHAT))).stop == "error"
    assert len(server.bodies) == 5
    server.answer = status(401)
    last = joined(list(model_at(server).stream(CHAT)))
    assert (last.stop, "no key was sent" in last.error) == ("error", True)


def test_a_server_that_does_not_stream_gives_its_answer_in_one_piece(server):
    server.answer = say("blue.", usage=3)
    model = model_at(server)
    assert joined(list(model.stream(CHAT))) == model.generate([CHAT])[0]
    server.answer = as_json({"error": {"message": "no such model"}})
    assert "no such model" in joined(list(model.stream(CHAT))).error
    server.answer = raw(b"<html>")
    assert "not JSON" in joined(list(model.stream(CHAT))).error


def test_the_budget_counts_what_was_streamed(server):
    body = sse([event({"content": "blue"}, "stop"), {"choices": [], "usage": {"completion_tokens": 3}}])
    server.answer = stream(body)
    model, sampling = model_at(server, max_tokens=12), Sampling(max_tokens=6)
    for _ in range(3):
        assert joined(list(model.stream(CHAT, sampling))).tokens == 3
    last = joined(list(model.stream(CHAT, sampling)))
    assert (last.stop, "budget" in last.error, len(server.bodies)) == ("error", True, 3)
    left = model_at(server, max_tokens=12, lone_tags=False)
    for _ in range(2):
        left_early = left.stream(CHAT, sampling)
        next(left_early)
        left_early.close()
    assert "budget" in joined(list(left.stream(CHAT, sampling))).error


def test_it_is_a_streaming_lm_and_its_identity_says_how_it_reads(server):
    assert isinstance(model_at(server), StreamingLM)
    assert model_at(server).identity.digest != model_at(server, lone_tags=False).identity.digest
    assert server.bodies == []


def test_a_name_of_another_model_is_kept(server):
    body = sse([event({"content": "blue"}, "stop", model="toy-2")])
    assert joined(pieces_of(server, body)).answered_by == "toy-2"


def test_a_key_that_comes_back_is_struck_also_where_it_is_cut(server, monkeypatch):
    monkeypatch.setenv("ZORBLE_KEY", KEY)
    body = sse(
        [event({"content": part}) for part in ("so ", KEY[:9], KEY[9:], f" {KEY}")] + [event({}, "stop")]
    )
    assert joined(pieces_of(server, body, api_key_env="ZORBLE_KEY")).text == "so [key] [key]"
    last = joined(pieces_of(server, body, api_key_env="ZORBLE_KEY", lone_tags=False))
    assert (last.stop, KEY in last.error) == ("error", False)


def test_a_long_reply_takes_linear_work(server):
    """Ten thousand events: joined again at each of them this would be a gigabyte."""
    body = sse([event({"content": "word "})] * 10_000 + [event({}, "stop")])
    assert joined(pieces_of(server, body, lone_tags=False)).text == "word " * 10_000
