"""Starts the proxy: what it tells the operator, the socket, the server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from calibrant.core import LM, ConfigError
from calibrant.core.digest import digest
from calibrant.defend.defended import Layer, StackSpec
from calibrant.serve.proxy.audit import Audit, Keep
from calibrant.serve.proxy.case import Settings
from calibrant.serve.proxy.server import Proxy
from calibrant.serve.proxy.upstream import InProcess, Server, Upstream


def run(
    spec: StackSpec,
    layers: Sequence[Layer],
    *,
    upstream: str,
    model: LM | None,
    key: str,
    token: str,
    host: str,
    port: int,
    deadline: float,
    most_bytes: int,
    keep: Keep,
    audits: Path,
    say: Callable[[str], None],
) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigError: the port is taken, or the address is none of this machine.
    """
    behind: Upstream = Server(upstream, key) if model is None else InProcess(model, model.identity.name)
    told = upstream if model is None else model.identity.digest
    for note in notes(layers, key=bool(key), token=bool(token)):
        say(f"note: {note}")
    policy = policy_of(spec, layers, told)
    listening = _bound(host, port)
    audit = Audit(audits, policy, keep)
    settings = Settings(
        refusal=spec.refusal,
        show_reasoning=spec.show_reasoning,
        deadline=deadline,
        most_bytes=most_bytes,
        token=token,
    )
    config = uvicorn.Config(
        Proxy(layers, behind, audit, settings).app(),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    at = f"[{host}]" if ":" in host else host
    say(
        f"guarding {told if model is None else model.identity.name} at http://{at}:{listening.getsockname()[1]}/v1"
    )
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
