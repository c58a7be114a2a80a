"""Personal data never reaches the model's server, and comes back as it was, however a reply is cut."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_stub import REFUSAL, ask, both, chunk, ends, said, words

from calibrant.core import Chat, Completion, ConfigError
from calibrant.defend.defended import Defended, Layer, StackSpec, Vault
from calibrant.defend.pii_guard import PiiGuard
from calibrant.models.scripted import ScriptedModel
from calibrant.serve.proxy.hiding import Hiding, hidden
from calibrant.serve.proxy.reply import Calls, Part
from calibrant.serve.proxy.request import read
from calibrant.serve.proxy.run import policy_of
from calibrant.serve.proxy.upstream import InProcess, Server

CONFIG = PiiGuard(names=("Ann Quibble",), patterns=(r'quib-"\w+"',))
SECRETS = (
    "ann@example.org",
    "4111 1111 1111 1111",
    "Ann Quibble",
    "+44 20 7946 0018",
    "DE89370400440532013000",
)
TEXT = "i am Ann Quibble, ann@example.org, card 4111 1111 1111 1111, and <EMAIL_1> <b> < EMAIL_2"


def behind(stub, config=CONFIG):
    return Hiding(Server(stub.url), config)


def asked_of(body):
    return read(json.dumps(body).encode(), "application/json")


def sent(stub):
    return json.dumps(stub.asked, ensure_ascii=False)


class Echo:
    """A model's server that sends back what it read, in pieces, as text, reasoning and a call of a tool."""

    def __init__(self, cut):
        self.cut, self.read = cut, ""

    async def whole(self, asked, headers):
        self.read = asked.body["messages"][-1]["content"]
        calls = [{"function": {"name": "f", "arguments": json.dumps({"a": [self.read]})}}]
        return [Part(at, self.read, self.read, calls, "stop") for at in range(asked.choices)], {}

    async def parts(self, asked, headers):
        (whole, *_), _ = await self.whole(asked, headers)
        arguments = whole.calls[0]["function"]["arguments"]
        for at in range(asked.choices):
            for piece in self.cut(self.read):
                yield Part(at, piece)
                yield Part(at, reasoning=piece)
            for piece in self.cut(arguments):
                yield Part(at, calls=[{"index": 0, "function": {"arguments": piece}}])
            yield Part(at, end="stop")
        yield {"prompt_tokens": 1}


def streamed(echo, text, config=CONFIG, n=1):
    """Text, reasoning and arguments of each choice, as a client puts them together."""

    async def run():
        told = [["", "", Calls()] for _ in range(n)]
        async for part in Hiding(echo, config).parts(asked_of(ask(text, n=n)), {}):
            if isinstance(part, Part):
                told[part.index][0] += part.text
                told[part.index][1] += part.reasoning
                told[part.index][2].add(part.calls)
        return [(text, thought, calls.changed(str, str)) for text, thought, calls in told]

    return asyncio.run(run())


def pieces(text, places):
    marks = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(marks)]


def test_a_reply_comes_back_exactly_at_every_split():
    whole = Vault(CONFIG).hide(TEXT)
    for place in range(len(whole) + 1):
        echo = Echo(lambda text, at=place: pieces(text, [at]))
        for text, thought, calls in streamed(echo, TEXT, n=2):
            assert text == thought == TEXT
            assert json.loads(calls[0]["function"]["arguments"]) == {"a": [TEXT]}
        assert not [secret for secret in SECRETS if secret in echo.read]


FRAGMENTS = st.sampled_from(
    [*SECRETS, 'quib-"a"', "<EMAIL_1>", "<EMAIL_", "<", ">", "\n", " and ", '"', "\\", "é", "1"]
)


@given(st.lists(FRAGMENTS, max_size=12), st.lists(st.integers(0, 400), max_size=8))
def test_any_text_comes_back_however_it_is_cut(fragments, places):
    text = "".join(fragments) or "x"
    echo = Echo(lambda told: pieces(told, places))
    found = streamed(echo, text)[0]
    assert found[0] == found[1] == text
    assert json.loads(found[2][0]["function"]["arguments"]) == {"a": [text]}
    whole, _ = asyncio.run(Hiding(echo, CONFIG).whole(asked_of(ask(text)), {}))
    assert (whole[0].text, whole[0].reasoning) == (text, text)


