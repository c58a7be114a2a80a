"""One JSON call to a web endpoint: retries, limits, and a plain reason for every failure.

Waiting follows "full jitter" (M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015):
before retry k (from 0) it sleeps uniformly between 0 and min(max_wait, backoff * 2^k) seconds, unless the
server says how long in ``Retry-After``.
"""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

import httpx
from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.secrets import strike, without_secrets
from calibrant.models.endpoint_budget import EndpointError, Meter
from calibrant.models.events import BadEventError, Events

_tls = functools.cache(httpx.create_ssl_context)  # costs tens of milliseconds: once a process

MAX_BYTES = 16 * 2**20
"""Largest answer that is read."""
_MOST_TOKENS = 2**31
"""A count from here on is no count."""
_LONGEST_WAIT = 1e9  # thirty years: what asks for more asks for no other try
_HINTS = {
    401: "api_key_env must name the environment variable that holds a valid key",
    403: "see what the key allows",
    404: "compare the URL (often it ends in /v1) and the model's name with the server's own page",
    429: "wait, or lower concurrency",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ApiConfig(Frozen):
    """How to call the endpoint. Nothing here changes what the model answers, ``lone_tags`` how it is read."""

    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never stored."""
    timeout: float = Field(default=60.0, gt=0)
    """Most seconds for one call, from connecting to the last byte of the body."""
    max_retries: int = Field(default=4, ge=0)
    """Further tries after no connection, a time-out, or HTTP 408, 429 or 5xx."""
    backoff: float = Field(default=0.5, gt=0)
    """Upper limit of the first wait in seconds; it doubles with every retry."""
    max_wait: float = Field(default=30.0, gt=0)
    """Most seconds between two tries; a server that asks for a longer wait is given up."""
    concurrency: int = Field(default=8, ge=1)
    """Most calls under way at once."""
    max_requests: int | None = Field(default=None, ge=0)
    """Most HTTP requests over the life of the object, retries included. None is no limit."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens generated over the life of the object, by the server's count; a call whose count is not
    known costs ``Sampling.max_tokens``. None is no limit."""
    lone_tags: bool = True
    """Whether a closing tag without its opening one ends reasoning, which the template had opened. What is
    reply is then known in the end only, so ``stream`` gives a reply without reasoning beside it in one piece.
    False: it is text like any other, and a reply streams as it comes."""
    logprobs: bool = False
    """Ask for log-probs; not every server takes the question."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit on one reply."""


class Pacing(NamedTuple):
    """Where time and chance come from; tests put their own here."""

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.SystemRandom().random


class Endpoint:
    """A base URL that is called with JSON. Keeps the budget; no connection outlives ``session``."""

    def __init__(self, url: str, config: ApiConfig, pacing: Pacing) -> None:
        self.url = endpoint_url(url)
        parsed = httpx.URL(self.url)
        host = parsed.raw_host.decode("ascii")  # ``host`` decodes Punycode, and raises where it is none
        if config.api_key_env and parsed.scheme == "http" and host not in _LOOPBACK:
            raise InputError(
                f"a key would go to {host} unencrypted",
                hint="use https://, or take the key away for a server that wants none",
            )
        self._here = host in _LOOPBACK
        self._config = config
        self._pacing = pacing
        self._meter = Meter(config.max_requests, config.max_tokens)

    def session(self) -> httpx.Client:
        """Connections to use in a ``with``; threads may share it."""
        limits = httpx.Limits(max_connections=self._config.concurrency)
        # A proxy of the environment would read what goes to this very machine, the key too.
        proxies = not self._here
        return httpx.Client(timeout=self._config.timeout, limits=limits, verify=_tls(), trust_env=proxies)

    def call(self, client: httpx.Client, path: str, payload: Any = None, *, tokens: int = 0) -> Any:
        """The parsed answer to POST ``payload``, or to GET when there is none.

        ``tokens`` is the most that the call can generate.

        Raises:
            EndpointError: no answer after all tries, or the budget does not allow the next one.
        """
        tries, last = 0, ""
        while True:
            try:
                return self._paid(client, path, payload, tokens, last)
            except EndpointError as error:
                tries, last = tries + 1, error.message
                self._give_up(tries, error)
                wait = self._wait(tries - 1, error)
            self._pacing.sleep(wait)

    def events(self, client: httpx.Client, path: str, payload: Any, *, tokens: int = 0) -> Generator[Any]:
        """The parsed server-sent events of the answer to POST ``payload``.

        Of a server that does not stream it is the one answer. Tried again only where no event has come.

        Raises:
            EndpointError: as ``call``; an event that is no JSON; the connection breaks off.
        """
        tries, last, begun = 0, "", False
        while True:
            try:
                with closing(self._paid_events(client, path, payload, tokens, last)) as events:
                    for event in events:
                        begun = True
                        yield event
                return
            except EndpointError as error:
                if begun:
                    raise
                tries, last = tries + 1, error.message
                self._give_up(tries, error)
                wait = self._wait(tries - 1, error)
            self._pacing.sleep(wait)

    def _paid(self, client: httpx.Client, path: str, payload: Any, tokens: int, last: str) -> Any:
        """One call with its place in the budget."""
        self._meter.reserve(tokens, last)
        used = tokens
        try:
            reply = self._once(client, path, payload)
            counted = completion_tokens(reply)
            used = tokens if counted is None else counted
            return reply
        except EndpointError as error:
            used = tokens if error.billed else 0
            raise
        finally:
            self._meter.settle(tokens, used)

    def _paid_events(
        self, client: httpx.Client, path: str, payload: Any, tokens: int, last: str
    ) -> Generator[Any]:
        """One call with its place in the budget; one that is left early has cost all that it could."""
        self._meter.reserve(tokens, last)
        used = tokens
        try:
            with self._opened(client, path, payload) as response:
                if response.status_code != 200:
                    raise self._refused(response, b"".join(self._pieces(response)))
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    answer = self._parsed(b"".join(self._pieces(response)))
                    used = tokens if (counted := completion_tokens(answer)) is None else counted
                    yield answer
                    return
                for event in self._read_events(response):
                    used = used if (counted := completion_tokens(event)) is None else counted
                    yield self.struck(event)
        except EndpointError as error:
            used = used if error.billed else 0
            raise
        finally:
            self._meter.settle(tokens, used)

    def _read_events(self, response: httpx.Response) -> Iterator[Any]:
        events = Events()
        try:
            for piece in self._pieces(response):
                yield from events.push(piece)
                if events.done:
                    return
            yield from events.end()
        except BadEventError as error:
            raise EndpointError(f"the server sent {error}") from None

    def _give_up(self, tries: int, error: EndpointError) -> None:
        """Raise the error of the last of so many tries, unless there is to be another."""
        if not error.retry or tries > self._config.max_retries:
            error.message += f" (after {tries} tries)" if tries > 1 else ""
            raise error

    def _wait(self, retry: int, error: EndpointError) -> float:
        """Seconds to sleep before the next try; raises when the server asks for too long."""
        longest = self._config.max_wait
        if error.wait is None:
            return self._pacing.jitter() * min(longest, self._config.backoff * 2.0**retry)
        if error.wait > longest:
            error.message += f" (asks to wait {error.wait:g} s; max_wait is {longest:g} s)"
            raise error
        return error.wait

    def _once(self, client: httpx.Client, path: str, payload: Any) -> Any:
        """One HTTP call. Raises for all that is not a JSON answer with status 200."""
        with self._opened(client, path, payload) as response:
            raw = b"".join(self._pieces(response))
        if response.status_code != 200:
            raise self._refused(response, raw)
        return self._parsed(raw)

    @contextmanager
    def _opened(self, client: httpx.Client, path: str, payload: Any) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read."""
        key = self._key()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        method, body = ("GET", None) if payload is None else ("POST", json.dumps(payload).encode())
        try:
            with client.stream(method, self.url + path, content=body, headers=headers) as response:
                yield response
        except httpx.RequestError as caught:
            raise self._lost(caught) from None

    def _parsed(self, raw: bytes) -> Any:
        try:
            return self.struck(json.loads(raw))
        except (ValueError, RecursionError):
            hint = "see that the URL leads to the API and not to a web page"
            raise EndpointError(f"the answer is not JSON: {self.quote(raw)}", hint=hint) from None

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """The body, within ``timeout`` of waiting in all: httpx alone would wait for ever on a trickle."""
        waited, size, since = 0.0, 0, self._pacing.clock()
        for piece in response.iter_bytes():
            waited, size = waited + self._pacing.clock() - since, size + len(piece)
            if waited > self._config.timeout:
                raise httpx.ReadTimeout(f"the body took more than {self._config.timeout:g} s")
            if size > MAX_BYTES:
                raise EndpointError(f"the answer is larger than {MAX_BYTES} bytes")
            yield piece
            since = self._pacing.clock()

    def _lost(self, caught: httpx.RequestError) -> EndpointError:
        """What a failure below HTTP means."""
        unreachable = isinstance(caught, (httpx.ConnectError, httpx.ConnectTimeout))
        what = f"cannot reach {self.url}" if unreachable else f"lost the connection to {self.url}"
        message = self.quote(caught)
        error = EndpointError(
            f"{what}: {type(caught).__name__}{f', {message}' if message else ''}",
            hint="see that the server runs and that host and port are right",
        )
        error.retry, error.billed = True, not unreachable
        return error

    def _refused(self, response: httpx.Response, raw: bytes) -> EndpointError:
        """What a status other than 200 means."""
        status = response.status_code
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        message = self.quote(complaint(answer) or raw)
        hint = _HINTS.get(status, "read what the server says")
        if 300 <= status < 400:  # never followed: a key is for one address
            there = self.quote(without_secrets(response.headers.get("location", "nowhere")))
            message, hint = f"it sends to {there}", "name that address, if the key may go there"
        error = EndpointError(f"HTTP {status}: {message}", hint=hint, status=status)
        error.wait = retry_after(response.headers)
        match answer:
            case {"error": {"code": "content_filter"}}:
                error.blocked = True
        return error

    def quote(self, text: object) -> str:
        """A short piece of what the server said, fit for a message."""
        return quote(text, self._held())

    def struck(self, value: Any) -> Any:
        """``value`` without keys: some servers send back what they were sent."""
        return strike(value, self._held())

    def _held(self) -> str:
        return os.environ.get(self._config.api_key_env or "", "").strip()

    def _key(self) -> str:
        """The key as the environment has it now, or "" where none is asked for."""
        name = self._config.api_key_env
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            hint = f"put the key into ${name}, or leave api_key_env out"
            error = EndpointError(f"the environment variable {name} holds no usable key", hint=hint)
            error.billed = False
            raise error
        return key


def endpoint_url(url: str) -> str:
    """The base URL in one form: no trailing slash, no ``/chat/completions``, ``/v1`` on a bare host.

    Raises:
        InputError: not an http(s) URL, or one that carries a password, query or fragment.
    """
    hint = "give the address alone, such as http://localhost:8000/v1; keys go through api_key_env"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):  # its words may hold a part of a password
        raise InputError("the endpoint is not a URL", hint=hint) from None
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise InputError("the endpoint must start with http:// or https:// and name a host", hint=hint)
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise InputError(
            f"the URL of {parsed.raw_host.decode('ascii')} carries a password, query or fragment", hint=hint
        )
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1")).rstrip("/")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3), or None.

    A date is read against the server's own ``Date``, so that a wrong clock here does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_WAIT)
    try:
        delta = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, delta.total_seconds()), _LONGEST_WAIT)


def quote(text: object, key: str = "") -> str:
    """One line of at most 200 characters, with the key struck out: servers like to echo it."""
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    plain = plain.encode("utf-8", "replace").decode()  # a lone surrogate could not be written later
    plain = strike(plain, key)
    return " ".join(plain[:2000].split())[:200]


def complaint(answer: Any) -> str:
    """What a parsed answer says is wrong, in the shapes that servers use for it; else ""."""
    match answer:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)}:
            return text
    return ""


def completion_tokens(reply: Any) -> int | None:
    """Tokens generated by the server's count, reasoning included; None where it gives no such number."""
    match reply:
        case {"usage": {"completion_tokens": int(count)}} if 0 <= count < _MOST_TOKENS:
            return int(count)
    return None
