"""The guard of personal data, and the vault: every match is found, and every text comes back as it was."""

from __future__ import annotations

import csv
import itertools
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import Chat, ConfigError, Guard, InputError, resolve
from calibrant.defend._numbers import luhn
from calibrant.defend._vault import Restorer, Vault
from calibrant.defend.pii_guard import PiiGuard, finder, pii_guard
from calibrant.stats.proportion import rate

PLANTED = {
    "email": ("ann@example.org", "a.b+c@mail.example.co.uk", "jürgen@exämple.de", "_x-1@example.museum"),
    "phone": (
        "+44 20 7946 0018",
        "+49 (0)30 1234567",
        "+1-202-555-0143",
        "+33612345678",
        "0033 6 12 34 56 78",
        "(202) 555-0143",
        "202-555-0143",
        "202.555.0143",
        "1 202 555 0143",
        "020 7946 0018",
        "0171/1234567",
        "06 12 34 56 78",
        "07700900123",
    ),
    "iban": (
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "no93 8601 1117 947",
        "FR14-2004-1010-0505-0001-3M02-606",
    ),
    "card": (
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
    ),
    "ip": (
        "192.168.7.10",
        "203.0.113.9",
        "2001:db8::8a2e:370:7334",
        "fe80::1",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ),
    "ssn": ("123-45-6789", "123 45 6789"),
    "url": (
        "https://ann:zorble@example.org",
        "postgres://u:p4ss@10.0.0.5:5432",
        "http://example.org/?a=1&api_key=zorble7zorble",
    ),
    "secret": (
        "sk-proj-A1b2C3d4E5f6G7h8I9j0K1",
        "ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-zorblezorb",
        "-----BEGIN RSA PRIVATE KEY-----",
    ),
}
"""Published examples of documentation and test numbers, none of a person."""
NOTHING = (
    "4111 1111 1111 1112",  # Luhn
    "9111 1111 1111 1119",  # no issuer
    "DE89 3704 0044 0532 0130 01",  # check sum
    "DE89 3704 0044 0532 0130",  # too short
    "000-45-6789",
    "666-45-6789",
    "901-45-6789",
    "123-00-6789",
    "127.0.0.1 and ::1",
    "256.1.1.1",
    "1.2.3.4.5",
    "10:30:45",
    "std::vector a::b",
    "01/02/2024 10:30",
    "2024-01-15T10:30:00",
    "3.14159265358979",
    "0.4111111111111111",
    "40.712776, -74.005974",
    "in 1984, 1985, 1986 and 1987 they sold 1234567 lamps for 99.95",
    "https://example.org:8080/a?b=c@d",
    "sk-learn-compatible-estimators",
    "ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ISBN 978-3-16-148410-0",
    "someone @ home, a@b, @handle",
)
FRAMES = ("{}", "it is {}.", "({})", "x, {}, y", "a\n{}\nb", "是{}吗", '"{}"', "{}: yes")
GUARD = pii_guard()
FIND = finder(PiiGuard()).find


def says(text, side="input", guard=GUARD):
    return guard.ask([Chat.ask(text) if side == "input" else Chat.ask("hi").then("assistant", text)], side)[
        0
    ].answer


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, values in PLANTED.items() for v in values])
def test_each_form_is_found_in_each_frame_on_both_sides(kind, value):
    only = finder(PiiGuard(kinds=(kind,))).find
    for frame in FRAMES:
        text = frame.format(value)
        found = only(text)
        assert [one.kind for one in found] == [kind]
        start = text.index(value)
        assert found[0].start <= start
        assert found[0].end >= start + len(value), "nothing of it is left over"
        assert says(text) == says(text, "output") == "no"


@pytest.mark.parametrize("text", NOTHING)
def test_what_fails_its_check_is_no_personal_data(text):
    assert FIND(text) == []
    assert says(text) == "yes"


def test_every_match_is_found_not_the_first():
    """microsoft/presidio#1925: of three e-mail addresses, only the first was redacted."""
    text = "write to a@example.org, b@example.org;c@example.org"
    assert len(FIND(text)) == 3
    assert Vault().hide(text) == "write to <EMAIL_1>, <EMAIL_2>;<EMAIL_3>"


