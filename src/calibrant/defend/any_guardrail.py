"""A guardrail of the any-guardrail package (mozilla-ai, 0.7) as a guard: some forty open and hosted ones.

1. It runs in a process of its own, in this interpreter or in the one of another environment (``python``).
   A process that dies, hangs or writes anything but the answer is killed, and the guard fails, which blocks.
2. Nothing is truncated, where the peer does so silently: a text is read in overlapping chunks of which each
   has as few tokens as its tokenizer and model take. Where nobody can be asked for that number, a text of
   more than ``longest`` characters is 'unknown'.
3. ``valid`` is not enough. With no score a text passes only where the peer's explanation is exactly
   ``safe_reply``; a score that is not finite or not of [0, 1], a reply that ended where no more tokens were
   allowed (any-guardrail PR 249), one that the peer could not parse, and an error are 'unknown'.
4. The model is pinned: the digest of a folder, or a revision. Code that comes with a model is never run.

In a stack file:
``guard = {use = "defend.any_guardrail", config = {guardrail = "deepset", folder = "./model"}}``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    Frozen,
    Guard,
    Identity,
    InputError,
    Side,
    Verdict,
    digest,
)
from calibrant.core.digest import digest_path
from calibrant.data.text_classifier import Reading
from calibrant.defend._any_guardrail_peer import Peer, versions_in
from calibrant.defend._pieces import Piece, pieces
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, known_views

Value = str | bool | int | float


class AnyGuardrail(Frozen):
    """Which guardrail, which model, and what it has to say for a text to pass."""

    guardrail: str = ""
    """Name as any-guardrail's ``GuardrailName`` has it: 'deepset', 'prompt_guard', ...; it must be given."""
    model_id: str = ""
    """One of the models that this guardrail supports; "": its first."""
    folder: str = ""
    """Local folder of the model and its tokenizer, which is loaded in place of ``model_id``, offline."""
    revision: str = ""
    """Commit of ``model_id``; 'unpinned' where there is none, as with a server's model. It must be given
    where there is no folder."""
    settings: dict[str, Value] = Field(default_factory=dict)
    """Arguments of ``AnyGuardrail.create``: a threshold, a policy ..."""
    arguments: dict[str, Value] = Field(default_factory=dict)
    """Arguments of each ``validate``, for guardrails that need them there: the policy of 'any_llm'."""
    reply: Literal["alone", "beside the request"] = "alone"
    """What the guardrail gets on 'output': the reply as its text, or as the response to all before it."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Also blocked from this risk score on. It lets nothing pass that the guardrail calls invalid."""
    safe_reply: str = Field(default="", max_length=200)
    """A guardrail without a score lets a text pass where its whole explanation is this, as 'safe' of
    llama_guard. "": without a score nothing passes."""
    views: tuple[str, ...] = ()
    """Codecs that each text is also decoded with; every view is read, and all must pass."""
    chunk: int = Field(default=2000, ge=20)
    """Most characters of a text that is read at once; fewer where the model takes fewer tokens."""
    overlap: int = Field(default=400, ge=0)
    """Characters that two neighbouring chunks share; at most half of ``chunk``."""
    longest: int = Field(default=1000, ge=1)
    """Most characters of a text where the peer's tokenizer can not be asked: a longer one is 'unknown'."""
    most: int = Field(default=64, ge=1)
    """Most questions about one chat; 'unknown', which blocks, where its length needs more."""
    python: str = ""
    """Interpreter of an environment that has any-guardrail; "": this one."""
    timeout: float = Field(default=300.0, gt=0, le=86_400)
    """Most seconds to load the guardrail, and for each answer."""

    _views = field_validator("views")(known_views)

    @field_validator("settings", "arguments")
    @classmethod
    def _finite(cls, given: dict[str, Value]) -> dict[str, Value]:
        for name, value in given.items():
            if name in ("model_id", "provider"):
                raise ValueError(f"'{name}' does not belong here: see model_id, folder and revision")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"'{name}' is {value}")
        return given

    @model_validator(mode="after")
    def _check(self) -> AnyGuardrail:
        if self.overlap > self.chunk // 2:
            raise ValueError(f"'overlap' {self.overlap} is more than half of 'chunk' {self.chunk}")
        return self


