"""``Defended``: a model behind a stack of guards, itself a black-box model.

A user can attack, measure and release the *system*, not the model alone: ``Defended(lm, stack)`` is an
``LM``. It offers ``generate`` only, no weights or log-probs, so that an attack which needs those cannot
bypass the guards by accident.

1. Only 'yes' lets a text pass. 'No' and 'unknown' block alike; a guard that crashes, takes too long, or
   returns no valid verdict, is 'unknown' with the reason (fails closed), unless its layer escalates
   (``on_error``): then another layer of that side has to say yes.
2. Layers run in the order of the stack, input layers before the model generates, output layers on the chat
   with the reply. Names are unique: a verdict in a record belongs to exactly one layer.
   A layer is asked about all chats of a batch at once, so a guard that is a model is not asked one by one.
3. A blocked reply is the same text whichever layer blocked; the completion's ``error`` names the layer.
4. Reasoning is returned with the reply, so output layers check both. Where users never see it,
   ``show_reasoning=False``: layers check the reply alone, and the reasoning is discarded.
5. ``hide`` keeps personal data from the model itself: it reads placeholders, and its reply gets the values.
6. ``shadow=True`` runs every layer even after a block, and the model too, so that each attempt shows what
   each layer would have done alone. The user's reply is the same.

Command: ``defended:FILE.toml#MODELREF`` opens a model behind the stack of a file such as

    refusal = "i will not help with that ."
    [[layer]]
    name = "words"
    side = "input"
    guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

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
    digest,
    resolve,
)
from calibrant.core.errors import nearest
from calibrant.defend._layer import Caller, Layer, OnFailure, blocker
from calibrant.defend._vault import Restorer, Vault
from calibrant.defend.pii_guard import PiiGuard, pii_guard

__all__ = [
    "Caller",
    "Defended",
    "Layer",
    "LayerSpec",
    "OnFailure",
    "Restorer",
    "StackSpec",
    "Vault",
    "blocker",
    "check_stack",
    "defended_from",
    "layers_from",
]

REFUSAL = "I can't help with that."


class LayerSpec(OnFailure):
    """A layer as a stack file writes it."""

    name: str
    """Unique in its stack."""
    side: Side
    """'input': before the model speaks. 'output': on its reply."""
    guard: dict[str, Any] | str
    """Which guard, as ``{use = ..., config = {}, inputs = {}}``, or a reference: ``record:probe/probe``."""
    every: int | None = Field(default=None, ge=1)
    """When a reply is streamed: ask about the reply so far after as many further tokens. None: the guard
    itself says how much of a reply may leave, or reads the whole before any of it leaves."""


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
    hide: PiiGuard | None = None
    """Personal data that the model never reads: placeholders stand in its place, and the reply gets it back.
    Input layers read what was asked, output layers what is shown. Its ``views`` change nothing."""

    @field_validator("layer")
    @classmethod
    def _sound(cls, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        if problems := [*_shared(layers), *_senseless(layers)]:
            raise ValueError("; ".join(problems))
        return layers

    def only(self, names: Sequence[str]) -> StackSpec:
        """The stack with these layers alone, in its own order.

        Raises:
            ConfigError: there is no such layer.
        """
        _known(names, [layer.name for layer in self.layer])
        return self.model_copy(update={"layer": tuple(one for one in self.layer if one.name in names)})


def _shared(layers: Sequence[Layer | LayerSpec]) -> list[str]:
    """Problems of names."""
    counts = Counter(layer.name for layer in layers)
    odd = [
        f"the name of layer {place} has a character that is not shown" if one.name.strip()
        else f"layer {place} has no name"
        for place, one in enumerate(layers)
        if not one.name.strip() or not one.name.isprintable()
    ]  # fmt: skip
    return [f"{count} layers are named '{name}'" for name, count in counts.items() if count > 1] + odd


def _senseless(layers: Sequence[Layer | LayerSpec]) -> list[str]:
    """``every`` where nothing is streamed."""
    return [
        f"layer '{one.name}' is on side 'input' and has 'every', which is of replies that are streamed"
        for one in layers
        if one.side == "input" and one.every is not None
    ]


def _known(names: Sequence[str], stack: Sequence[str]) -> None:
    for name in names:
        if name not in stack:
            raise ConfigError(
                f"the stack has no layer '{name}'{nearest(name, stack)}", hint=f"it has {', '.join(stack)}"
            )


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
        hide: PiiGuard | None = None,
    ) -> None:
        """Put ``lm`` behind ``stack``; a blocked request is answered with ``refusal``.

        ``hide``: see ``StackSpec``.

        Raises:
            ConfigError: two layers share a name, a name is blank, or a side is neither input nor output, or
                not one that the guard answers on; ``hide`` looks for nothing, or has a bad pattern.
        """
        self._lm, self._stack, self._refusal, self._shadow = lm, tuple(stack), refusal, shadow
        self._show_reasoning, self._hide = show_reasoning, hide
        if hide is not None:
            Vault(hide)
        check_stack(self._stack)
        self._callers = tuple(map(Caller, self._stack))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The guards, in the order of asking."""
        return self._stack

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(layer.name for layer in self._stack)

    def with_layers(self, names: Sequence[str]) -> Defended:
        """The model behind these layers alone, in the order of the stack; without any, it still only talks.

        Raises:
            ConfigError: there is no such layer.
        """
        _known(names, self.layer_names)
        kept = [layer for layer in self._stack if layer.name in names]
        return Defended(
            self._lm,
            kept,
            self._refusal,
            shadow=self._shadow,
            show_reasoning=self._show_reasoning,
            hide=self._hide,
        )

    def lets_pass(self, chats: Sequence[Chat], replies: Sequence[Completion]) -> list[bool]:
        """Whether each reply, had the model given it to that chat, would reach the user."""
        sides = (
            self._ask("input", chats),
            self._ask("output", list(map(self.with_reply, chats, replies))),
        )
        return [all(blocker(said, ended=True) is None for said in both) for both in zip(*sides, strict=True)]

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
        layers = [_named_in_full(layer) for layer in self._stack]
        names = ", ".join(layer.name for layer in self._stack) or "no guards"
        return Identity(
            name=f"{self._lm.identity.name} behind {names}",
            kind="defended",
            parts={
                "model": self._lm.identity.digest,
                "guards": digest(layers),
                "refusal": self._refusal,
                **({} if self._show_reasoning else {"reasoning": "not shown"}),
                **(
                    {}
                    if self._hide is None
                    else {"hidden": f"vault/1 {pii_guard(self._hide).identity.digest}"}
                ),
            },
        )

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion per chat, in order; blocked ones have ``stop = "blocked"`` and the refusal text."""
        before = self._ask("input", chats)
        places = [
            place for place, said in enumerate(before) if self._shadow or blocker(said, ended=True) is None
        ]
        spoken = self._spoken([chats[place] for place in places], sampling) if places else []
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

    def _spoken(self, chats: Sequence[Chat], sampling: Sampling) -> list[Completion]:
        """What the model says; it never reads what is hidden from it."""
        if self._hide is None:
            return self._lm.generate(chats, sampling)
        vaults = [Vault(self._hide) for _ in chats]
        hidden = [vault.hide_chat(chat) for vault, chat in zip(vaults, chats, strict=True)]
        replies = self._lm.generate(hidden, sampling)
        return [vault.restore_reply(reply) for vault, reply in zip(vaults, replies, strict=True)]

    def _ask(self, side: Side, chats: Sequence[Chat]) -> list[list[LayerVerdict]]:
        """Ask this side's layers in order, up to the first that blocks a chat (all of them in shadow)."""
        verdicts: list[list[LayerVerdict]] = [[] for _ in chats]
        for caller in self._callers:
            if caller.layer.side == side:
                open_ = [place for place, said in enumerate(verdicts) if self._shadow or not blocker(said)]
                answers = caller.verdicts([chats[place] for place in open_])
                for place, said in zip(open_, answers, strict=True):
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
        stopped_by = blocker(before, ended=True) or blocker(after, ended=True)
        if stopped_by is not None or reply is None:
            return Completion(text=self._refusal, stop="blocked", error=_why(stopped_by), layers=layers)
        return reply.model_copy(update={"layers": layers})


