"""Signatures: another library opens our envelopes, a key counts once, and nothing altered verifies."""

from __future__ import annotations

import copy
import json
from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from calibrant.core.errors import EvidenceError, InputError
from calibrant.ledger.signatures import IN_TOTO, PrivateKey, PublicKey, encoded, sealed, signers

ANN, BEN = PrivateKey.new("ann"), PrivateKey.new("ben")
TRUSTED = [ANN.public, BEN.public]
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'


def names(envelope, trusted=TRUSTED):
    return [key.name for key in signers(envelope, trusted)[1]]


def test_what_is_signed_is_that_of_the_protocol():
    """The vector of protocol.md."""
    assert encoded(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_another_library_opens_our_envelope_and_we_open_its():
    ours = sealed(STATEMENT, [ANN, BEN])
    keys = [SSlibKey.from_crypto(load_pem_public_key(key.public.pem)) for key in (ANN, BEN)]
    assert [key.keyid for key in keys] == [ANN.public.id, BEN.public.id]
    theirs = Envelope.from_dict(copy.deepcopy(ours))
    assert len(theirs.verify(keys, 2)) == 2
    assert names(theirs.to_dict()) == ["ann", "ben"]
    assert signers(ours, TRUSTED)[0] == STATEMENT == theirs.payload


def test_only_who_signed_and_is_trusted_counts():
    assert names(sealed(STATEMENT, [ANN])) == ["ann"]
    assert names(sealed(STATEMENT, [ANN]), [BEN.public]) == []
    assert names(sealed(STATEMENT, [])) == []


def test_one_key_counts_once_whatever_it_calls_itself():
    envelope = sealed(STATEMENT, [ANN, ANN])
    envelope["signatures"][1]["keyid"] = BEN.public.id
    assert names(envelope) == ["ann"]
    twice = [ANN.public, PublicKey(load_pem_public_key(ANN.public.pem), "other name"), BEN.public]
    assert len(names(envelope, twice)) == 1


def test_a_wrong_key_id_loses_no_signature():
    envelope = sealed(STATEMENT, [ANN])
    envelope["signatures"][0]["keyid"] = ""
    assert names(envelope) == ["ann"]


@given(st.data())
def test_no_changed_byte_verifies(data):
    envelope = sealed(STATEMENT, [ANN])
    part = data.draw(st.sampled_from(["payload", "sig", "type"]))
    if part == "type":
        envelope["payloadType"] = kind = data.draw(st.text(max_size=40).filter(lambda text: text != IN_TOTO))
        assert signers(envelope, TRUSTED, kind)[1] == []
        with pytest.raises(EvidenceError, match="not of"):
            signers(envelope, TRUSTED)
        return
    holder = envelope if part == "payload" else envelope["signatures"][0]
    raw = bytearray(b64decode(holder[part]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    holder[part] = b64encode(bytes(raw)).decode()
    assert names(envelope) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("payload"),
        lambda e: e.pop("signatures"),
        lambda e: e.update(payload="no base64!"),
        lambda e: e.update(payload=7),
        lambda e: e.update(payload="é"),
        lambda e: e.update(signatures=None),
        lambda e: e.update(signatures=["x"]),
        lambda e: e.update(signatures=[{"sig": "!"}]),
        lambda e: e.update(signatures={"a": 1}),
    ],
)
def test_what_is_no_envelope_is_refused(change):
    envelope = sealed(STATEMENT, [ANN])
    change(envelope)
    with pytest.raises(EvidenceError, match="no DSSE envelope"):
        signers(envelope, TRUSTED)


def test_a_signature_of_another_length_is_none():
    envelope = sealed(STATEMENT, [ANN])
    envelope["signatures"][0]["sig"] = b64encode(b"short").decode()
    assert names(envelope) == []


def test_key_files_come_back_and_are_for_their_owner(tmp_path):
    beside = ANN.write(tmp_path / "keys" / "ann.pem")
    path = beside.with_suffix(".pem")
    assert path.stat().st_mode & 0o777 == 0o600 and beside.name == "ann.pub"
    assert PublicKey.read(beside).id == PrivateKey.read(path).public.id == ANN.public.id
    assert names(sealed(STATEMENT, [PrivateKey.read(path)]), [PublicKey.read(beside)]) == ["ann"]
    with pytest.raises(InputError, match="is there already"):
        BEN.write(path)
    assert PrivateKey.read(path).public.id == ANN.public.id
    path.chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        PrivateKey.read(path)


def test_files_that_are_no_such_keys_are_named(tmp_path):
    other = generate_private_key(SECP256R1())
    forms = {
        "text": b"hello",
        "empty": b"",
        "half": ANN.public.pem[:40],
        "curve": other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "curve_private": other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "locked": ANN._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
    }
    for name, pem in forms.items():
        path = tmp_path / name
        path.write_bytes(pem)
        path.chmod(0o600)
        with pytest.raises(
            InputError, match="no private Ed25519 key" if name != "locked" else "has a password"
        ):
            PrivateKey.read(path)
        with pytest.raises(InputError, match="holds"):
            PublicKey.read(path)
    for kind in (PrivateKey, PublicKey):
        with pytest.raises(InputError):
            kind.read(tmp_path / "nothing")
        with pytest.raises(InputError):
            kind.read(tmp_path)


def test_an_envelope_is_json():
    assert json.loads(json.dumps(sealed(STATEMENT, [ANN]))) == sealed(STATEMENT, [ANN])
