"""ScriptedModel: a model with scripted replies, for tests.

    model = ScriptedModel(["first reply", "second reply"])
    model = ScriptedModel(lambda chat: chat.last_user.upper())
    model.seen        # every chat that it received, in order

It is a test double, so it fails loudly: where a real model would answer with ``stop = "error"``, a
script that ran out raises. To play a failing model, put ``Completion(text="", stop="error", ...)``
among the replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from calibrant.core.digest import digest
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat, Completion, Identity, Sampling, Scored

Reply = str | Completion


class ScriptedModel:
    """An ``LM`` that answers from a queue or by a function of the chat."""

    def __init__(self, replies: Iterable[Reply] | Callable[[Chat], Reply], *, name: str = "scripted") -> None:
        """Take the replies, each a text (its reasoning is parted from it) or a whole ``Completion``.

        ``name`` is part of the identity: two functions cannot be distinguished by their code.
        """
        if isinstance(replies, str):
            raise InputError("a scripted model was given one text", hint="give a list: ScriptedModel([text])")
        self.seen: list[Chat] = []
        """Every chat that was asked, in order."""
        self._queue: deque[Reply] = deque()
        if callable(replies):
            self._answer = replies
            script = f"{replies.__module__}.{getattr(replies, '__qualname__', type(replies).__qualname__)}"
        else:
            self._queue.extend(replies)
            self._answer = self._next
            script = digest(list(self._queue))
        self.identity = Identity(name=name, parts={"name": name, "script": script})
        """Name, and digest of the queue or name of the function."""

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One scripted completion a chat, in order; ``sampling`` changes nothing.

        Raises:
            InputError: the queue is empty, or the function returned neither text nor Completion.
        """
        return [self._reply(chat) for chat in chats]

    def _reply(self, chat: Chat) -> Completion:
        self.seen.append(chat)
        reply = self._answer(chat)
        if isinstance(reply, str):
            return Completion.read(reply)
        if isinstance(reply, Completion):
            return reply
        raise InputError(
            f"a scripted reply is a {type(reply).__name__}: {reply!r:.60}",
            hint="return a str or a Completion",
        )

    def _next(self, chat: Chat) -> Reply:
        if not self._queue:
            raise InputError(
                f"the script has run out: chat {len(self.seen)} ('{chat.last_user[:60]}') finds no reply",
                hint="queue one reply for every chat that the code under test asks",
            )
        return self._queue.popleft()


class ScriptedScoring:
    """A ``ScoringLM``: a scripted model that also says how likely a reply is.

    ``total(chat, reply)`` is the log-probability of the whole reply in nats; it comes back as one token.
    """

    def __init__(self, model: ScriptedModel, total: Callable[[Chat, str], float]) -> None:
        self._model = model
        self._total = total
        self.identity = model.identity
        """That of the scripted model."""

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """What the scripted model says."""
        return self._model.generate(chats, sampling)

    def logprobs(self, chats: Sequence[Chat], replies: Sequence[str]) -> list[Scored]:
        """One ``Scored`` with a single token a pair; ValueError when the lengths differ."""
        pairs = zip(chats, replies, strict=True)
        return [Scored(ids=(0,), logprobs=(float(self._total(chat, reply)),)) for chat, reply in pairs]