def test_over_a_socket_nothing_reaches_the_server_and_the_client_reads_what_it_wrote(stub, front):
    proxy = front(both(), behind(stub))
    stub.text = "so <NAME_1>, at <EMAIL_1>: <CARD_1>; <EMAIL_7> is none of yours."
    want = "so Ann Quibble, at ann@example.org: 4111 1111 1111 1111; <EMAIL_7> is none of yours."
    text = TEXT.partition(", and")[0]
    assert proxy.post(ask(text)).json()["choices"][0]["message"]["content"] == want
    found = proxy.stream(ask(text, n=1))
    assert (said(found), ends(found)) == (want, ["stop"])
    assert not [secret for secret in SECRETS if secret in sent(stub)]
    assert stub.asked[0]["messages"][0]["content"] == "i am <NAME_1>, <EMAIL_1>, card <CARD_1>"
    assert [line["outcome"] for line in proxy.lines()] == ["answered"] * 2
    assert proxy.lines()[0]["replies"] == {"0": want}  # in full, as the setting says


def test_an_audit_of_digests_holds_no_original(stub, front):
    proxy = front([Layer("mail", "output", words("barn"))], behind(stub), keep="digest")
    stub.text = "write to <EMAIL_1>, <NAME_1>"
    assert "ann@example.org" in said(proxy.stream(ask(TEXT)))
    stub.status = 400
    proxy.post(ask(TEXT))
    written = proxy.audit.path.read_text()
    assert len(proxy.lines()) == 2
    assert not [secret for secret in SECRETS if secret in written]


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
@pytest.mark.parametrize("stream", [True, False])
def test_output_layers_read_what_the_client_will_read(stub, front, field, stream):
    proxy = front([Layer("replied", "output", words("ann@example.org"))], behind(stub))
    text = "write to <EMAIL_1> and be well"
    stub.pieces = [chunk({field: part}) for part in text] + [chunk({}, "stop")]
    stub.answer = {"choices": [{"index": 0, "message": {field: text}, "finish_reason": "stop"}]}
    if stream:
        found = proxy.stream(ask("i am ann@example.org"))
        assert "example" not in said(found, field)
        assert ends(found) == ["content_filter"]
    else:
        choice = proxy.post(ask("i am ann@example.org")).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (REFUSAL, "content_filter")


def test_input_layers_read_what_the_client_sent(stub, front):
    proxy = front([Layer("asked", "input", words("ann@example.org"))], behind(stub))
    assert proxy.post(ask("ann@example.org")).json()["choices"][0]["finish_reason"] == "content_filter"
    assert stub.asked == []


def test_clients_do_not_share_a_vault(stub, front):
    proxy = front(both(), behind(stub))
    stub.text = "it is <EMAIL_1>, <EMAIL_2>."
    for text, want in {
        "ann@example.org": "it is ann@example.org, <EMAIL_2>.",
        "bob@example.org": "it is bob@example.org, <EMAIL_2>.",
        "nobody": "it is <EMAIL_1>, <EMAIL_2>.",
    }.items():
        assert said(proxy.stream(ask(text))) == want


def message(content, **more):
    return {"messages": [{"role": "user", "content": content, **more}]}


def in_parts(*texts):
    return message([{"type": "text", "text": text} for text in texts])


def call_of(arguments):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "a", "content": "<x>"}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}, answer]}


@pytest.mark.parametrize(
    "more",
    [
        {"user": "ann@example.org"},
        {"stop": ["ann@example.org"]},
        {"metadata": {"ann@example.org": "x"}},
        {"metadata": {"card": 4111111111111111}},
        {"metadata": {"id": "ann@example.org", "type": "ann@example.org", "role": "ann@example.org"}},
        {"documents": [{"content": [{"type": "text"}, "ann@example.org"]}]},
        {"documents": [{"content": [{"type": {}}, "ann@example.org"]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "ask Ann Quibble"}}]},
        message("x", name="Ann Quibble"),
        in_parts("ann@exa", "mple.org"),
        in_parts("4111 1111", "1111 1111"),
        in_parts("ann@example.org", "so"),
        {"messages": [{"role": "tool", "tool_call_id": "a", "content": "ann@example.org"}]},
        call_of('{"to": "ann@example.org"}'),
        call_of('{"to": "\\u0061nn@example.org"}'),
        call_of('{"to": "ann@example.org", "to": "<LITERAL_1>"}'),
        call_of('{"card": 4111111111111111}'),
        call_of('{"a": NaN, "to": "\\u0061nn@example.org", "b": "\\ud83d"}'),
        call_of("ann@example.org {"),
    ],
)
def test_every_text_of_a_request_is_searched(stub, front, more):
    front(both(), behind(stub)).post({**ask(), **more})
    read_by_it = sent(stub)
    assert len(stub.asked) == 1
    for secret in ("ann@", "Ann Quibble", "exa", "4111", "\\u0061"):
        assert secret not in read_by_it, secret
    assert "_1>" in read_by_it