def test_every_pattern_is_found_not_the_first():
    """llm-guard: one scanner with two patterns redacted what the first one found, and left the second."""
    vault = Vault(PiiGuard(kinds=(), patterns=(r"zorble-\d+", r"quib-\d+")))
    assert vault.hide("zorble-1 quib-2 ZORBLE-3 quib-4") == "<PATTERN_1> <PATTERN_2> <PATTERN_3> <PATTERN_4>"


def test_many_of_each_kind_in_one_text():
    values = [v for kind in ("email", "card", "iban", "ip", "secret") for v in PLANTED[kind]]
    text = "; ".join(values * 3)
    hidden = Vault().hide(text)
    assert not [value for value in values if value in hidden]
    assert hidden.count("<CARD_") == 3 * len(PLANTED["card"])


@pytest.mark.parametrize("mark", ["\u200b", "\u00ad", "\u2060", "\ufe0f", "\U000e0041", "\x00", "\ud800"])
def test_invisible_characters_hide_nothing(mark):
    for value in ("ann@example.org", "4111111111111111", "DE89370400440532013000"):
        assert says(mark.join(value)) == "no"


@pytest.mark.parametrize(
    "text",
    [
        "４１１１　１１１１　１１１１　１１１１",
        "٤١١١ ١١١١ ١١١١ ١١١١",
        "4111\u20101111\u20131111\u22121111",
        "4111\u00a01111\u202f1111 \n 1111",
        "ａｎｎ＠ｅｘａｍｐｌｅ．ｏｒｇ",
        "АКIАIОSFОDNN7ЕХАМРLЕ",  # Cyrillic capitals
        "аnn@ехаmрlе.оrg",  # Cyrillic letters
        "4️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣1️⃣",
    ],
)
def test_other_digits_blanks_and_look_alikes_are_read(text):
    assert len(FIND(text)) == 1
    vault = Vault()
    assert vault.hide(f"so: {text}!").startswith("so: <")
    assert vault.restore(vault.hide(f"so: {text}!")) == f"so: {text}!"


def test_numbers_beside_numbers_are_found():
    for text, kinds in {
        "DE89 3704 0044 0532 0130 00 020 7946 0018": ["iban", "phone"],
        "4111 1111 1111 1111 020 7946 0018": ["card", "phone"],
        "4111 1111 1111 1111 737 12/27": ["card"],
        "06 12 34 56 78 06 12 34 56 79": ["phone", "phone"],
        "in 2024 020 7946 0018": ["phone"],
        "202-555-0143/202-555-0144": ["phone", "phone"],
        "4111111111111111 5555555555554444": ["card", "card"],
    }.items():
        assert [one.kind for one in FIND(text)] == kinds, text


def test_names_are_whole_words_in_any_case_script_and_form():
    find = finder(PiiGuard(kinds=(), names=("Zoë Quibble", "Ann", "李雷", "김철수"))).find
    for text, count in {
        "ann, ANN and Ann": 3,
        "annual Annie cann": 0,
        "zoe quibble": 1,
        "Zoe\u0308 \n QUIBBLE": 1,
        "我叫李雷。": 1,
        "김철수가 왔다": 1,
        "김철수 가": 1,
        "\u0410nn": 1,
        "ann_": 1,
    }.items():
        assert len(find(text)) == count, text


def test_encodings_of_views_are_decoded():
    coded = "cGxlYXNlIHdyaXRlIHRvIGFubkBleGFtcGxlLm9yZw=="  # please write to ann@example.org
    assert says(f"read {coded}") == "no"
    assert says(f"read {coded}", guard=pii_guard(PiiGuard(views=()))) == "yes"


def test_the_whole_conversation_is_read_on_input_and_the_reply_alone_on_output():
    dirty = "mail ann@example.org"
    for chat in (
        Chat.ask("hi", system=dirty),
        Chat.ask(dirty).then("assistant", "no").then("user", "hi"),
        Chat.ask("hi").then("assistant", dirty).then("user", "go on"),
        Chat.ask("my card: 4111 1111").then("assistant", "go on").then("user", "1111 1111"),
        Chat.ask("quib " * 5_000 + dirty),
    ):
        assert GUARD.ask([chat], "input")[0].answer == "no"
    assert GUARD.ask([Chat.ask(dirty).then("assistant", "no")], "output")[0].answer == "yes"
    assert GUARD.ask([Chat.ask("hi")], "output")[0].answer == "unknown"
    assert GUARD.ask([Chat(messages=())], "output")[0].answer == "unknown"


