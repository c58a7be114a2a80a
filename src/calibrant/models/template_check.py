"""Whether prompt + reply + end token equals what the chat template renders for an answered chat.

Replies are drawn and trained behind the prompt that ``add_generation_prompt`` makes, up to the end token.
Where the template writes an answered chat otherwise, a model is asked in one form and taught in another: it
never meets its end token, answers inside a block of thoughts, or in the user's turn. One comparison shows it.
"""

from __future__ import annotations

from typing import NamedTuple

from calibrant.core.errors import CapabilityError
from calibrant.core.lm import Chat, OpenLM
from calibrant.core.reasoning import inside

ASKED = Chat.ask("Plugh")
REPLY = "Xyzzy"
"""Words that no template writes by itself."""
ANSWERED = ASKED.then("assistant", REPLY)


class Differences(NamedTuple):
    """What the template writes otherwise, a sentence each."""

    faults: tuple[str, ...] = ()
    """What a model must not be trained through unasked."""
    notes: tuple[str, ...] = ()
    """White space, or no end token at all behind a last reply: said, and taken."""

    @property
    def all(self) -> tuple[str, ...]:
        """Faults and notes."""
        return (*self.faults, *self.notes)


def differences(prompt: str, bare: str, whole: str, end: str) -> Differences:
    """Compare a template with itself.

    Args:
        prompt: ASKED, with ``add_generation_prompt``.
        bare: ASKED, without it.
        whole: ANSWERED, without it.
        end: the text of the token that ends a reply.
    """
    faults: list[str] = []
    notes: list[str] = []
    before, found, behind = whole.rpartition(REPLY)
    if inside(prompt):
        faults.append(
            f"its prompt opens a block of thoughts ({_tail(prompt)}), so a reply would be inside it"
        )
    elif not found:
        faults.append("it leaves out or rewrites the reply of an answered chat")
    elif not before.startswith(prompt.rstrip()):
        faults.append(f"it begins an answered chat otherwise than its prompt: {_apart(prompt, before)}")
    elif (between := before[len(prompt.rstrip()) :]).strip():
        why = (
            "ignores add_generation_prompt, and" if prompt == bare else "writes more of an answered chat: it"
        )
        faults.append(f"it {why} puts {between.strip()!r} between prompt and reply")
    elif before != prompt:
        notes.append(f"it puts {between!r} between prompt and reply, where the prompt has {_space(prompt)!r}")
    if found and not behind.strip():
        notes.append(f"it writes nothing behind a last reply, where {end!r} is put")
    elif found and not behind.strip().startswith(end):
        faults.append(f"it ends a reply with {behind.strip()[:40]!r}, but {end!r} is what ends one here")
    elif found and not behind.startswith(end):
        notes.append(f"it puts {behind[: len(behind) - len(behind.lstrip())]!r} between reply and {end!r}")
    return Differences(tuple(faults), tuple(notes))


def check_trainable(model: OpenLM, allowed: bool) -> None:
    """Refuse to train through a chat template that writes an answered chat otherwise, unless ``allowed``.

    Raises:
        CapabilityError: says what differs.
    """
    result: Differences = getattr(model, "template_differences", Differences())
    if result.faults and not allowed:
        raise CapabilityError(
            f"the chat template of '{model.identity.name}' does not write what would be trained: "
            f"{'; '.join(result.faults)}",
            hint="fix the template, or eos_token_id in generation_config.json; "
            "fit.any_template = true trains all the same",
        )


def _apart(one: str, two: str) -> str:
    """Where two texts part, in a few words."""
    place = next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return f"{one[place : place + 30]!r} against {two[place : place + 30]!r}"


def _tail(text: str) -> str:
    return repr(text.rstrip()[-20:])


def _space(text: str) -> str:
    return text[len(text.rstrip()) :]
