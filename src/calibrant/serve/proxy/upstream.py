"""Where replies come from: a server of the OpenAI chat protocol, or a model in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

import aiohttp
import httpx

from calibrant.core import LM, Chat, Completion, Message, OpenLM, Piece, Sampling, StreamingLM
from calibrant.core.secrets import strike
from calibrant.models.endpoint import MAX_BYTES, complaint, endpoint_url
from calibrant.models.events import BadEventError, Events
from calibrant.serve.proxy.reply import Part, counted, parts_of, usage_of
from calibrant.serve.proxy.request import ApiError, Asked, plain

T = TypeVar("T")
_PASSED = ("authorization", "openai-organization", "openai-project", "api-key", "x-api-key")
"""Headers that go on to the model's server."""


class Upstream(Protocol):
    """Gives replies, whole or in parts; its texts are what output layers read."""

    async def whole(self, asked: Asked, headers: Mapping[str, str]) -> tuple[list[Part], dict[str, int]]:
        """Every choice, and the number of tokens where it is known."""
        ...

    def parts(self, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[Part | dict[str, int]]:
        """Choices as they go on; numbers of tokens where the server gives them."""
        ...

    async def models(self, headers: Mapping[str, str]) -> list[str]:
        """Names of models."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class Server:
    """A server of the OpenAI chat protocol at ``url``."""

    def __init__(self, url: str, key: str = "", *, connections: int = 256) -> None:
        """``key``: sent in place of the client's own. Raises InputError where ``url`` is no such address."""
        self._url, self._key, self._connections = endpoint_url(url), key, connections
        self._opened: aiohttp.ClientSession | None = None

    async def whole(self, asked: Asked, headers: Mapping[str, str]) -> tuple[list[Part], dict[str, int]]:
        """See ``Upstream``."""
        async with self._sent("POST", "/chat/completions", headers, asked.body) as response:
            answer = await self._json(response)
        parts = parts_of(answer, "message", asked.choices)
        if not parts:
            raise ApiError(502, "the model's server sent no choice", code="bad_upstream")
        return parts, usage_of(answer)

    async def parts(self, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[Part | dict[str, int]]:
        """See ``Upstream``."""
        events = Events()
        async with self._sent("POST", "/chat/completions", headers, asked.body) as response:
            if response.status != 200:
                await self._json(response)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise ApiError(502, "the model's server sent no stream of events", code="bad_upstream")
            try:
                async for piece in response.content.iter_any():
                    for found in self._parts(events.push(piece), asked):
                        yield found
                    if events.done:
                        return
                for found in self._parts(events.end(), asked):
                    yield found
            except BadEventError as error:
                raise ApiError(502, f"the model's server sent {error}", code="bad_upstream") from None
            except (aiohttp.ClientError, OSError) as error:
                raise _lost(error) from None

    @staticmethod
    def _parts(events: Iterator[Any], asked: Asked) -> Iterator[Part | dict[str, int]]:
        for answer in events:
            if isinstance(answer, dict) and answer.get("choices") in (None, []) and not answer.get("error"):
                yield usage_of(answer)
                continue
            yield from parts_of(answer, "delta", asked.choices)

    async def models(self, headers: Mapping[str, str]) -> list[str]:
        """See ``Upstream``."""
        async with self._sent("GET", "/models", headers) as response:
            answer = await self._json(response)
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise ApiError(502, "the model's server sent no list of models", code="bad_upstream")
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def close(self) -> None:
        """See ``Upstream``."""
        if self._opened is not None:
            await self._opened.close()

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, headers: Mapping[str, str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open answer, closed on the way out; a redirect is not followed: a key is for one address."""
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            sending = self._session().request(
                method, self._url + path, data=data, headers=self._headers(headers), allow_redirects=False
            )
            response = await sending
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(error) from None
        try:
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    def _session(self) -> aiohttp.ClientSession:
        """Connections, opened in the loop that serves."""
        if self._opened is None:
            local = httpx.URL(self._url).host in ("localhost", "127.0.0.1", "::1")
            tls: Any = httpx.create_ssl_context() if self._url.startswith("https") else True
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=tls),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=not local,
            )
        return self._opened

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        kept = {name: given[name] for name in _PASSED if given.get(name)}
        if not all(value.isascii() for value in kept.values()):
            raise ApiError(400, "a header with a key is no ASCII text", code="invalid_header")
        if self._key:
            kept = {"authorization": f"Bearer {self._key}"}
        return {"content-type": "application/json", "accept-encoding": "identity", **kept}

    async def _json(self, response: aiohttp.ClientResponse) -> Any:
        """The parsed body of an answer with status 200; any other is an error, told by its status."""
        try:
            raw = bytearray()
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > MAX_BYTES:
                    raise ApiError(502, "the model's server sent too much", code="bad_upstream")
            answer = json.loads(bytes(raw).decode("utf-8"))
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from None
        except (ValueError, RecursionError):
            answer = None
        if response.status != 200:
            raise self._told(response.status, answer)
        if answer is None:
            raise ApiError(502, "the model's server sent no JSON", code="bad_upstream")
        return answer

    def _told(self, status: int, answer: Any) -> ApiError:
        """A client's own mistake is told as such; words of the server may quote a prompt, never a reply."""
        if status not in (400, 401, 403, 404, 408, 413, 422, 429):
            return ApiError(502, f"the model's server answered {status}", code="upstream_error")
        said = " ".join(strike(complaint(answer), self._key).split())[:200]
        told = f"the model's server answered {status}{f': {said}' if said and status != 400 else ''}"
        return ApiError(status, told, code="upstream_error")


def _lost(error: Exception) -> ApiError:
    late = isinstance(error, TimeoutError)
    code = "upstream_timeout" if late else "upstream_unreachable"
    return ApiError(504 if late else 502, f"the model's server: {type(error).__name__}", code=code)


class InProcess:
    """A model in this process; one reply at a time, also where nobody waits for the one before any more."""

    def __init__(self, model: LM, name: str) -> None:
        self._model, self._name = model, name
        self._turn = asyncio.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def whole(self, asked: Asked, headers: Mapping[str, str]) -> tuple[list[Part], dict[str, int]]:
        """See ``Upstream``."""
        chat, samplings = _chat(asked)
        replies = []
        for sampling in samplings:
            replies.append((await self._run(self._model.generate, [chat], sampling))[0])
        tokens = sum(reply.tokens or len(reply.ids or ()) for reply in replies)
        return [_ended(reply, at) for at, reply in enumerate(replies)], counted(self._size(chat), tokens)

    async def parts(self, asked: Asked, headers: Mapping[str, str]) -> AsyncIterator[Part | dict[str, int]]:
        """See ``Upstream``."""
        chat, samplings = _chat(asked)
        tokens = 0
        for at, sampling in enumerate(samplings):
            async with aclosing(self._pieces(chat, sampling)) as pieces:
                async for piece in pieces:
                    tokens += piece.tokens
                    yield Part(at, _text_of(piece.text), _text_of(piece.reasoning))
                    if piece.completion is not None:
                        yield Part(at, end=_ended(piece.completion, at).end)
        yield counted(self._size(chat), tokens)

    async def models(self, headers: Mapping[str, str]) -> list[str]:
        """See ``Upstream``."""
        return [self._name]

    async def close(self) -> None:
        """See ``Upstream``."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _size(self, chat: Chat) -> int:
        """Tokens of the prompt, where the model can tell."""
        model: Any = self._model
        return len(model.prompt_ids(chat)) if isinstance(model, OpenLM) else 0

    async def _run(self, call: Callable[..., T], *given: Any) -> T:
        """A call in the model's thread; the next one has its turn when this one has really ended."""
        await self._turn.acquire()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, call, *given)
        except BaseException:
            self._turn.release()
            raise
        future.add_done_callback(self._ended)
        try:
            return await asyncio.shield(future)
        except ApiError:
            raise
        except Exception as error:
            raise ApiError(500, f"the model failed: {type(error).__name__}", code="model_failed") from error

    def _ended(self, done: asyncio.Future[Any]) -> None:
        self._turn.release()
        if not done.cancelled():
            done.exception()  # told, where somebody still waits

    async def _pieces(self, chat: Chat, sampling: Sampling) -> AsyncGenerator[Piece]:
        """What the model generates in its thread, which ends with the next piece when nobody listens."""
        model = self._model
        if not isinstance(model, StreamingLM):
            reply = (await self._run(model.generate, [chat], sampling))[0]
            yield Piece(
                text=reply.text,
                reasoning=reply.reasoning or "",
                tokens=len(reply.ids or ()),
                completion=reply,
            )
            return
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()
        left = threading.Event()

        def run() -> None:
            try:
                for piece in model.stream(chat, sampling):
                    if left.is_set():
                        return
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
            finally:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(queue.put_nowait, None)

        running = asyncio.ensure_future(self._run(run))
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            await running
        finally:
            left.set()
            running.cancel()


def _text_of(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _ended(reply: Completion, at: int) -> Part:
    if reply.stop == "error":
        raise ApiError(500, f"the model failed: {reply.error}", code="model_failed")
    ends = {"eos": "stop", "length": "length", "blocked": "content_filter"}
    return Part(at, _text_of(reply.text), _text_of(reply.reasoning or ""), end=ends[reply.stop])


def _chat(asked: Asked) -> tuple[Chat, list[Sampling]]:
    """What a local model is asked; it knows no tools."""
    body = asked.body
    for key in ("tools", "functions", "response_format", "stop"):
        if body.get(key):
            raise ApiError(400, f"a model in this process takes no '{key}'", code="unsupported", param=key)
    turns = []
    for message in body["messages"]:
        role = {"developer": "system"}.get(message["role"], message["role"])
        if role not in ("system", "user", "assistant"):
            raise ApiError(400, f"a model in this process takes no role '{role}'", code="unsupported")
        turns.append(Message(role=role, content=plain(message.get("content"))))
    if turns[-1].role == "assistant":
        raise ApiError(
            400, "the last message must not be the assistant's", code="unsupported", param="messages"
        )
    try:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 512
        seed, values = (
            body.get("seed") or 0,
            {"temperature": body.get("temperature"), "top_p": body.get("top_p")},
        )
        first = Sampling(
            max_tokens=limit, seed=seed, **{key: value for key, value in values.items() if value is not None}
        )
    except ValueError:
        raise ApiError(400, "max_tokens, temperature, top_p or seed is no such number") from None
    return Chat(messages=tuple(turns)), [
        first.model_copy(update={"seed": seed + at}) for at in range(asked.choices)
    ]
