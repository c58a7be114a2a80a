"""The audit: one line a request, append-only, each with the digest of the line before.

A line says which layers said what, how much was released, and why the rest was not. Texts stand in it as the
owner chooses: ``digest`` (a salted SHA-256, by which a text that is known can be found), or ``full``, which
can be asked again offline (``replay``). Verdicts' reasons quote texts, so they are kept with ``full`` only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from calibrant.core import Chat, EvidenceError, InputError, LayerVerdict
from calibrant.ledger.layout import disk
from calibrant.ledger.lines import Lines

Keep = Literal["digest", "full"]
FIRST = "0" * 64


class Audit:
    """Writes the audit of one run of the proxy to ``folder``; threads may share it."""

    def __init__(self, folder: Path, policy: Mapping[str, Any], keep: Keep = "digest") -> None:
        """``policy``: what tells the system: digests of layers, upstream, refusal.

        Raises:
            InputError: the disk refuses.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{stamp}-{os.getpid()}-{secrets.token_hex(2)}.jsonl"
        with disk("writing", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path, self._keep = folder / name, keep
        self._salt = secrets.token_bytes(32)
        self._lock, self._last, self.broken = threading.Lock(), FIRST, ""
        self._lines = Lines(self.path)
        with disk("writing", self.path):
            self.path.chmod(0o600)
        if keep == "digest":
            salt = self.path.with_suffix(".salt")
            with disk("writing", salt):
                salt.touch(mode=0o600)
                salt.write_text(self._salt.hex() + "\n", encoding="ascii")
        self.add({"audit": 1, "started": stamp, "keep": keep, "policy": dict(policy)})

    def add(self, fields: Mapping[str, Any]) -> None:
        """Append a line; it is with the system when this returns.

        Raises:
            InputError: the disk refuses; ``broken`` then says so, and no further request may be served.
        """
        with self._lock:
            line = _line({**fields, "before": self._last})
            try:
                self._lines.add([line], durable=False)
            except InputError as error:
                self.broken = error.message
                raise
            self._last = hashlib.sha256(line).hexdigest()

    def text(self, text: str) -> str:
        """A text as the audit keeps it."""
        if self._keep == "full":
            return text
        return hmac.new(self._salt, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def chat(self, chat: Chat) -> list[dict[str, str]]:
        """A chat as the audit keeps it."""
        return [{"role": turn.role, "content": self.text(turn.content)} for turn in chat.messages]

    def verdicts(self, said: tuple[LayerVerdict, ...]) -> list[dict[str, Any]]:
        """Verdicts as the audit keeps them."""
        return [
            {
                "layer": one.layer,
                "answer": one.verdict.answer,
                "status": one.status,
                "ms": round(one.ms or 0.0, 3),
                **({"score": one.verdict.score} if one.verdict.score is not None else {}),
                **({"reason": one.verdict.reason} if self._keep == "full" else {}),
                **({"failure": _kind(one.verdict.reason)} if one.status != "answered" else {}),
            }
            for one in said
        ]

    def close(self) -> None:
        """Have everything on the disk, and let the file go."""
        try:
            self.add({"closed": True})
            self._lines.sync()
        finally:
            self._lines.close()


def _kind(reason: str) -> str:
    """Of a failure: which it was, without what an exception says, which may quote a text."""
    return reason.removeprefix("the guard failed: ").partition(": ")[0][:100]


def _line(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON (RFC 8785), fast: numbers are such as Python writes in the same way."""
    return json.dumps(
        _written(fields), separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False
    ).encode()


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner) for inner in value]
    if isinstance(value, float):
        if not abs(value) < 2**53:
            return str(value)  # no number of JSON, or one that is written otherwise
        short = round(value, 4)
        return int(short) if short == int(short) else short
    return value


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an audit, checked; the first is the header.

    Raises:
        InputError: no such file. EvidenceError: a line was changed, taken out or put in.
    """
    with disk("reading", path):
        lines = path.read_bytes().split(b"\n")
    before = FIRST
    for number, line in enumerate(filter(None, lines), 1):
        try:
            fields = json.loads(line)
            told = fields["before"]
        except (ValueError, KeyError, TypeError):
            raise EvidenceError(f"{path.name}, line {number}: it is no line of an audit") from None
        if told != before:
            raise EvidenceError(f"{path.name}, line {number}: the line before it is not the one that was")
        before = hashlib.sha256(line).hexdigest()
        yield fields
    if before == FIRST:
        raise InputError(f"{path} is empty", hint="an audit begins with a line that names the policy")
