"""One variable for one host and port: what looks alike gets no key."""

from __future__ import annotations

import itertools

import pytest

from calibrant.core import InputError
from calibrant.models.keys import key_variable


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "API_OPENAI_COM"),
        ("HTTPS://API.OpenAI.com:443/v1/chat/completions", "API_OPENAI_COM"),
        ("https://api-openai.com/v1", "API__OPENAI_COM"),
        ("https://api.openai.com:8443/v1", "API_OPENAI_COM_8443"),
        ("http://api.openai.com:443/v1", "API_OPENAI_COM_443"),
        ("http://127.0.0.1:8000", "127_0_0_1_8000"),
        ("http://localhost", "LOCALHOST"),
        ("http://[::1]:8000/v1", "IP6___00000000000000000000000000000001_8000"),
        ("http://[0:0::1]:8000/v1", "IP6___00000000000000000000000000000001_8000"),
        ("https://bücher.example", "XN____BCHER__KVA_EXAMPLE"),
        ("https://аpi.openai.com", "XN____PI__6KC_OPENAI_COM"),  # a Cyrillic letter
    ],
)
def test_the_name_of_the_variable(url: str, name: str):
    assert key_variable(url) == f"CALIBRANT_API_KEY_{name}"


@pytest.mark.parametrize(
    "host",
    ["my_host", "a..b", "api.openai.com.", "-a.com", "a-.com", "127.0.0:1", "1.2.3.4.8000", "2130706433",
     "0x7f.1", "a.com%00.b.com", "api%2eopenai%2ecom", "[fe80::1%25eth0]", "xn--.a"],
)  # fmt: skip
def test_a_host_that_could_be_read_in_two_ways_has_none(host: str):
    assert key_variable(f"https://{host}/v1") == ""


@pytest.mark.parametrize(
    "url",
    [r"https://api.openai.com\@evil.example/v1", "https://u:p@host", "ftp://host", "https://127.0.0.01"],
)
def test_what_is_no_address_has_none(url: str):
    with pytest.raises(InputError):
        key_variable(url)


def test_no_two_addresses_share_a_variable():
    """All hosts of up to four characters over an alphabet with every separator, each with several ports."""
    hosts = {"".join(marks) for size in range(1, 5) for marks in itertools.product("a1.-_", repeat=size)}
    hosts |= {"127.0.0.1", "127.0.0.11", "a.b-c.d", "a-b.c-d", "xn--a.b", "ip6.0001", "ip6-0-1", "[::1]",
              "[::11]", "[::a:1]"}  # fmt: skip
    found: dict[str, tuple[str, str]] = {}
    for host, port in itertools.product(sorted(hosts), ("", ":1", ":11", ":8000")):
        name = key_variable(f"https://{host}{port}")
        if name:
            assert found.setdefault(name, (host, port)) == (host, port)
    assert len(found) > 250
    assert all(name.removeprefix("CALIBRANT_API_KEY_").replace("_", "").isalnum() for name in found)
