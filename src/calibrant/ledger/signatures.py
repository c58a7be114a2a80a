"""Signatures: DSSE envelopes with Ed25519 keys.

Source: Dead Simple Signing Envelope 1.0 (secure-systems-lab/dsse, protocol.md); in-toto Attestation 1.0 for
the payload type. An envelope counts *keys*, not signatures: one key that signs twice, under whatever key
ids, counts once (secure-systems-lab/dsse#51). Who is trusted is the verifier's business: an envelope names
keys, and proves nothing by itself.

Key files are PEM: PKCS #8 for the private key, SubjectPublicKeyInfo for the public one, which other tools
read. Bytes are signed and verified by securesystemslib, whose key ids these are.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey  # type: ignore[attr-defined]

from calibrant.core.errors import EvidenceError, InputError
from calibrant.ledger.layout import disk

IN_TOTO = "application/vnd.in-toto+json"
"""Payload type of in-toto statements."""


class PublicKey:
    """An Ed25519 key that is trusted to some end."""

    def __init__(self, key: Ed25519PublicKey, name: str = "") -> None:
        self._key, self.name = SSlibKey.from_crypto(key), name
        self.pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.id = self._key.keyid

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Of a PEM file; its name is that of the file.

        Raises:
            InputError: there is none, or it holds something else than a public Ed25519 key.
        """
        with disk("reading", path):
            pem = path.read_bytes()
        if b"PRIVATE KEY" in pem:
            raise InputError(f"{path} holds a private key", hint=f"give its public half, {path.stem}.pub")
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(
                f"{path} holds no public Ed25519 key in PEM", hint="make one with `calibrant keys new NAME`"
            )
        return cls(key, path.stem)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the private half signed these bytes."""
        with suppress(UnverifiedSignatureError, VerificationError):
            self._key.verify_signature(Signature(self.id, signature.hex()), data)
            return True
        return False


class PrivateKey:
    """An Ed25519 key that signs."""

    def __init__(self, key: Ed25519PrivateKey, name: str = "") -> None:
        self._key, self.public = key, PublicKey(key.public_key(), name)

    @classmethod
    def new(cls, name: str = "") -> PrivateKey:
        """A fresh key."""
        return cls(Ed25519PrivateKey.generate(), name)

    @classmethod
    def read(cls, path: Path) -> PrivateKey:
        """Of a PEM file.

        Raises:
            InputError: there is none, it is no private Ed25519 key, it has a password, or others may read it.
        """
        with disk("reading", path):
            pem = path.read_bytes()
            shared = path.stat().st_mode & 0o077
        try:
            key = load_pem_private_key(pem, password=None)
        except TypeError:
            raise InputError(f"the private key {path} has a password", hint="give one without") from None
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(
                f"{path} holds no private Ed25519 key in PEM", hint="make one with `calibrant keys new NAME`"
            )
        if shared:
            raise InputError(f"others may read the private key {path}", hint=f"chmod 600 {path}")
        return cls(key, path.stem)

    def write(self, path: Path) -> Path:
        """Write the private key for its owner alone, and the public half beside it as '.pub'; its path.

        Raises:
            InputError: one of the files is there, or the disk refuses.
        """
        beside = path.with_suffix(".pub")
        for one in (path, beside):
            if os.path.lexists(one):
                raise InputError(
                    f"{one} is there already", hint="a key is never written over: give another name"
                )
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with disk("writing", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, pem, 0o600)
            _write(beside, self.public.pem, 0o644)
        return beside

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return bytes.fromhex(CryptoSigner(self._key).sign(data).signature)


def _write(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def encoded(payload: bytes, kind: str) -> bytes:
    """The bytes that are signed: lengths and type stand before the payload, so neither can be moved."""
    return Envelope(payload, kind, {}).pae()


def sealed(payload: bytes, keys: Iterable[PrivateKey], kind: str = IN_TOTO) -> dict[str, Any]:
    """A DSSE envelope, as its JSON has it."""
    data = encoded(payload, kind)
    return {
        "payload": b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": key.public.id, "sig": b64encode(key.sign(data)).decode()} for key in keys],
    }


def opened(envelope: Mapping[str, Any], kind: str = IN_TOTO) -> tuple[bytes, bytes, list[bytes]]:
    """Payload, what was signed, and signatures of an envelope; nothing of it is verified.

    Raises:
        EvidenceError: it is no envelope, or its payload is of another kind.
    """
    try:
        payload = b64decode(envelope["payload"], validate=True)
        found, signatures = (
            envelope["payloadType"],
            [b64decode(one["sig"], validate=True) for one in envelope["signatures"]],
        )
    except (KeyError, TypeError, ValueError, NotBase64) as error:
        raise EvidenceError("no DSSE envelope", hint="payload, payloadType, signatures, in base64") from error
    if found != kind:
        raise EvidenceError(f"an envelope of '{found}', not of {kind}")
    return payload, encoded(payload, kind), signatures


def signers(
    envelope: Mapping[str, Any], trusted: Sequence[PublicKey], kind: str = IN_TOTO
) -> tuple[bytes, list[PublicKey]]:
    """The payload, and which of the trusted keys signed it, each once. Key ids are not believed.

    Raises:
        EvidenceError: it is no envelope, or its payload is of another kind.
    """
    payload, data, signatures = opened(envelope, kind)
    by_key = {key.pem: key for key in trusted}
    found = [key for key in by_key.values() if any(key.verifies(one, data) for one in signatures)]
    return payload, found