def check_stack(stack: Sequence[Layer]) -> None:
    """Check names and sides of a stack.

    Raises:
        ConfigError: two layers share a name, a name is blank, or a guard does not read its layer's side.
    """
    if not all(isinstance(layer, Layer) for layer in stack):
        raise ConfigError("the stack holds something that is no Layer", hint="Layer(name, side, guard)")
    problems = [f"stack: {problem}" for problem in (*_shared(stack), *_senseless(stack))]
    for layer in stack:
        if layer.side not in ("input", "output"):
            problems.append(f"stack: layer '{layer.name}' is on side '{layer.side}', not input or output")
        elif not isinstance(sides := getattr(layer.guard, "sides", ("input", "output")), list | tuple):
            problems.append(f"stack: the guard of layer '{layer.name}' has sides {sides!r}, which is no list")
        elif layer.side not in sides:
            problems.append(
                f"stack: layer '{layer.name}' is on side '{layer.side}', and its guard reads the "
                f"{' and '.join(sides)} only"
            )
    if problems:
        raise ConfigError(problems, hint="give each layer a name of its own, and a side that its guard reads")


def defended_from(
    lm: LM, spec: Mapping[str, Any], behaviour: Callable[[Mapping[str, Any] | str], Any]
) -> Defended:
    """Put ``lm`` behind the stack that a file describes (``StackSpec``); ``behaviour`` makes each guard.

    Raises:
        ConfigError: an unknown key, no layer, a shared name, or a behaviour that is not a guard.
    """
    file = resolve(StackSpec, spec, where="stack")
    stack = layers_from(file, behaviour)
    return Defended(
        lm, stack, file.refusal, shadow=file.shadow, show_reasoning=file.show_reasoning, hide=file.hide
    )


