"""``Defended``: a model behind a stack of guards, itself a black-box model.

A user can attack, measure and release the *system*, not the model alone: ``Defended(lm, stack)`` is an
``LM``. It offers ``generate`` only, no weights or log-probs, so that an attack which needs those cannot
bypass the guards by accident.

1. Only 'yes' lets a text pass. 'No' and 'unknown' block alike; a guard that crashes, or returns no valid
   verdict, is 'unknown' with the reason (fails closed).
2. Layers run in the order of the stack, input layers before the model generates, output layers on the chat
   with the reply. Names are unique: a verdict in a record belongs to exactly one layer.
   A layer is asked about all chats of a batch at once, so a guard that is a model is not asked one by one.
3. A blocked reply is the same text whichever layer blocked; the completion's ``error`` names the layer.
4. Reasoning is returned with the reply, so output layers check both. Where users never see it,
   ``show_reasoning=False``: layers check the reply alone, and the reasoning is discarded.
5. ``shadow=True`` runs every layer even after a block, and the model too, so that each attempt shows what
   each layer would have done alone. The user's reply is the same.

Command: ``defended:FILE.toml#MODELREF`` opens a model behind the stack of a file such as

    refusal = "i will not help with that ."
    [[layer]]
    name = "words"
    side = "input"
    guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from calibrant.core import (
    LM,
    Chat,
    Completion,
    ConfigError,
    Frozen,
    Guard,
    Identity,
    LayerVerdict,
    Sampling,
    Side,
    Verdict,
    digest,
    resolve,
)
from calibrant.core.behaviours import same_number
from calibrant.defend._by_list import by_list
from calibrant.defend._reading import QUESTION

REFUSAL = "I can't help with that."


@dataclass(frozen=True)
class Layer:
    """One guard of a stack."""

    name: str
    """Unique in its stack."""
    side: Side
    """'input': before the model speaks. 'output': on its reply."""
    guard: Guard
    """The guard; 'yes' = may pass."""


class LayerSpec(Frozen):
    """A layer as a stack file writes it."""

    name: str
    """Unique in its stack."""
    side: Side
    """'input': before the model speaks. 'output': on its reply."""
    guard: dict[str, Any] | str
    """Which guard, as ``{use = ..., config = {}, inputs = {}}``, or a reference: ``record:probe/probe``."""


class StackSpec(Frozen):
    """A stack file: the layers in order, and what a blocked user reads."""

    layer: tuple[LayerSpec, ...] = Field(min_length=1)
    """One ``[[layer]]`` each; a file without any would defend nothing."""
    refusal: str = REFUSAL
    """The reply to whatever is blocked."""
    shadow: bool = False
    """Run every layer even after a block, so that each attempt shows what each would have done alone."""
    show_reasoning: bool = True
    """Whether users see the model's reasoning, and output layers check it."""


