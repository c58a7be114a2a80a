"""A stored probe as a monitor: one forward pass, one number a chat, and the threshold stored with it.

Guards, judges and control protocols read a probe through this file, so that all of them mean the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logit

from calibrant.core import CapabilityError, Chat, Identity, InputError, OpenLM
from calibrant.data.judge_head import JudgeHead
from calibrant.models.pooled import features


@dataclass(frozen=True)
class ProbeMonitor:
    """``head`` on the activations of ``model``, as a ``Monitor``.

    Raises:
        CapabilityError: the probe was fitted to another model, by digest.
    """

    model: OpenLM
    head: JudgeHead

    def __post_init__(self) -> None:
        check_reader(self.model, self.head)

    @property
    def identity(self) -> Identity:
        """The probe and the model that reads."""
        parts = {"rule": "probe_monitor/1", "head": self.head.digest, "model": self.model.identity.digest}
        return Identity(name=f"probe ({self.head.question})", kind="monitor", parts=parts)

    @property
    def threshold(self) -> float:
        """Log-odds from which on it is an alarm."""
        return float(logit(self.head.threshold))

    def score(self, chats: Sequence[Chat]) -> list[float | None]:
        """Log-odds of each chat; None where it cannot be read.

        A probe of replies reads the last turn, which must be the assistant's, after all before it. A probe of
        prompts reads the whole chat, the last reply apart.
        """
        found = [self.read(chat) for chat in chats]
        return [one if isinstance(one, float) else None for one in found]

    def read(self, chat: Chat) -> float | str:
        """The log-odds of a chat, or why there are none."""
        replied = bool(chat.messages) and chat.messages[-1].role == "assistant"
        if self.head.over == "reply" and not replied:
            return "the chat ends without a reply"
        before = Chat(messages=chat.messages[:-1]) if replied else chat
        return log_odds(self.model, self.head, before, chat.messages[-1].content if replied else "")


def check_reader(model: OpenLM, head: JudgeHead) -> None:
    """Raise CapabilityError unless ``model`` is the one that the probe was fitted to, by digest."""
    if model.identity.digest != head.model:
        raise CapabilityError(
            f"the trained judge reads the states of another model than '{model.identity.name}' "
            f"({head.model[:12]}, not {model.identity.digest[:12]})",
            hint="give the model that it was fitted to, or fit it again on this one",
        )


def log_odds(model: OpenLM, head: JudgeHead, chat: Chat, reply: str) -> float | str:
    """Log-odds of a reply, or of the prompt where the probe reads prompts; or why there are none.

    One text at a time: an odd one then costs its own verdict only, and a verdict no rounding of a batch.
    """
    try:
        "".join((*(turn.content for turn in chat.messages), reply)).encode()
    except UnicodeEncodeError:  # half of a surrogate pair is nothing that a tokenizer takes
        return "the text is not Unicode"
    try:
        row = features(model, [chat], [reply] if head.over == "reply" else None, head.site, head.pool)[0]
    except InputError as error:
        return f"the model cannot read it: {error.message}"
    if row is None:
        return f"prompt and reply exceed the {model.max_length} tokens of the model"
    if not len(row) == len(head.weight) == len(head.mean) == len(head.std):
        return f"the states at '{head.site}' have another width than the judge's"
    with np.errstate(all="ignore"):
        scaled = (row - np.asarray(head.mean)) / np.asarray(head.std)
        found = float(scaled @ np.asarray(head.weight) + head.bias)
    return found if np.isfinite(found) else f"the probe gives {found} there, which is no log-odds"