def any_guardrail(config: AnyGuardrail = AnyGuardrail()) -> Guard:
    """A guard that answers 'no' where the guardrail calls a chunk of the text invalid.

    It is loaded when it is first asked. Any chunk that is blocked is a no; else any that is unclear is
    'unknown'; else 'yes'.

    Raises:
        ConfigError: it names no guardrail or no model, the folder is none, or the interpreter does not run
            or has no any-guardrail.
    """
    problems = []
    if not config.guardrail.strip():
        problems.append("'guardrail' is required and was not given")
    if not config.folder and not config.revision:
        problems.append("nothing says which model it is: give 'folder', or 'revision' (or 'unpinned')")
    if config.folder and not Path(config.folder).expanduser().is_dir():
        problems.append(f"'folder': there is no folder '{config.folder}'")
    if problems:
        raise ConfigError(
            [f"defend.any_guardrail: {one}" for one in problems], hint="docs/defend.any_guardrail.md shows it"
        )
    return _Adapter(config)


class _Adapter:
    """The guard that ``any_guardrail`` makes."""

    def __init__(self, config: AnyGuardrail) -> None:
        self._config = config
        self._python = config.python or sys.executable
        self._versions = versions_in(self._python)
        self._folder = Path(config.folder).expanduser().resolve() if config.folder else None
        self._model = digest_path(self._folder) if self._folder else config.revision
        told = config.model_dump(include={"guardrail", "model_id", "revision", "settings", "arguments"})
        load = {"do": "load", **told, "folder": str(self._folder or "")}
        self._peer = Peer(self._python, load, config.timeout, self._unchanged)

    @cached_property
    def identity(self) -> Identity:
        """The guardrail, its model, every setting, and the packages that answer."""
        config = self._config
        named = config.model_copy(update={"folder": ""})  # its bytes count, not where they lie
        parts = {"rule": "any_guardrail/1", "guardrail": config.guardrail, "config": digest(named)}
        parts["model"] = f"folder {self._model}" if config.folder else f"{config.model_id}@{self._model}"
        parts |= {f"package {name}": version for name, version in self._versions.items()}
        return Identity(name=f"any-guardrail {config.guardrail}", kind="guard", parts=parts)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        """One verdict a chat.

        Raises:
            InputError: no such side. CapabilityError: the guardrail can not be loaded, is not the one of the
                identity any more, or its process died, hung or wrote noise.
        """
        if side not in ("input", "output"):
            raise InputError(f"a guard has no side {side!r:.40}", hint="ask about 'input' or 'output'")
        return [self._verdict(chat, side) for chat in chats]

    def _verdict(self, chat: Chat, side: Side) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        if side not in (stages := self._peer.loaded()["stages"]):
            return _unknown(f"'{self._config.guardrail}' says of itself that it reads {' and '.join(stages)}")
        try:
            asked = self._questions(chat, side)
        except InputError as error:
            return _unknown(error.message)
        if not asked:
            return _unknown("there is no visible character to read")
        found = None
        for piece, reply in asked:
            where = piece.where if reply is None else f"{reply.where}, behind {piece.where}"
            verdict = self._read(piece.text, None if reply is None else reply.text, where)
            if verdict.answer == "no":
                return verdict
            if found is None or (verdict.answer, -(verdict.score or 0)) < (found.answer, -(found.score or 0)):
                found = verdict  # 'unknown' before 'yes', the riskiest before the others
        assert found is not None
        return found

    def _questions(self, chat: Chat, side: Side) -> list[tuple[Piece, Piece | None]]:
        """Texts, and the replies beside them.

        Raises:
            InputError: it is too long, or a text can not be cut to a length that the peer takes.
        """
        if side == "input":
            return [(piece, None) for piece in self._pieces(chat, "prompt")]
        if self._config.reply == "alone":
            return [(piece, None) for piece in self._pieces(chat, "reply")]
        before = Chat(messages=chat.messages[:-1])
        asked = self._pieces(before, "exchange", share=2) or [Piece("", "no request")]
        replies = self._pieces(chat, "reply", share=2)
        if len(asked) * len(replies) > self._config.most:
            raise self._too_long()
        return [(piece, reply) for piece in asked for reply in replies]

    def _pieces(
        self, chat: Chat, over: Literal["prompt", "reply", "exchange"], share: int = 1
    ) -> list[Piece]:
        """Texts that are short enough; ``share``: of the model's length, one half with 2."""
        config, tried = self._config, 0
        limit: int | None = self._peer.loaded()["limit"]

        def fits(text: str) -> bool:
            nonlocal tried
            tried += 1
            if tried > 2 * config.most:  # as many parts, and as many again that were halved
                raise self._too_long()
            if limit is None:
                if len(text) > config.longest:
                    raise InputError(
                        f"the peer's limit of tokens is unknown, and more than {config.longest} characters "
                        "are not given to it"
                    )
                return True
            told = self._peer.ask(do="count", text=text)
            count = told.get("tokens")
            if not isinstance(count, int):
                raise InputError(f"the peer can not count tokens: {told.get('error', told)}")
            return count * share <= limit

        if limit is None:
            reading = Reading(over=over, chunk=10**9, overlap=0, views=config.views)
        else:
            reading = Reading(over=over, chunk=config.chunk, overlap=config.overlap, views=config.views)
        found = pieces(chat, reading, fits)
        if len(found) > config.most:
            raise self._too_long()
        return found

    def _read(self, text: str, reply: str | None, where: str) -> Verdict:
        """What the peer says of one text; only a clear yes is one."""
        config, said = self._config, self._peer.ask(do="validate", text=text, reply=reply)
        valid, score = said.get("valid"), said.get("score")
        number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        shown = float(score) if isinstance(score, int | float) and number else None
        why = f"any-guardrail's {config.guardrail} says valid = {valid}, score {score} to {where}"
        answer: Literal["yes", "no", "unknown"] = "unknown"
        if "error" in said:
            why = f"any-guardrail's {config.guardrail} fails on {where}: {said['error']}"
        elif not isinstance(valid, bool):
            why = f"{why}: valid is neither true nor false"
        elif said.get("unparsed") or said.get("cut"):
            why = f"{why}: its model's reply {'ends too early' if said.get('cut') else 'can not be parsed'}"
        elif score is not None and (shown is None or not 0 <= shown <= 1):
            why = f"{why}: that is no score from 0 to 1"
        elif not valid:
            answer = "no"
        elif said.get("rewritten"):
            why = f"{why}: it gives another text in its place"
        elif shown is None:
            exact = bool(config.safe_reply) and str(said.get("explanation")).strip() == config.safe_reply
            answer, why = ("yes", why) if exact else ("unknown", f"{why}: without a score that is not enough")
        elif config.threshold is not None and shown >= config.threshold:
            answer, why = "no", f"{why}; blocked from {config.threshold:g} on"
        else:
            answer = "yes"
        return Verdict(question=QUESTION, answer=answer, reason=why, score=shown)

    def _unchanged(self, loaded: Mapping[str, Any]) -> None:
        """Raise CapabilityError where what was loaded is not what the identity says, or says nothing."""
        limit, stages = loaded.get("limit"), loaded.get("stages")
        if not isinstance(stages, list) or not (limit is None or (isinstance(limit, int) and limit > 0)):
            raise CapabilityError(f"says nothing clear of itself: {loaded!r:.200}")
        if loaded.get("versions") != self._versions:
            raise CapabilityError(f"has other packages than before: {loaded.get('versions')}")
        if self._folder is not None and digest_path(self._folder) != self._model:
            raise CapabilityError(f"has another model than before: the files of '{self._folder}' changed")

    def _too_long(self) -> InputError:
        return InputError(f"too long: more than {self._config.most} parts")


def _unknown(reason: str) -> Verdict:
    return Verdict(question=QUESTION, answer="unknown", reason=reason)
