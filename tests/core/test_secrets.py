"""Keys are struck by value in every way they are written, passwords by their place in a URL."""

from __future__ import annotations

import base64
import html
import json
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest

from calibrant.core.secrets import strike, strike_files, without_secrets
from calibrant.core.shown import harmless, harmless_json, visible

KEY = 'sk-made/up+key&"90'


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CALIBRANT_API_KEY_HOST", f" {KEY}\n")
    return KEY


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "form",
    [
        KEY, f"Bearer {KEY}", quote(KEY), quote(KEY, safe=""), json.dumps(KEY), html.escape(KEY),
        coded(KEY), coded(f"x{KEY}"), coded(f"xy{KEY}z"), coded(f"Bearer {KEY} and more"),
        base64.urlsafe_b64encode(f"?>{KEY}".encode()).decode(),
        KEY.upper(), KEY.title(), quote(KEY, safe="").lower(),
    ],
)  # fmt: skip
def test_a_key_is_struck_however_it_is_written(key: str, form: str):
    struck = strike({"a": [f"before {form} after"], form: (1, None, True)})
    assert "[key]" in struck["a"][0] and struck["a"][0].startswith("before ")
    assert struck["a"][0].endswith(" after")
    for part in (
        KEY,
        KEY[3:12],
        html.escape(KEY),
        quote(KEY)[3:14],
        coded(f"xy{KEY}")[6:16],
        coded(KEY)[4:14],
    ):
        assert part.lower() not in str(struck).lower()


def test_what_is_no_key_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CALIBRANT_API_KEY_HOST", "EMPTY")  # a placeholder, not a secret
    monkeypatch.setenv("CALIBRANT_API_KEY_OTHER", "")
    assert strike("EMPTY words, key sk-1234567890") == "EMPTY words, key sk-1234567890"
    assert strike("the one given: made-up-key", "made-up-key") == "the one given: [key]"
    assert strike(["x", 1.5, None]) == ["x", 1.5, None]


def test_text_files_are_struck_and_others_left(key: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    rows, weights = tmp_path / "in" / "attempts.jsonl", tmp_path / "in" / "w.safetensors"
    rows.write_bytes(json.dumps({"text": KEY}).encode() + b"\xff\n")
    weights.write_text(KEY)
    strike_files(tmp_path / "in")
    assert rows.read_bytes() == b'{"text": "[key]"}\xff\n'
    assert weights.read_text() == KEY


PASSWORDS = [
    "hunter2", "hun/ter2", "hun'ter2", "hun#ter2", "hun ter2", "hun?ter2", "hun@ter2", "hun:ter2", 'hun"ter2',
    "hun%2Fter2", "2hunter2", "hunter2/", "ключhunter2",
]  # fmt: skip


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_in_a_url_is_left_out(password: str):
    schemes = ("https", "HTTP", "Https", "ws", "WSS", "socks5", "postgres+psql")
    hosts = ("host.example/v1", "[::1]:8000/v1", "127.0.0.1:9")
    for scheme, user, host in product(schemes, ("us-er", "", "user name"), hosts):
        told = {"reference": [f"api:{scheme}://{user}:{password}@{host}#m"]}
        assert without_secrets(told) == {"reference": [f"api:{scheme}://{host}#m"]}
        said = without_secrets(f"'{scheme}://{user}:{password}@{host}' is no model")
        assert said == f"'{scheme}://{host}' is no model"


@pytest.mark.parametrize("piece", ["a", "a://b:", "http://", "http://h?", "x@", "a://" + "b" * 300])
def test_a_long_text_is_no_trap(piece: str):
    """Work that grew with the square of the length would take minutes here."""
    text = piece * (50_000 // len(piece))
    assert len(without_secrets(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://token@host/v1", "https://host/v1"),
        ("HTTPS://host/v1?key=abc#m", "HTTPS://host/v1#m"),
        ("wss://host?key=abc", "wss://host"),
        ("http://localhost:8000/v1#m@rev", "http://localhost:8000/v1#m@rev"),
        ("http://localhost:8000, or write to a@b.example", "http://localhost:8000, or write to a@b.example"),
        ("'http://host/v1' is no model; hf:NAME@REV", "'http://host/v1' is no model; hf:NAME@REV"),
        ("https://host/a@b/c", "https://host/a@b/c"),
        ("a: b@c", "a: b@c"),
    ],
)
def test_urls_without_a_password_stay_and_queries_go(text: str, left: str):
    assert without_secrets(text) == left


def test_text_steers_neither_terminal_nor_reader(key: str):
    text = "a\x1b[2J\x07\r\x9b\x7f\u202eb\u2066\ud800\tc\nd é 模 👩\u200d🔬"
    assert harmless(f"{text} {KEY}") == (
        "a\\x1b[2J\\x07\\r\\x9b\\x7f\\u202eb\\u2066\\ud800\tc\nd é 模 👩\u200d🔬 [key]"
    )
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(harmless_json(written)) == text
    assert not set("\x9b\x7f\u202e") & set(harmless_json(written))
    assert visible("a\u200bb\x1b") == "a\\u200bb\\x1b"
