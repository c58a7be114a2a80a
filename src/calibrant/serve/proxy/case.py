"""One request on its way, how the proxy serves it, and what the audit keeps of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrant.core import LayerVerdict
from calibrant.defend.defended import REFUSAL, StackSpec
from calibrant.defend.pii_guard import PiiGuard
from calibrant.serve.proxy.audit import Audit, Keep
from calibrant.serve.proxy.request import ApiError, Asked


@dataclass(frozen=True)
class Settings:
    """How the proxy serves: what its operator chooses, and what the stack file says of the whole."""

    refusal: str = REFUSAL
    """What a blocked user reads."""
    show_reasoning: bool = True
    """Whether users see the model's reasoning."""
    hide: PiiGuard | None = None
    """Personal data that the model never reads."""
    upstream: str = ""
    """Address of the model's server; "" where the model runs in this process."""
    key: str = field(default="", repr=False)
    """What the model's server is sent in place of a client's own key."""
    token: str = field(default="", repr=False)
    """What clients must send as a bearer token; "" lets everybody in, and passes on what they send."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8900
    """Port; 0 takes a free one."""
    deadline: float = 120.0
    """Seconds for one request, from its first byte to its last."""
    refusal_after: float = 0.0
    """Seconds from a request's beginning before which no refusal leaves; 0: as soon as a layer blocks."""
    most_bytes: int = 2**20
    """Largest request that is read."""
    most_at_once: int = 256
    """Requests under way; more are refused with 503."""
    quiet: float = 10.0
    """Seconds without an event after which a comment is sent."""
    audits: Path = Path(".calibrant/audit")
    """Folder of the audits."""
    keep: Keep = "digest"
    """How texts stand in the audit."""

    def of_stack(self, spec: StackSpec) -> Settings:
        """These, with what the stack file says."""
        return replace(self, refusal=spec.refusal, show_reasoning=spec.show_reasoning, hide=spec.hide)


@dataclass
class Case:
    """One request on its way."""

    began: float
    outcome: str = "error"
    why: str = ""
    asked: Asked | None = None
    verdicts: list[tuple[str, int, tuple[LayerVerdict, ...]]] = field(default_factory=list)
    released: int = 0
    held: int = 0
    replies: dict[int, str] = field(default_factory=dict)
    """What output layers have read of each choice."""

    @property
    def degraded(self) -> bool:
        """Whether a layer gave no answer."""
        return any(one.status != "answered" for _, _, said in self.verdicts for one in said)

    def line(self, audit: Audit, ms: float) -> dict[str, Any]:
        """What the audit keeps of it."""
        fields: dict[str, Any] = {
            "at": round(time.time(), 3),
            "outcome": self.outcome,
            "why": self.why,
            "ms": round(ms, 1),
            "released": self.released,
            "held_back": self.held,
            "degraded": self.degraded,
            "verdicts": [
                {"side": side, "choice": at, "layers": audit.verdicts(said)}
                for side, at, said in self.verdicts
            ],
        }
        if self.asked is not None:
            fields |= {
                "model": audit.text(self.asked.model),
                "stream": self.asked.stream,
                "chat": audit.chat(self.asked.chat),
                "replies": {str(at): audit.text(text) for at, text in self.replies.items()},
            }
        return fields


def told(error: ApiError) -> str:
    """For the audit: no words of the client, and none of the model's server."""
    return ", ".join(filter(None, (str(error.status), error.code, error.param)))
