"""Keys, checkpoints and what a witness saw, from the command line."""

from __future__ import annotations

import json

import pytest

RECORDS = "records.jsonl"


@pytest.fixture
def kept(calibrant, copied, tmp_path):
    """A key, and a file of checkpoints outside the ledger."""
    assert calibrant("keys", tmp_path / "ann.pem").code == 0
    made = calibrant(
        "seal", tmp_path / "away" / "seen.jsonl", "--key", tmp_path / "ann.pem", "--ledger", copied
    )
    assert made.code == 0 and "signed" in made.out, made.err
    return tmp_path / "away" / "seen.jsonl"


def look(calibrant, copied, kept, *rest):
    return calibrant("verify", "--ledger", copied, "--witness", kept, *rest)


def trusted(kept):
    return "--trust", kept.parent.parent / "ann.pub"


def test_a_sealed_ledger_is_witnessed_to_its_end(calibrant, copied, kept):
    said = look(calibrant, copied, kept, *trusted(kept))
    assert said.code == 0 and "intact" in said.out and "tail witnessed" in said.out
    told = json.loads(look(calibrant, copied, kept, *trusted(kept), "--json").out)
    assert (told["verdict"]["answer"], told["tail"]["answer"]) == ("yes", "yes")


def test_a_cut_end_shows_with_a_witness_only(calibrant, copied, kept):
    path = copied / RECORDS
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:-3], b""]))
    assert calibrant("verify", "--ledger", copied).code == 0
    said = look(calibrant, copied, kept, *trusted(kept))
    assert said.code == 1 and "the last 2 were cut off" in said.out


def test_what_no_trusted_key_signed_is_unknown(calibrant, copied, kept, tmp_path):
    said = look(calibrant, copied, kept)
    assert said.code == 2 and "signed by no key that you trust" in said.out
    assert calibrant("keys", tmp_path / "ben.pem").code == 0
    assert look(calibrant, copied, kept, "--trust", tmp_path / "ben.pub").code == 2
    kept.write_text("")
    assert "holds no checkpoint" in look(calibrant, copied, kept, *trusted(kept)).out


def test_a_ledger_that_was_changed_is_not_sealed_again(calibrant, copied, kept, tmp_path):
    key = ("--key", tmp_path / "ann.pem", "--ledger", copied)
    assert calibrant("seal", kept, *key).code == 0
    assert len(kept.read_bytes().splitlines()) == 2
    path = copied / RECORDS
    path.write_bytes(b"\n".join([*path.read_bytes().split(b"\n")[:-2], b""]))
    said = calibrant("seal", kept, *key)
    assert said.code == 3 and "were cut off" in said.err and len(kept.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seal", "{away}", "--key", "{tmp}/nothing.pem"], "nothing.pem"),
        (["seal", "{away}", "--key", "{tmp}/ann.pub"], "no private Ed25519 key"),
        (["seal", "{ledger}/seen.jsonl", "--key", "{tmp}/ann.pem"], "lies in the ledger"),
        (["seal", "{tmp}/seen.txt", "--key", "{tmp}/ann.pem"], "name it seen.jsonl"),
        (["seal", "{away}", "--key", "{tmp}/ann.pem", "--name", "other"], "leave --name out"),
        (["seal", "{tmp}/new.jsonl", "--key", "{tmp}/ann.pem", "--name", " a"], "names no log"),
        (["verify", "--witness", "{tmp}/nothing.jsonl"], "nothing.jsonl"),
        (["verify", "--witness", "{away}", "--trust", "{tmp}/ann.pem"], "holds a private key"),
        (["verify", "--trust", "{tmp}/ann.pub"], "--trust without --witness"),
        (["keys", "{tmp}/ann.pem"], "is there already"),
        (["keys", "{tmp}/ann"], "is there already"),
    ],
)
def test_what_cannot_be_done_is_said(calibrant, copied, kept, tmp_path, words, told):
    names = {"{away}": str(kept), "{tmp}": str(tmp_path), "{ledger}": str(copied)}
    filled = []
    for word in words:
        for name, value in names.items():
            word = word.replace(name, value)
        filled.append(word)
    said = calibrant(*filled, *([] if words[0] == "keys" else ["--ledger", copied]))
    assert said.code == 3 and told in said.err, (said.out, said.err)


OTHER = ["x", "[]", "{}", '{"payload":1,"payload":2}', '{"payload":"","payloadType":"a"}']


@pytest.mark.parametrize("line", OTHER)
def test_a_witness_of_other_lines_is_refused(calibrant, copied, kept, line):
    kept.write_text(kept.read_text() + line + "\n")
    said = look(calibrant, copied, kept, *trusted(kept))
    assert said.code == 3 and "envelope" in said.err


def test_an_empty_ledger_is_not_sealed(calibrant, tmp_path):
    calibrant("keys", tmp_path / "ann.pem")
    said = calibrant(
        "seal", tmp_path / "s.jsonl", "--key", tmp_path / "ann.pem", "--ledger", tmp_path / "none"
    )
    assert said.code == 3 and "no records" in said.err and not (tmp_path / "s.jsonl").exists()
