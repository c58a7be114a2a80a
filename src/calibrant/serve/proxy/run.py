"""Starts the proxy: what it tells the operator, the socket, the server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from calibrant.core import LM, ConfigError
from calibrant.core.digest import digest
from calibrant.defend.defended import Layer, StackSpec
from calibrant.defend.pii_guard import pii_guard
from calibrant.serve.proxy.audit import Audit
from calibrant.serve.proxy.case import Settings
from calibrant.serve.proxy.hiding import Hiding
from calibrant.serve.proxy.server import Proxy
from calibrant.serve.proxy.upstream import InProcess, Server, Upstream


def run(
    spec: StackSpec, layers: Sequence[Layer], model: LM | None, settings: Settings, say: Callable[[str], None]
) -> None:
    """Serve until the process is told to stop: ``settings.upstream``, or ``model`` in this process.

    Raises:
        ConfigError: the port is taken, the address is none of this machine, or no request could be refused in
            time.
    """
    if settings.refusal_after >= settings.deadline:
        raise ConfigError(
            f"refusals wait {settings.refusal_after:g} s, and a request has {settings.deadline:g} s",
            hint="--refusal-after must be less than --deadline",
        )
    settings = settings.of_stack(spec)
    behind: Upstream = (
        Server(settings.upstream, settings.key) if model is None else InProcess(model, model.identity.name)
    )
    if settings.hide is not None:
        behind = Hiding(behind, settings.hide)
    told = notes(layers, key=bool(settings.key), token=bool(settings.token))
    if spec.hide is not None and settings.keep == "full":
        told.append("--keep full keeps personal data in the audit, though the model never reads it")
    for note in told:
        say(f"note: {note}")
    policy = policy_of(spec, layers, settings.upstream if model is None else model.identity.digest)
    listening = _bound(settings.host, settings.port)
    audit = Audit(settings.audits, policy, settings.keep)
    config = uvicorn.Config(
        Proxy(layers, behind, audit, settings).app(),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    at = f"[{settings.host}]" if ":" in settings.host else settings.host
    name = settings.upstream if model is None else model.identity.name
    say(f"guarding {name} at http://{at}:{listening.getsockname()[1]}/v1")
    say(f"audit: {audit.path}")
    uvicorn.Server(config).run(sockets=[listening])


def notes(layers: Sequence[Layer], *, key: bool, token: bool) -> list[str]:
    """What an operator should know of these layers before they serve."""
    told = []
    if key and not token:
        told.append("--key-env without --token-env lends the key to every client that reaches this port")
    for side, lack in (("input", "requests reach the model unread"), ("output", "replies leave unread")):
        if not any(layer.side == side for layer in layers):
            told.append(f"the stack has no {side} layer: {lack}")
    for layer in layers:
        if layer.side == "output" and layer.every is None:
            guard: Any = layer.guard
            why = getattr(guard, "streams", "") if hasattr(guard, "held") else "its guard reads whole replies"
            if why:
                told.append(f"layer '{layer.name}' holds a reply to its end: {why}")
        if layer.failing.on_error == "escalate":
            told.append(f"layer '{layer.name}' escalates: what it fails on may pass by the others")
    return told


def policy_of(spec: StackSpec, layers: Sequence[Layer], upstream: str) -> dict[str, Any]:
    """What an audit names: the layers with the digests of their guards, the refusal, the model behind."""
    named = [
        {
            "name": layer.name,
            "side": layer.side,
            "guard": layer.guard.identity.digest,
            "every": layer.every,
            **layer.failing.model_dump(),
        }
        for layer in layers
    ]
    policy = {"layers": named, "refusal": spec.refusal, "show_reasoning": spec.show_reasoning}
    if spec.hide is not None:
        policy["hide"] = pii_guard(spec.hide).identity.digest  # it may list names
    return {**policy, "upstream": upstream, "digest": digest({**policy, "upstream": upstream})}


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {why}", hint="give another --port, or --host 127.0.0.1"
        ) from None
    return listening
