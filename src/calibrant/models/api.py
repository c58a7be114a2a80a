"""ApiModel: any server that speaks the OpenAI chat protocol (``POST /v1/chat/completions``).

It is a ``StreamingLM`` and nothing more: no weights, no token ids. One batch goes out over a bounded number
of connections and comes back in order. A chat that fails comes back as ``stop = "error"`` with the reason
(contract C5); ``check`` is the place that raises, once, before a long job starts.

    model = ApiModel.open("http://localhost:8000", "tiny-chat", ApiConfig(max_requests=500))
    model.check()
    model.generate([Chat.ask("hello")])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx

from calibrant.core.errors import InputError, nearest
from calibrant.core.lm import Chat, Completion, Identity, Piece, Sampling
from calibrant.models.api_reply import Gathering, read_reply
from calibrant.models.endpoint import ApiConfig, Endpoint, Pacing, complaint
from calibrant.models.endpoint_budget import EndpointError
from calibrant.models.keys import key_variable
from calibrant.models.seeds import item_seeds

__all__ = ["ApiConfig", "ApiModel", "Pacing", "read_reply"]

_CHAT = "/chat/completions"


class ApiModel:
    """A model behind an HTTP endpoint; make one with ``open``."""

    def __init__(self, endpoint: Endpoint, model: str, config: ApiConfig) -> None:
        self._endpoint = endpoint
        self._model = model
        self._config = config

    @classmethod
    def open(
        cls, url: str, model: str, config: ApiConfig = ApiConfig(), pacing: Pacing = Pacing()
    ) -> ApiModel:
        """Name an endpoint and a model; nothing is sent yet.

        A bare host gets ``/v1``; any other path is taken as the base that ``/chat/completions`` is added to.

        Raises:
            InputError: not an http(s) URL, or one that carries a password, query or fragment.
        """
        return cls(Endpoint(url, config, pacing), model, config)

    def __repr__(self) -> str:
        return f"ApiModel({self._endpoint.url!r}, {self._model!r})"

    @property
    def identity(self) -> Identity:
        """Endpoint and model name: all that can be known from outside."""
        note = "unknown: the server can change the model behind the name"
        parts = {"endpoint": self._endpoint.url, "model": self._model, "system_fingerprint": note}
        # How an answer becomes a completion.
        parts["replies"] = "api_reply/3" + ("" if self._config.lone_tags else ", no lone tags")
        return Identity(name=self._model, parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat, in order; never raises for one of them.

        ``ids`` are always None. ``logprobs`` are the server's (natural log, usually before temperature is
        applied), where it returns them. An empty reply is an error: it is no evidence of a refusal. Reasoning
        is parted from the reply; of it alone, ``text`` is empty.
        """
        if not chats:
            return []
        seeds = item_seeds(chats, sampling.seed)
        payloads = [self._payload(chat, seed, sampling) for chat, seed in zip(chats, seeds, strict=True)]
        with self._endpoint.session() as client:
            pool = ThreadPoolExecutor(min(self._config.concurrency, len(chats)))
            try:
                return list(pool.map(lambda payload: self._complete(client, payload, sampling), payloads))
            finally:  # an interrupt waits for the calls under way, not for the whole queue
                pool.shutdown(wait=True, cancel_futures=True)

    def stream(self, chat: Chat, sampling: Sampling = Sampling()) -> Iterator[Piece]:
        """The completion that ``generate([chat])`` gives, piece by piece, by server-sent events.

        A reply comes in one piece where it may begin with reasoning: see ``ApiConfig.lone_tags``. What goes
        wrong stands in the last piece: ``stop = "error"``, the text that had come, the reason. The call is
        tried again only before its first event.
        """
        seed = item_seeds([chat], sampling.seed)[0]
        payload = self._payload(chat, seed, sampling)
        payload |= {"stream": True, "stream_options": {"include_usage": True}}
        gathering = Gathering(self._endpoint.quote, self._config.lone_tags, self._endpoint.struck)
        try:
            with (
                self._endpoint.session() as client,
                closing(self._endpoint.events(client, _CHAT, payload, tokens=sampling.max_tokens)) as events,
            ):
                for event in events:
                    if (piece := gathering.push(event)) is not None:
                        yield piece
            last = gathering.finish()
        except EndpointError as error:
            last = gathering.broken(self._reason(error), blocked=error.blocked)
        if last.completion is not None:
            last = last.model_copy(update={"completion": self._named(gathering.answer, last.completion)})
        yield last

    def check(self) -> None:
        """Ask the server whether it is there and knows the model.

        Reads ``GET /models``; a server that keeps no such list is asked for a reply of one token instead.

        Raises:
            InputError: unreachable, key refused, nothing at that path, or model unknown.
        """
        with self._endpoint.session() as client:
            try:
                names = self._names(client)
                if not names:
                    payload = self._payload(Chat.ask("Hello"), 0, Sampling(max_tokens=1))
                    self._endpoint.call(client, _CHAT, payload, tokens=1)
            except EndpointError as error:
                raise InputError(f"{self!r} cannot be used: {self._reason(error)}", hint=error.hint) from None
        if names and self._model not in names:
            raise InputError(
                f"{self._endpoint.url} has no model '{self._model}'{nearest(self._model, names)}",
                hint=f"it offers {', '.join(sorted(names)[:8])}",
            )

    def _names(self, client: httpx.Client) -> set[str]:
        """The models that the server lists; empty where it keeps no list."""
        try:
            listing = self._endpoint.call(client, "/models")
        except EndpointError as error:
            if error.status in (404, 405, 501):
                return set()
            raise
        match listing:
            case {"data": [*rows]}:
                return {str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row}
        answer = self._endpoint.quote(complaint(listing) or "another kind of answer")
        raise EndpointError(f"GET /models gave no list of models: {answer}")

    def _payload(self, chat: Chat, seed: int, sampling: Sampling) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in chat.messages],
            self._config.limit_key: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        return payload | ({"logprobs": True} if self._config.logprobs else {})

    def _complete(self, client: httpx.Client, payload: dict[str, Any], sampling: Sampling) -> Completion:
        try:
            reply = self._endpoint.call(client, _CHAT, payload, tokens=sampling.max_tokens)
            return self._named(reply, self._read(reply))
        except EndpointError as error:
            return Completion(
                text="", stop="blocked" if error.blocked else "error", error=self._reason(error)
            )

    def _read(self, reply: Any) -> Completion:
        return read_reply(reply, self._endpoint.quote, self._config.lone_tags)

    def _reason(self, error: EndpointError) -> str:
        """The reason; where a key was refused or missing, with the name of its variable."""
        if error.status not in (401, 403):
            return error.message
        held, own = self._config.api_key_env, key_variable(self._endpoint.url)
        sent = f"the key in ${held} was sent" if held else "no key was sent"
        return f"{error.message} ({sent}{f'; commands read it from ${own}' if own and not held else ''})"

    def _named(self, reply: Any, completion: Completion) -> Completion:
        """With the name of the model that answered, where it is not the one that was asked for."""
        match reply:
            case {"model": str(name)} if name.strip() and name != self._model:
                return completion.model_copy(update={"answered_by": self._endpoint.quote(name)})
        return completion
