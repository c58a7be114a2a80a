"""Checkpoints: what a chain of digests does not show, a cut end and a rewritten log, they do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core.errors import EvidenceError, InputError
from calibrant.ledger.checkpoints import KIND, Checkpoint, checkpoint_of, signed, tail, witnessed
from calibrant.ledger.signatures import PrivateKey, sealed

ANN, BEN = PrivateKey.new("ann"), PrivateKey.new("ben")
LINES = [f'{{"n":{n}}}'.encode() for n in range(12)]


def at(size, origin="log"):
    return checkpoint_of(LINES[:size], origin)


def test_the_text_is_that_of_the_specification():
    """Three lines, each ended; the root of RFC 6962's empty tree is known."""
    assert at(0).text() == "log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    assert Checkpoint.parse(at(5).text()) == at(5)
    assert Checkpoint.parse(at(5).text() + "an extension\n") == at(5)


@pytest.mark.parametrize(
    "text",
    [
        "", "log", "log\n5", "log\n5\n", "log\n5\nAAAA\n", "\n5\n{root}\n", " \n5\n{root}\n",
        "log\n05\n{root}\n",
        "log\n+5\n{root}\n", "log\n-5\n{root}\n", "log\n5.0\n{root}\n", "log\n٥\n{root}\n", "log\n5\n{root}",
        "log\n5\n!{root}\n", "log\n5\n{root} \n", "log\n 5\n{root}\n", "log\n5_0\n{root}\n",
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(text):
    root = at(5).text().split("\n")[2]
    with pytest.raises(EvidenceError, match="no checkpoint"):
        Checkpoint.parse(text.replace("{root}", root))


@pytest.mark.parametrize("origin", ["", " ", "a\nb", " a", "a ", "a\x00", "a\u2028b"])
def test_a_name_of_a_log_is_one_line(origin):
    with pytest.raises(InputError, match="names no log"):
        checkpoint_of(LINES, origin)


def test_who_signed_it():
    envelope = json.loads(json.dumps(signed(at(7), [ANN])))
    found, keys = witnessed(envelope, [ANN.public, BEN.public])
    assert found == at(7) and [key.name for key in keys] == ["ann"]
    assert witnessed(envelope, [BEN.public])[1] == []
    for payload in (b"\xff", b"no checkpoint", b""):
        with pytest.raises(EvidenceError, match="no checkpoint"):
            witnessed(sealed(payload, [ANN], KIND), [ANN.public])
    with pytest.raises(EvidenceError, match="not of"):
        witnessed(sealed(at(7).text().encode(), [ANN]), [ANN.public])


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_ledger_that_only_grew_is_witnessed(old, new):
    old, new = sorted((old, new))
    said = tail(LINES[:new], [at(old)])
    assert said.answer == "yes"
    assert (f"{new - old} later ones are not witnessed" in said.reason) == (new > old)


@given(st.integers(1, 12), st.integers(0, 11))
def test_cut_lines_are_told(old, left):
    if left < old:
        said = tail(LINES[:left], [at(old)])
        assert said.answer == "no" and f"the last {old - left} were cut off" in said.reason


@given(st.integers(1, 12), st.data())
def test_a_line_that_is_edited_removed_added_or_moved_is_told(old, data):
    place = data.draw(st.integers(0, old - 1))
    lines = list(LINES)
    match data.draw(st.sampled_from(["edit", "remove", "add", "move"])):
        case "edit":
            lines[place] += b" "
        case "remove":
            del lines[place]
            lines.append(b"another")
        case "add":
            lines.insert(place, b"another")
        case "move":
            other = data.draw(st.integers(0, 11).filter(lambda n: n != place))
            lines[place], lines[other] = lines[other], lines[place]
    assert tail(lines, [at(old)]).answer == "no"


def test_every_checkpoint_counts_and_none_is_unknown():
    assert tail(LINES, []).answer == "unknown"
    assert tail(LINES, [at(3), at(9)]).answer == "yes"
    rewritten = [*LINES[:5], b"other", *LINES[6:]]
    assert tail(rewritten, [at(3)]).answer == "yes"
    assert tail(rewritten, [at(3), at(9)]).answer == "no"
    # Two that contradict each other cannot both hold.
    other = checkpoint_of(rewritten, "log")
    assert tail(LINES, [at(3), other]).answer == tail(rewritten, [at(9), other]).answer == "no"
    assert "several logs" in tail(LINES, [at(3), at(9, "another log")]).reason