class Defended:
    """A model behind guards, as an ``LM``."""

    def __init__(
        self,
        lm: LM,
        stack: Sequence[Layer],
        refusal: str = REFUSAL,
        *,
        shadow: bool = False,
        show_reasoning: bool = True,
    ) -> None:
        """Put ``lm`` behind ``stack``; a blocked request is answered with ``refusal``.

        Raises:
            ConfigError: two layers share a name, a name is blank, or a side is neither input nor output, or
                not one that the guard answers on.
        """
        self._lm, self._stack, self._refusal, self._shadow = lm, tuple(stack), refusal, shadow
        self._show_reasoning = show_reasoning
        if not all(isinstance(layer, Layer) for layer in self._stack):
            raise ConfigError("the stack holds something that is no Layer", hint="Layer(name, side, guard)")
        problems = [
            f"stack: {count} layers are named '{name}'"
            for name, count in Counter(layer.name for layer in self._stack).items()
            if count > 1
        ]
        for place, layer in enumerate(self._stack):
            if not layer.name.strip():
                problems.append(f"stack: layer {place} has no name")
            if layer.side not in ("input", "output"):
                problems.append(f"stack: layer '{layer.name}' is on side '{layer.side}', not input or output")
            elif not isinstance(sides := getattr(layer.guard, "sides", ("input", "output")), list | tuple):
                problems.append(
                    f"stack: the guard of layer '{layer.name}' has sides {sides!r}, which is no list"
                )
            elif layer.side not in sides:
                problems.append(
                    f"stack: layer '{layer.name}' is on side '{layer.side}', and its guard reads the "
                    f"{' and '.join(sides)} only"
                )
        if problems:
            raise ConfigError(
                problems, hint="give each layer a name of its own, and a side that its guard reads"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The guards, in the order of asking."""
        return self._stack

    @property
    def template_differences(self) -> Any:
        """Where the chat template differs from what is trained (``models/template_check.py``).

        None: the model has no local template (an API).
        """
        return getattr(self._lm, "template_differences", None)

    @property
    def caveats(self) -> tuple[str, ...]:
        """Caveats of the model after use, for example that its rows run one by one."""
        notes: tuple[str, ...] = getattr(self._lm, "caveats", ())
        return notes

    @property
    def identity(self) -> Identity:
        """The whole system: model, layers in order, refusal; not ``shadow``, which changes no answer."""
        layers = [[layer.name, layer.side, layer.guard.identity.digest] for layer in self._stack]
        names = ", ".join(layer.name for layer in self._stack) or "no guards"
        return Identity(
            name=f"{self._lm.identity.name} behind {names}",
            kind="defended",
            parts={
                "model": self._lm.identity.digest,
                "guards": digest(layers),
                "refusal": self._refusal,
                **({} if self._show_reasoning else {"reasoning": "not shown"}),
            },
        )

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion per chat, in order; blocked ones have ``stop = "blocked"`` and the refusal text."""
        before = self._ask("input", chats)
        places = [place for place, layers in enumerate(before) if self._shadow or _blocker(layers) is None]
        spoken = self._lm.generate([chats[place] for place in places], sampling) if places else []
        replies = {place: self._shown(reply) for place, reply in zip(places, spoken, strict=True)}
        # A broken or blocked reply may still carry text, and no text leaves unread.
        read = {
            place: self.with_reply(chats[place], reply)
            for place, reply in replies.items()
            if reply.text or reply.reasoning or reply.stop in ("eos", "length")
        }
        after = dict(zip(read, self._ask("output", list(read.values())), strict=True))
        return [
            self._finish(layers, replies.get(place), after.get(place, []))
            for place, layers in enumerate(before)
        ]

    def _ask(self, side: Side, chats: Sequence[Chat]) -> list[list[LayerVerdict]]:
        """Ask this side's layers in order, up to the first that blocks a chat (all of them in shadow)."""
        verdicts: list[list[LayerVerdict]] = [[] for _ in chats]
        for layer in self._stack:
            if layer.side == side:
                open_ = [
                    place for place, said in enumerate(verdicts) if self._shadow or _blocker(said) is None
                ]
                for place, said in zip(open_, ask(layer, [chats[place] for place in open_]), strict=True):
                    verdicts[place].append(said)
        return verdicts

    def with_reply(self, chat: Chat, reply: Completion) -> Chat:
        """What output layers read: the chat with the reply, and with its reasoning where users see it."""
        shown = self._shown(reply)
        return chat.then("assistant", "\n\n".join(filter(None, (shown.reasoning, shown.text))))

    def _shown(self, reply: Completion) -> Completion:
        """A reply as users see it."""
        hidden = reply.reasoning and not self._show_reasoning
        return reply.model_copy(update={"reasoning": ""}) if hidden else reply

    def _finish(
        self, before: list[LayerVerdict], reply: Completion | None, after: list[LayerVerdict]
    ) -> Completion:
        """Let a reply pass, or replace it by the refusal."""
        inner = () if reply is None else reply.layers
        layers = (*before, *inner, *after)
        blocker = _blocker([*before, *after])
        if blocker is not None or reply is None:
            return Completion(text=self._refusal, stop="blocked", error=_why(blocker), layers=layers)
        return reply.model_copy(update={"layers": layers})


def defended_from(
    lm: LM, spec: Mapping[str, Any], behaviour: Callable[[Mapping[str, Any] | str], Any]
) -> Defended:
    """Put ``lm`` behind the stack that a file describes (``StackSpec``); ``behaviour`` makes each guard.

    Raises:
        ConfigError: an unknown key, no layer, a shared name, or a behaviour that is not a guard.
    """
    file = resolve(StackSpec, spec, where="stack")
    stack = [Layer(layer.name, layer.side, behaviour(layer.guard)) for layer in file.layer]
    problems = [
        f"stack: layer '{layer.name}': '{_named(entry.guard)}' is not a guard"
        for layer, entry in zip(stack, file.layer, strict=True)
        if not isinstance(layer.guard, Guard)
    ]
    if problems:
        raise ConfigError(problems, hint="use a guard, such as defend.pattern_guard or defend.ask_guard")
    return Defended(lm, stack, file.refusal, shadow=file.shadow, show_reasoning=file.show_reasoning)


def ask(layer: Layer, chats: Sequence[Chat]) -> list[LayerVerdict]:
    """One layer's verdicts, each with its share of the time."""
    if not chats:
        return []
    start = time.perf_counter()
    verdicts = _verdicts(layer, chats)
    ms = 1000 * (time.perf_counter() - start) / len(chats)
    return [LayerVerdict(layer=layer.name, verdict=verdict, ms=ms) for verdict in verdicts]


def _verdicts(layer: Layer, chats: Sequence[Chat]) -> list[Verdict]:
    """One a chat; whatever goes wrong inside the guard is 'unknown', for the chats that it goes wrong on.

    This is one of the three doors where every exception is caught: a crashed guard must block, not open.
    """
    try:
        answer = by_list(layer.guard).ask(tuple(chats), layer.side)  # it can not change what it is given
        if not isinstance(answer, list | tuple):
            raise TypeError(f"it answered with a {type(answer).__name__}, not a list of verdicts")
        verdicts: list[Any] = list(answer)
        same_number("the guard", len(verdicts), len(chats))
        return [
            Verdict.model_validate(verdict.model_dump())
            if isinstance(verdict, Verdict)
            else _failed(f"it answered with a {type(verdict).__name__}, not a Verdict")
            for verdict in verdicts
        ]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001
        if len(chats) > 1:  # one of them may be what it fails on
            return [verdict for chat in chats for verdict in _verdicts(layer, [chat])]
        return [_failed(_said(error))]


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001
        return type(error).__name__


def _failed(why: str) -> Verdict:
    return Verdict(question=QUESTION, answer="unknown", reason=f"the guard failed: {why}")


def _named(guard: Mapping[str, Any] | str) -> str:
    return guard if isinstance(guard, str) else str(guard.get("use"))


def _blocker(verdicts: Sequence[LayerVerdict]) -> LayerVerdict | None:
    """The first layer that did not say yes."""
    return next((layer for layer in verdicts if layer.verdict.answer != "yes"), None)


def _why(blocker: LayerVerdict | None) -> str | None:
    if blocker is None:
        return None
    return f"blocked by layer '{blocker.layer}' ({blocker.verdict.answer}): {blocker.verdict.reason}"