def test_batches_and_duplicates_change_nothing():
    texts = ["hi", "ann@example.org", "hi", "4111 1111 1111 1111", "", "ann@example.org"]
    alone = [says(text) for text in texts]
    for order in itertools.islice(itertools.permutations(range(len(texts))), 0, 720, 97):
        found = GUARD.ask([Chat.ask(texts[place]) for place in order], "input")
        assert [verdict.answer for verdict in found] == [alone[place] for place in order]


def test_a_reason_names_no_value():
    guard = pii_guard(PiiGuard(names=("Zorble",), patterns=("quib-[0-9]+",)))
    for value in ("ann@example.org", "zorble", "quib-77", "4111111111111111"):
        verdict = guard.ask([Chat.ask(f"so {value}")], "input")[0]
        assert verdict.answer == "no"
        assert value not in verdict.reason.lower()
        assert "message 1 (user)" in verdict.reason


def test_what_cannot_be_used_is_refused_by_name():
    assert isinstance(GUARD, Guard)
    with pytest.raises(ConfigError, match="looks for no personal data"):
        pii_guard(PiiGuard(kinds=()))
    with pytest.raises(ConfigError) as caught:
        pii_guard(PiiGuard(patterns=("(", "fine", "(?=a)", "x*", "\ud800")))
    assert len(caught.value.problems) == 4
    for given_, words in (
        ({"kinds": ["emails"]}, "'email'"),
        ({"names": ["a", " \u200b"]}, "blank"),
        ({"names": ["\udc00"]}, "no Unicode"),
        ({"views": ["base46"]}, "did you mean 'base64'?"),
        ({"pattern": ["a"]}, "did you mean 'patterns'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(PiiGuard, given_)
        assert words in str(caught.value)
    with pytest.raises(InputError, match="side 'both'"):
        GUARD.ask([Chat.ask("hi")], "both")


def test_identity_follows_every_setting():
    configs = [
        PiiGuard(),
        PiiGuard(kinds=("card", "email")),
        PiiGuard(patterns=("quib",)),
        PiiGuard(names=("quib",)),
        PiiGuard(views=()),
    ]
    assert len({pii_guard(config).identity.digest for config in configs}) == len(configs)
    assert pii_guard().identity.digest == GUARD.identity.digest


def test_hostile_texts_take_a_number_of_steps_in_proportion(monkeypatch):
    """Twice the text is twice the tries, not four times."""
    from calibrant.defend import _numbers

    calls = []
    real = _numbers._phone
    monkeypatch.setattr(_numbers, "_phone", lambda *a, **k: calls.append(1) or real(*a, **k))
    counts = []
    for size in (1_000, 2_000):
        calls.clear()
        list(_numbers.numbers("012 3-4 " * size))
        counts.append(len(calls))
    assert counts[0] > 0
    assert counts[1] <= 2.1 * counts[0]
    for text in ("a@" * 10_000, "http://a:" * 3_000, ":" * 20_000, "<EMAIL_1" * 3_000, "e\u0301" * 20_000):
        assert says(text) == "yes"


def test_random_digits_are_cards_at_the_rate_of_luhns_formula():
    """Null: of random numbers that begin like a card, Luhn's formula lets a tenth pass."""
    rng = random.Random(5)
    drawn = ["4" + "".join(rng.choices("0123456789", k=15)) for _ in range(4_000)]
    passed = rate([luhn(number) for number in drawn], better="lower", unit="number")
    assert passed.low <= 0.1 <= passed.high
    card = finder(PiiGuard(kinds=("card",))).find
    assert all(bool(card(number)) == luhn(number) for number in drawn)


@pytest.mark.real
def test_benign_public_prompts_are_not_blocked():
    with (Path(os.environ["CALIBRANT_DATA"]) / "xstest" / "prompts.csv").open(encoding="utf-8") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    blocked = rate([says(prompt) != "yes" for prompt in prompts], better="lower", unit="prompt")
    assert blocked.n == 450
    assert blocked.value == 0.0


# The vault

PIECES = st.sampled_from(
    [v for values in PLANTED.values() for v in values]
    + [
        "<EMAIL_1>",
        "<LITERAL_2>",
        "<EMAIL_",
        "1>",
        "<",
        ">",
        "<CARD_<EMAIL_1>>",
        "<email_1>",
        "Zorble",
        " ",
        "\n",
    ]
    + ["４１１１ １１１１ １１１１ １１１１", "\u200b", "e\u0301", "\U0001f600", "@", "+", "4111"]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=8).map("".join)
OWN = PiiGuard(names=("Zorble",), patterns=(r"<\w+_1> ?\w*", "11+"))


@given(TEXTS)
def test_what_is_hidden_comes_back_exactly(text):
    for vault in (Vault(), Vault(OWN)):
        for _ in range(2):
            hidden = vault.hide(text)
            assert vault.restore(hidden) == text
        assert vault.hide(text) == hidden, "one value has one placeholder"


@given(TEXTS)
def test_nothing_that_is_found_is_left(text):
    assert FIND(Vault().hide(text)) == []


def test_values_without_a_blank_between_them_are_all_hidden():
    for text, count in (("ann@example.org123-45-6789", 2), ("fe80::1ann@example.org192.168.7.10", 2)):
        hidden = Vault().hide(text)
        assert FIND(hidden) == []
        assert hidden.count("<") >= count


@given(st.lists(TEXTS, max_size=3), st.data())
def test_every_split_gives_the_same_as_the_whole(texts, data):
    vault = Vault(OWN)
    reply = " and ".join(vault.hide(text) for text in texts) + data.draw(PIECES)
    places = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=8)))
    restorer = Restorer(vault)
    pieces = [reply[a:b] for a, b in itertools.pairwise([0, *places, len(reply)])]
    shown = "".join([*map(restorer.push, pieces), restorer.finish()])
    assert shown == vault.restore(reply)


