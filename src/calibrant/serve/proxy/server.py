"""The proxy itself: one request from the client's first byte to the line in the audit.

1. A request is checked, then the input layers read it. A block answers with the refusal, whichever it was.
2. The model's server is asked. Its reply passes the output layers as it comes (``release``): no
   character leaves before every layer has cleared it; calls of tools leave when the reply has ended.
3. Whatever fails, fails closed: a layer (unless it escalates), the model's server, the audit.
4. One deadline holds for the whole request. While text is held, comments keep the connection alive.
5. With ``refusal_after`` no refusal leaves, and no stream begins, before that time or a reply's first text.
6. Every request leaves one line in the audit; when that can not be written, nothing more is served.
"""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from calibrant.core import LayerVerdict
from calibrant.core.errors import InputError
from calibrant.defend.defended import Caller, Layer, blocker
from calibrant.serve.proxy.audit import Audit
from calibrant.serve.proxy.case import Case, Settings, told
from calibrant.serve.proxy.errors import HANDLERS, failure
from calibrant.serve.proxy.metrics import Metrics
from calibrant.serve.proxy.release import Release
from calibrant.serve.proxy.reply import DONE, HELD, Builder, Calls, Part, event
from calibrant.serve.proxy.request import ApiError, Asked, read
from calibrant.serve.proxy.streaming import BLOCKED, EventStream, Live
from calibrant.serve.proxy.upstream import Upstream

T = TypeVar("T")
_SHORT = 2000
"""Characters that a bounded guard reads in a millisecond or two: no thread is worth its cost."""
_GRACE = 5.0
"""Seconds beyond the deadline in which a client may read what it was sent."""