def test_settings_and_words_of_the_protocol_stay():
    names = ("Max", "User", "Function", "Object", "Content", "Stub")
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    settings = {"max_tokens": 9, "temperature": 0.5, "seed": 4111111111111111, "n": 1, "stream": True}
    body = {
        **ask("hello"),
        **settings,
        "tools": [{"type": "function", "function": function}],
        "stream_options": {"include_usage": True},
    }
    assert hidden(body, Vault(PiiGuard(names=names))) == body


def arguments(found):
    deltas = [one["choices"][0]["delta"] for one in found if isinstance(one, dict)]
    return [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", ())]


def test_arguments_stay_json_when_a_value_holds_a_quotation_mark(stub, front):
    proxy = front(both(), behind(stub))
    for written, want in {
        '{"a": "\\u003cPATTERN_1>", "b": 1.50}': '{"a": "quib-\\"a\\"", "b": 1.5}',
        '{ "a":"<EMAIL_9>",  "b": 1.50}': '{ "a":"<EMAIL_9>",  "b": 1.50}',
    }.items():
        call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": written}}
        stub.pieces = [chunk({"tool_calls": [call]}), chunk({}, "tool_calls")]
        assert arguments(proxy.stream(ask('see quib-"a"'))) == [want]


def test_a_placeholder_that_the_reply_begins_and_the_server_breaks_off_does_not_leave(stub, front):
    proxy = front([], behind(stub))
    stub.pieces = [chunk({"content": "it is <EMA"})]
    found = proxy.stream(ask("ann@example.org"))
    assert said(found) == "it is "
    stub.pieces = [chunk({"content": "it is <EMA"}), chunk({}, "length")]
    assert said(proxy.stream(ask("ann@example.org"))) == "it is <EMA"


def test_a_model_in_this_process_reads_placeholders_too(front):
    read_by_it = []

    def answer(chat):
        read_by_it.append(chat.last_user)
        return Completion(text=f"you are {chat.last_user}")

    proxy = front(both(), Hiding(InProcess(ScriptedModel(answer), "scripted"), CONFIG))
    assert said(proxy.stream(ask("ann@example.org"))) == "you are ann@example.org"
    assert read_by_it == ["<EMAIL_1>"]


def test_a_defended_model_is_the_same_system():
    seen = Counter()

    def answer(chat):
        seen.update([chat.last_user])
        return Completion(text=f"to {chat.last_user}", reasoning=f"so {chat.last_user}")

    model = ScriptedModel(answer)
    system = Defended(model, [Layer("mail", "output", words("bob@example.org"))], hide=CONFIG)
    said_, blocked = system.generate([Chat.ask("ann@example.org \ud800"), Chat.ask("bob@example.org")])
    assert (said_.text, said_.reasoning) == ("to ann@example.org ?", "so ann@example.org ?")
    assert blocked.stop == "blocked"
    assert seen == {"<EMAIL_1> ?": 1, "<EMAIL_1>": 1}
    plain = Defended(model, [Layer("mail", "output", words("bob@example.org"))])
    assert plain.identity.digest != system.identity.digest
    with pytest.raises(ConfigError, match="no personal data"):
        Defended(model, [], hide=PiiGuard(kinds=()))


def test_the_policy_names_what_is_hidden_by_digest_alone():
    layers = [Layer("mail", "output", words())]
    spec = {"layer": [{"name": "mail", "side": "output", "guard": "x"}]}
    with_, without = (StackSpec(**spec, hide=hide) for hide in (CONFIG, None))
    assert policy_of(with_, layers, "u")["digest"] != policy_of(without, layers, "u")["digest"]
    assert "Quibble" not in json.dumps(policy_of(with_, layers, "u"))
    with pytest.raises(ConfigError, match="RE2"):
        Hiding(Server("http://localhost:1/v1"), PiiGuard(patterns=("(",)))