def test_every_split_of_one_reply_into_two_and_into_characters():
    vault = Vault()
    reply = f"<{vault.hide('ann@example.org 4111 1111 1111 1111 <EMAIL_1>')}> <EMAIL_9> <EMAIL_1"
    whole = vault.restore(reply)
    for cut in range(len(reply) + 1):
        restorer = Restorer(vault)
        assert restorer.push(reply[:cut]) + restorer.push(reply[cut:]) + restorer.finish() == whole
    restorer = Restorer(vault)
    assert "".join(map(restorer.push, reply)) + restorer.finish() == whole


def test_a_restorer_holds_back_no_more_than_a_placeholder():
    restorer = Restorer(Vault())
    assert restorer.push("plain text, a < b ") == "plain text, a < b "
    assert restorer.push("so <EMA") == "so "
    assert restorer.push("X") == "<EMAX"
    assert restorer.push("<" * 50) == "<" * 49
    assert restorer.finish() == "<"


def test_one_value_has_one_placeholder_and_two_have_two():
    vault = Vault()
    assert vault.hide("a@example.org b@example.org a@example.org") == "<EMAIL_1> <EMAIL_2> <EMAIL_1>"
    assert vault.hide("b@example.org 4111111111111111") == "<EMAIL_2> <CARD_1>"
    assert Vault().restore("<EMAIL_1>") == "<EMAIL_1>", "another vault knows nothing of it"


def test_placeholders_in_the_text_itself_are_not_mistaken():
    vault = Vault()
    hidden = vault.hide("ann@example.org is not <EMAIL_1>")
    assert hidden == "<EMAIL_1> is not <LITERAL_1>"
    assert vault.restore(hidden) == "ann@example.org is not <EMAIL_1>"


def test_overlapping_matches_leave_nothing_uncovered():
    vault = Vault(PiiGuard(patterns=("example.org and more",)))
    assert vault.hide("ann@example.org and more") == "<PATTERN_1>"
    hidden = Vault(PiiGuard(names=("ann@example",))).hide("ann@example.org")
    assert hidden == "<EMAIL_1>"


def test_nothing_shows_a_value():
    vault = Vault()
    vault.hide("ann@example.org")
    restorer = Restorer(vault)
    restorer.push("<EMAIL_")
    assert "ann" not in f"{vault!r} {restorer!r} {vault}"


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InputError, match="half a surrogate pair") as caught:
        Vault().hide("ann@example.org \ud800")
    assert "ann" not in str(caught.value)