class Proxy:
    """Layers of guards between clients and a model."""

    def __init__(
        self,
        layers: Sequence[Layer],
        upstream: Upstream,
        audit: Audit,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``layers``: checked by ``Defended``, of which this is the form that serves."""
        self._clock, self._sleep = clock, sleep
        self._inputs = [Caller(layer) for layer in layers if layer.side == "input"]
        self._outputs = [Caller(layer) for layer in layers if layer.side == "output"]
        self._upstream, self._audit, self._settings = upstream, audit, settings
        self._metrics = Metrics([layer.name for layer in layers])
        self._pool = ThreadPoolExecutor(settings.most_at_once + 8, thread_name_prefix="layers")
        self._open = 0
        self._bounded = all(
            getattr(layer.guard, "bounded", False) and layer.failing.timeout is None for layer in layers
        )

    def app(self) -> Starlette:
        """The application, to be served by any ASGI server."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/healthz", self._healthy, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._measured, methods=["GET"]),
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=HANDLERS)
        app.router.redirect_slashes = False
        return app

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await self._upstream.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with suppress(InputError):
            self._audit.close()

    async def _healthy(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        reasons = [f"the audit can not be written: {self._audit.broken}"] if self._audit.broken else []
        for caller in (*self._inputs, *self._outputs):
            if caller.open or caller.stuck:
                why = "it failed too often" if caller.open else "too many of its calls do not end"
                reasons.append(f"layer '{caller.layer.name}' is not asked: {why}")
        return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)

    async def _measured(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=self._metrics.media_type)

    async def _models(self, request: Request) -> Response:
        try:
            self._let_in(request)
            names = await self._upstream.models(self._passed(request))
        except ApiError as error:
            return JSONResponse(error.body(), status_code=error.status)
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "upstream"} for name in names]
        return JSONResponse({"object": "list", "data": rows})

    async def _chat(self, request: Request) -> Response:
        case = Case(self._clock())
        self._open += 1
        streams = False
        try:
            if self._open > self._settings.most_at_once:
                raise ApiError(503, "too many requests are under way", code="overloaded")
            if self._audit.broken:
                raise ApiError(503, "the audit can not be written, so nothing is served", code="audit_broken")
            self._let_in(request)
            asked = case.asked = read(await self._body(request), request.headers.get("content-type", ""))
            case.outcome = "unanswered"
            stopped = await self._read_input(case, asked)
            headers = {"x-calibrant-degraded": "true"} if case.degraded else {}
            if asked.stream:
                streams = True
                body = self._streamed(case, asked, self._passed(request), stopped)
                late = bool(self._settings.refusal_after)
                return EventStream(body, headers, self._left(case) + _GRACE, late=late)
            answer = await self._whole(case, asked, self._passed(request), stopped)
            if case.degraded:
                headers = {"x-calibrant-degraded": "true"}
            if case.outcome != "answered":
                await self._refusal_time(case)
            self._write(case)
            return JSONResponse(answer, headers=headers)
        except ApiError as error:
            return self._failed(case, error)
        except (ClientDisconnect, asyncio.CancelledError):
            case.outcome, case.why = "client_left", "the client left before it was answered"
            self._write(case)
            raise
        except InputError:  # the audit
            case.outcome = "error"
            return self._failed(case, ApiError(503, "the audit can not be written", code="audit_broken"))
        except Exception as error:  # noqa: BLE001  the door of the server: it fails closed, and lives on
            return self._failed(case, failure(error))
        finally:
            if not streams:
                self._open -= 1

    def _failed(self, case: Case, error: ApiError) -> Response:
        """An error of the protocol, with its line in the audit where that can be written."""
        case.outcome, case.why = "error" if error.status >= 500 else "refused", told(error)
        with suppress(InputError):
            self._write(case)
        return JSONResponse(error.body(), status_code=error.status)

    def _let_in(self, request: Request) -> None:
        if self._settings.token:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent.encode(), self._settings.token.encode()):
                raise ApiError(401, "the bearer token is not the one of this proxy", code="invalid_api_key")

    def _passed(self, request: Request) -> dict[str, str]:
        """Headers for the model's server; the token of this proxy is not for it."""
        held = {"authorization"} if self._settings.token else set()
        return {name: value for name, value in request.headers.items() if name not in held}

    async def _body(self, request: Request) -> bytes:
        """The body, within the limit of size and the deadline."""
        most, raw = self._settings.most_bytes, bytearray()
        too_large = ApiError(413, f"the request is larger than {most} bytes", code="too_large")
        if int(request.headers.get("content-length") or 0) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._settings.deadline):
                async for piece in request.stream():
                    raw += piece
                    if len(raw) > most:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "the request did not come in time", code="timeout") from None
        return bytes(raw)

    def _refusal_left(self, case: Case) -> float:
        return case.began + self._settings.refusal_after - self._clock()

    async def _refusal_time(self, case: Case) -> None:
        """Wait until a refusal may leave."""
        if (left := self._refusal_left(case)) > 0:
            await self._sleep(left)

    def _left(self, case: Case) -> float:
        return max(0.001, self._settings.deadline - (self._clock() - case.began))

    async def _thread(self, call: Callable[..., T], *args: Any, short: bool = False) -> T:
        """The call in a thread; where it is ``short`` and all guards are bounded, at once."""
        if short and self._bounded:
            return call(*args)
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call, *args)

    async def _read_input(self, case: Case, asked: Asked) -> LayerVerdict | None:
        """The input layer that blocks; None where the request may pass."""
        said: list[LayerVerdict] = []

        def ask() -> None:
            for caller in self._inputs:
                said.extend(caller.verdicts([asked.chat], self._left(case)))
                if blocker(said):
                    return

        if self._inputs:
            await self._thread(ask, short=sum(len(turn.content) for turn in asked.chat.messages) < _SHORT)
        case.verdicts.append(("input", 0, tuple(said)))
        return blocker(said, ended=True)

    def _release(self, case: Case, asked: Asked) -> Release:
        return Release(self._outputs, asked.chat, lambda: self._left(case))

    async def _whole(
        self, case: Case, asked: Asked, headers: Mapping[str, str], stopped: LayerVerdict | None
    ) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        build = Builder(asked.model)
        if stopped is not None:
            case.outcome, case.why = "blocked_input", stopped.layer
            refused = [self._choice(at, self._settings.refusal, BLOCKED) for at in range(asked.choices)]
            return build.whole(refused, {})
        try:
            async with asyncio.timeout(self._left(case)):
                parts, usage = await self._upstream.whole(asked, headers)
        except TimeoutError:
            raise ApiError(504, "the model's server did not answer in time", code="timeout") from None
        choices, case.outcome = [], "answered"
        for part in parts:
            calls, release = Calls(), self._release(case, asked)
            calls.add(part.calls)
            release.take(part.text, part.reasoning if self._settings.show_reasoning else "")
            texts = calls.texts()
            short = len(release.whole) + sum(map(len, texts)) < _SHORT
            out = await self._thread(release.finish, texts, short=short)
            case.verdicts.append(("output", part.index, release.verdicts))
            case.replies[part.index] = release.read
            if release.blocked is not None:
                case.outcome, case.why = "blocked_output", release.blocked.layer
                case.held += release.held
                choices.append(self._choice(part.index, self._settings.refusal, BLOCKED))
                continue
            case.released += release.released
            more = {"reasoning_content": out.reasoning} if out.reasoning else {}
            choices.append(self._choice(part.index, out.text, part.end or "stop", **more, **calls.message()))
        # Of a blocked reply its length would tell that there was one.
        return build.whole(choices, {} if case.outcome == "blocked_output" else usage)

    @staticmethod
    def _choice(index: int, text: str, end: str, **more: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None, **more}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": end}

    async def _streamed(
        self, case: Case, asked: Asked, headers: Mapping[str, str], stopped: LayerVerdict | None
    ) -> AsyncGenerator[bytes]:
        """The events of a stream; the audit's line is written before the last of them leaves."""
        build = Builder(asked.model)
        written = False
        opening = [build.chunk(at, {"role": "assistant", "content": ""}) for at in range(asked.choices)]
        try:
            while opening and not self._settings.refusal_after:
                yield opening.pop(0)
            if stopped is not None:
                events = self._refused(case, asked, build, stopped)
            else:
                events = self._live(case, asked, headers, build)
            async with aclosing(events):
                async for one in events:
                    while opening:
                        yield opening.pop(0)
                    yield one
            written = True
            self._write(case)
            yield DONE
        except ApiError as error:
            case.outcome, case.why = "error", told(error)
            yield event(error.body())
        except InputError:
            yield event(ApiError(503, "the audit can not be written", code="audit_broken").body())
        except (asyncio.CancelledError, GeneratorExit):
            case.outcome, case.why = "client_left", "the client left, or did not read"
            raise
        except Exception as error:  # noqa: BLE001  the door of the server: it fails closed, and lives on
            case.outcome, case.why = "error", type(error).__name__
            yield event(failure(error).body())
        finally:
            self._open -= 1
            if not written:
                with suppress(InputError):
                    self._write(case)

    async def _refused(
        self, case: Case, asked: Asked, build: Builder, stopped: LayerVerdict
    ) -> AsyncGenerator[bytes]:
        """What a client reads of a request that does not pass."""
        case.outcome, case.why = "blocked_input", stopped.layer
        await self._refusal_time(case)
        for at in range(asked.choices):
            yield build.chunk(at, {"content": self._settings.refusal})
            yield build.chunk(at, {}, BLOCKED)

    async def _live(
        self, case: Case, asked: Asked, headers: Mapping[str, str], build: Builder
    ) -> AsyncGenerator[bytes]:
        """A reply as its output layers let it out."""
        choices = [Live(self._release(case, asked), self._settings) for _ in range(asked.choices)]
        usage: dict[str, int] = {}
        refusals: dict[int, list[bytes]] = {}
        try:
            async with aclosing(self._timed(case, asked, headers)) as parts:
                async for part in parts:
                    if part is None:
                        if self._refusal_left(case) <= 0:  # a request that is refused has no comments either
                            yield HELD
                    elif isinstance(part, dict):
                        usage = part or usage
                    else:
                        live = choices[part.index]
                        if not live.over:
                            to_read = len(live.release.whole) if part.end else live.release.held
                            short = to_read + len(part.text) < _SHORT
                            for delta, end in await self._thread(live.pass_on, part, short=short):
                                one = build.chunk(part.index, delta, end)
                                if live.release.blocked is not None and self._settings.refusal_after:
                                    refusals.setdefault(part.index, []).append(one)
                                else:
                                    yield one
                        if all(live.release.blocked is not None for live in choices):
                            break  # nobody will read the rest
            if not all(live.over for live in choices):
                raise ApiError(
                    502, "the model's server ended in the middle of a reply", code="upstream_closed"
                )
            if refusals:  # all at once, so that the time of none tells what it took
                await self._refusal_time(case)
            for _, held in sorted(refusals.items()):
                for one in held:
                    yield one
            case.outcome = "answered"
        finally:
            for at, live in enumerate(choices):
                case.verdicts.append(("output", at, live.release.verdicts))
                case.replies[at] = live.release.read
                case.released += live.release.released
                case.held += live.release.held
                if live.release.blocked is not None:
                    case.outcome, case.why = "blocked_output", live.release.blocked.layer
        # Of a blocked reply its length would tell that there was one.
        if asked.usage and usage and case.outcome == "answered":
            yield build.counted(usage)

    async def _timed(
        self, case: Case, asked: Asked, headers: Mapping[str, str]
    ) -> AsyncGenerator[Part | dict[str, int] | None]:
        """Parts of the reply within the deadline; None where a while passes without any."""
        async with aclosing(self._upstream.parts(asked, headers)) as parts:  # type: ignore[type-var]
            waiting = asyncio.ensure_future(anext(parts, ...))
            try:
                while True:
                    left = self._left(case)
                    done, _ = await asyncio.wait([waiting], timeout=min(left, self._settings.quiet))
                    if done:
                        part = waiting.result()
                        if part is ...:
                            return
                        yield part
                        waiting = asyncio.ensure_future(anext(parts, ...))
                    elif left <= self._settings.quiet:
                        raise ApiError(504, "the reply was not finished in time", code="timeout")
                    else:
                        yield None
            finally:
                if not waiting.done():
                    waiting.cancel()
                with suppress(asyncio.CancelledError, ApiError, StopAsyncIteration):
                    await waiting

    def _write(self, case: Case) -> None:
        """The line in the audit, and the numbers."""
        ms = 1000 * (self._clock() - case.began)
        said = [one for _, _, verdicts in case.verdicts for one in verdicts]
        self._metrics.told(case.outcome, ms, case.released, said)
        self._audit.add(case.line(self._audit, ms))