def layers_from(file: StackSpec, behaviour: Callable[[Mapping[str, Any] | str], Any]) -> list[Layer]:
    """The layers of a stack file; ``behaviour`` makes each guard.

    Raises:
        ConfigError: as ``check_stack``, or a behaviour that is not a guard.
    """
    stack = [
        Layer(
            layer.name,
            layer.side,
            behaviour(layer.guard),
            OnFailure(**{key: getattr(layer, key) for key in OnFailure.model_fields}),
            layer.every,
        )
        for layer in file.layer
    ]
    problems = [
        f"stack: layer '{layer.name}': '{_named(entry.guard)}' is not a guard"
        for layer, entry in zip(stack, file.layer, strict=True)
        if not isinstance(layer.guard, Guard)
    ]
    if problems:
        raise ConfigError(problems, hint="use a guard, such as defend.pattern_guard or defend.ask_guard")
    check_stack(stack)
    return stack


def _named(guard: Mapping[str, Any] | str) -> str:
    return guard if isinstance(guard, str) else str(guard.get("use"))


def _named_in_full(layer: Layer) -> list[Any]:
    """For the identity; rules of failing and streaming only where they are not the plain ones."""
    rules = layer.failing.model_dump(exclude_defaults=True) | ({"every": layer.every} if layer.every else {})
    return [layer.name, layer.side, layer.guard.identity.digest, *([rules] if rules else [])]


def _why(stopped_by: LayerVerdict | None) -> str | None:
    if stopped_by is None:
        return None
    return f"blocked by layer '{stopped_by.layer}' ({stopped_by.verdict.answer}): {stopped_by.verdict.reason}"
