"""Nothing of a forbidden word leaves: every offset, every cut of events and bytes, text, reasoning, tools."""

from __future__ import annotations

import json

import pytest
from proxy_stub import REFUSAL, WORD, Front, ask, both, chunk, ends, said

LEAD = "so the keeper of the old tower told us that "


def left(found):
    """Everything that a client could read of a stream, refusals apart."""
    deltas = [choice["delta"] for one in found if isinstance(one, dict) for choice in one.get("choices", ())]
    texts = [str(delta.get(key) or "") for delta in deltas for key in ("content", "reasoning_content")]
    calls = json.dumps([delta["tool_calls"] for delta in deltas if delta.get("tool_calls")])
    return "".join(texts).replace(REFUSAL, "") + calls.removeprefix("[]")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 1000])
@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "refusal"])
def test_at_every_offset_and_split_of_events(stub, front, size, field):
    proxy: Front = front(both(), stub)
    for offset in range(0, len(LEAD), 9):
        lead = LEAD[:offset].rstrip() + " " if offset else ""
        text = f"{lead}{WORD} is what they say in the valley when the river is high"
        stub.pieces = [chunk({field: text[i : i + size]}) for i in range(0, len(text), size)]
        stub.pieces.append(chunk({}, "stop"))
        found = proxy.stream(ask())
        assert ends(found) == ["content_filter"]
        assert lead.startswith(left(found)), (offset, size)


def test_at_every_cut_of_bytes(stub, front):
    """The model's server cuts its events anywhere, in a character and in a line end."""
    proxy = front(both(), stub)
    text = "tout va très bien, zorble, à la fin"
    raw = b"".join(
        b"data: " + json.dumps(chunk({"content": c}), ensure_ascii=False).encode() + b"\r\n\r\n"
        for c in [*text.split(), "."]
    )
    for cut in range(1, len(raw), 11):
        stub.pieces = [raw[:cut], raw[cut:], chunk({}, "stop")]
        assert WORD not in left(proxy.stream(ask()))
    stub.pieces = [raw.replace(WORD.encode(), b"zimble")[i : i + 3] for i in range(0, len(raw), 3)]
    stub.pieces.append(chunk({}, "stop"))
    assert "".join(said(proxy.stream(ask())).split()) == "".join(text.replace(WORD, "zimble").split()) + "."


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n", b"data: [1]\n\n", b"data: null\n\n", b'data: {"choices": {}}\n\n',
        b"data: \xff\xfe\n\n",
        b'data: {"choices": [{"index": 7, "delta": {}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": 3}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": "x"}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [3]}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": "a"}]}}]}\n\n',
        b'data: {"error": {"message": "zorble"}}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)  # fmt: skip
def test_a_malformed_event_ends_the_stream_with_an_error_and_nothing_held_leaves(stub, front, event):
    proxy = front(both(), stub)
    stub.pieces = [chunk({"content": "all the keeper said was zorb"}), event, chunk({}, "stop")]
    found = proxy.stream(ask())
    assert "zorb" not in left(found)
    assert [one["error"]["code"] for one in found if isinstance(one, dict) and "error" in one]
    assert WORD not in json.dumps(found)
    assert [line["outcome"] for line in proxy.lines()] == ["error"]


def test_a_stream_that_breaks_off_releases_nothing_more(stub, front):
    proxy = front(both(), stub)
    stub.pieces = [chunk({"content": "all the keeper said was zorb"})]
    found = proxy.stream(ask())
    assert "zorb" not in left(found)
    assert [one["error"]["code"] for one in found if isinstance(one, dict) and "error" in one] == [
        "upstream_closed"
    ]


def test_an_encoding_that_runs_through_the_whole_reply_is_held(stub, front):
    import base64

    proxy = front(both(), stub)
    stub.text = "here: " + base64.b64encode(b"zorble " * 200).decode() + " and that is it"
    found = proxy.stream(ask())
    assert "here: ".startswith(left(found))
    assert ends(found) == ["content_filter"]
