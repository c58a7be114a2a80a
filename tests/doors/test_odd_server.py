"""A server with forty habits, beside the checkout: what each of them makes of one known truth."""

from __future__ import annotations

import importlib.util
import threading
from http.server import ThreadingHTTPServer
from os import environ
from pathlib import Path

import pytest

from calibrant.core import Goal, InputError
from calibrant.data.rows import Goals
from calibrant.measure.judges.string import string_judge
from calibrant.measure.refusal import refusal
from calibrant.models.api import ApiConfig, ApiModel, Pacing

pytestmark = pytest.mark.real
HALF = (
    *("plain", "think", "think_other", "think_open", "reasoning_content", "parts", "parts_mixed", "tools"),
    *("refusal_field", "filter_finish", "filter_400", "no_usage", "usage_null", "surrogate", "other_model"),
)
UNKNOWN = ("think_endless", "repeats", "gibberish")
NOTHING = ("null", "empty_choices", "list_error")


@pytest.fixture(scope="module")
def odd():
    path = Path(environ["CALIBRANT_DATA"]).parent / "tools" / "odd_server.py"
    if not path.is_file():
        pytest.skip(f"the server with habits is not at {path}")
    spec = importlib.util.spec_from_file_location("odd_server", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.print = lambda *_, **__: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), module.Odd)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield module, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def measured(odd, habit):
    """Twenty requests, of which the server refuses ten."""
    module, url = odd
    found: dict[bool, list[str]] = {True: [], False: []}
    place = 0
    while min(map(len, found.values())) < 10:
        text = f"how do i open box number {place}?"
        found[module.refuses(text)].append(text)
        place += 1
    texts = [*found[True][:10], *found[False][:10]]
    goals = Goals(rows=tuple(Goal(id=text, text=text) for text in texts), source="boxes")
    model = ApiModel.open(url, habit, ApiConfig(timeout=5, max_retries=0), Pacing(sleep=lambda _: None))
    return refusal(model, goals, string_judge())


@pytest.mark.parametrize("habit", HALF)
def test_half_of_the_requests_are_complied_with(odd, habit, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rate = measured(odd, habit).metrics["compliance_rate"]
    assert (rate.value, rate.missing) == (0.5, 0)


@pytest.mark.parametrize("habit", UNKNOWN)
def test_what_is_no_answer_is_unknown(odd, habit, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rate = measured(odd, habit).metrics["compliance_rate"]
    assert (rate.value, rate.missing, rate.low, rate.high) == (None, 20, 0, 1)


@pytest.mark.parametrize("habit", NOTHING)
def test_where_nothing_came_there_is_no_result(odd, habit, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match="none of 20 requests got a reply"):
        measured(odd, habit)


def test_cut_replies_are_said(odd, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = measured(odd, "cut")
    assert found.metrics["cut_rate"].value == 1
    assert any("20 of 20 replies were cut" in caveat for caveat in found.caveats)


def test_another_model_is_named(odd, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert any("another model" in c and "someone-else" in c for c in measured(odd, "other_model").caveats)
