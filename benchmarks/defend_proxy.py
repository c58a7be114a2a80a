"""Guard proxies side by side: ours, both engines of NeMo Guardrails, and litellm; one rule, one stub.

Each proxy runs as a server of its own, with a rule for requests and one for replies: a regular expression,
the same in all. First each must let a plain request through, and block a forbidden request and reply.

1. Added milliseconds: one request after another, through a proxy and straight to the stub, in turn. The rows
   are limits over what we add: 5 ms at the median, 15 ms at the 95th percentile.
2. Requests a second at 16 at once: ours over theirs.
3. Peak resident memory of the server's process: theirs over ours.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from _race import Row, finish, is_quick, make_row, say

HERE = Path(__file__).resolve().parent
WORD = "zorble"
PLAIN, BAD = "tell me of the tower and the river", f"tell me of the {WORD}"
REPLY = "the tower stands by the river, and the keeper sees to its lamp every night of the year."
STUB = f"""
import json, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def chat(request):
    body = await request.json()
    last = body["messages"][-1]["content"]
    text = "here is a {WORD}" if "leak" in last else {REPLY!r}
    return JSONResponse({{"id": "x", "object": "chat.completion", "created": 1, "model": "stub", "choices": [
        {{"index": 0, "message": {{"role": "assistant", "content": text}}, "finish_reason": "stop"}}],
        "usage": {{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}}})
async def models(request):
    return JSONResponse({{"object": "list", "data": [{{"id": "stub", "object": "model"}}]}})
app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)])
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""
STACK = f"""
refusal = "blocked."
[[layer]]
name = "requests"
side = "input"
guard = {{ use = "defend.pattern_guard", config = {{ patterns = ["\\\\b{WORD}\\\\b"] }} }}
[[layer]]
name = "replies"
side = "output"
guard = {{ use = "defend.pattern_guard", config = {{ patterns = ["\\\\b{WORD}\\\\b"] }} }}
"""
OPEN = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
RAILS = """
models:
  - type: main
    engine: openai
    model: stub
    parameters:
      base_url: http://127.0.0.1:{port}/v1
      api_key: none
rails:
  config:
    regex_detection:
      input:
        patterns: ["\\\\b{word}\\\\b"]
        case_insensitive: true
      output:
        patterns: ["\\\\b{word}\\\\b"]
        case_insensitive: true
  input:
    flows: [regex check input]
  output:
    flows: [regex check output]
"""
GATEWAY = """
model_list:
  - model_name: stub
    litellm_params: {{model: openai/stub, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
guardrails:
  - guardrail_name: words
    litellm_params:
      guardrail: litellm_content_filter
      mode: [pre_call, post_call]
      default_on: true
      patterns:
        - {{pattern_type: regex, name: word, pattern: "\\\\b{word}\\\\b", action: BLOCK}}
"""


class Peer(NamedTuple):
    """A proxy that runs."""

    name: str
    url: str
    more: dict[str, Any]
    pid: int


@contextmanager
def server(command: Sequence[str], port: int, **environment: str) -> Iterator[int]:
    """A server that answers on ``port``; its process."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
    process = subprocess.Popen(
        [*command], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=log, stderr=log
    )
    try:
        for _ in range(1200):
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read().decode(errors="replace")[-2000:])
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2, trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            log.seek(0)
            raise RuntimeError(f"{command[0]} does not answer: {log.read().decode(errors='replace')[-2000:]}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def asked(client: httpx.AsyncClient, peer: Peer, text: str) -> tuple[float, str]:
    """Milliseconds of one request, and the reply."""
    body = {"model": "stub", "messages": [{"role": "user", "content": text}], **peer.more}
    start = time.perf_counter()
    answer = await client.post(f"{peer.url}/v1/chat/completions", json=body)
    ms = 1000 * (time.perf_counter() - start)
    if answer.status_code != 200:  # how litellm says that it blocks
        return ms, ""
    return ms, str(answer.json()["choices"][0]["message"]["content"])


async def agreed(client: httpx.AsyncClient, peer: Peer) -> None:
    """A plain request passes whole; a forbidden one and a forbidden reply do not."""
    assert (said := (await asked(client, peer, PLAIN))[1]) == REPLY, (peer.name, said)
    for text in (BAD, "leak it"):
        said = (await asked(client, peer, text))[1]
        assert WORD not in said and said != REPLY, (peer.name, text, said)


async def one_by_one(client: httpx.AsyncClient, peers: Sequence[Peer], count: int) -> dict[str, list[float]]:
    """Milliseconds of ``count`` requests to each, in turn."""
    took: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(count):
        for peer in peers:
            took[peer.name].append((await asked(client, peer, PLAIN))[0])
    return took


async def at_once(client: httpx.AsyncClient, peer: Peer, count: int, width: int = 16) -> float:
    """Requests a second."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await asked(client, peer, PLAIN)

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(width)))
    return count / (time.perf_counter() - start)


def resident(pid: int) -> float:
    """Most bytes of a process that were in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError("no peak memory is told")


async def raced(direct: Peer, ours: Peer, peers: Sequence[Peer], rounds: int, quick: bool) -> list[Row]:
    """The rows."""
    everyone = [direct, ours, *peers]
    added: dict[str, list[np.ndarray[Any, Any]]] = {peer.name: [] for peer in everyone}
    pace: dict[str, list[float]] = {peer.name: [] for peer in everyone}
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
    async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
        for peer in everyone[1:]:
            await agreed(client, peer)
            await at_once(client, peer, 32)
        for _ in range(rounds):
            took = await one_by_one(client, everyone, 20 if quick else 60)
            plain = float(np.median(took[direct.name]))
            for name, ms in took.items():
                added[name].append(np.quantile(ms, [0.5, 0.95]) - plain)
            for peer in everyone:
                pace[peer.name].append(await at_once(client, peer, 60 if quick else 200))
    for peer in everyone[1:]:
        p50, p95 = np.mean(added[peer.name], axis=0)
        rate = np.mean(pace[peer.name])
        say(f"  {peer.name}: adds {p50:.1f} ms (p50), {p95:.1f} ms (p95); {rate:.0f} requests/s at 16")
    say(f"  the stub itself: {np.mean(pace[direct.name]):.0f} requests/s at 16")
    mine = np.maximum(added[ours.name], 0.01)  # (rounds, 2)
    rows = [
        make_row("guard proxy: added p50, 5 ms over ours", (5 / mine[:, 0]).tolist(), equal=True),
        make_row("guard proxy: added p95, 15 ms over ours", (15 / mine[:, 1]).tolist(), equal=True),
    ]
    for peer, target in zip(peers, (10.0, 1.0, 2.0), strict=True):
        ratios = (np.array(pace[ours.name]) / np.array(pace[peer.name])).tolist()
        memory = resident(peer.pid) / resident(ours.pid)
        name = f"guard proxy: requests a second at 16 against {peer.name}"
        rows.append(make_row(name, ratios, equal=True, memory_ratio=memory, target=target))
        theirs = np.maximum(added[peer.name], 0.01)[:, 0]
        rows.append(
            make_row(
                f"guard proxy: added p50 against {peer.name}",
                (theirs / mine[:, 0]).tolist(),
                equal=True,
                target=0.0,
            )
        )
    return rows


def main() -> None:
    """Start everything, race, print."""
    quick = is_quick(__doc__)
    nemo = HERE.parent / ".peers" / "nemoguardrails" / "bin"
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), 18700
        (folder / "stub.py").write_text(STUB)
        (folder / "stack.toml").write_text(STACK)
        rails = folder / "rails" / "main"
        rails.mkdir(parents=True)
        (rails / "config.yml").write_text(RAILS.format(port=base, word=WORD))
        (folder / "gateway.yaml").write_text(GATEWAY.format(port=base, word=WORD))
        gateway = [
            str(nemo.parents[1] / "litellm" / "bin" / "litellm"),
            "--config",
            str(folder / "gateway.yaml"),
            "--port",
            str(base + 4),
        ]
        calibrant = [sys.executable, "-m", "calibrant", "serve", "guard", str(folder / "stack.toml")]
        theirs = [str(nemo / "nemoguardrails"), "server", "--config", str(rails.parent), "--disable-chat-ui"]
        with (
            server([sys.executable, str(folder / "stub.py"), str(base)], base) as stub,
            server(
                [*calibrant, "--upstream", f"http://127.0.0.1:{base}/v1", "--port", str(base + 1),
                 "--ledger", str(folder / "ledger")],
                base + 1,
            ) as ours,
            server([*theirs, "--port", str(base + 2)], base + 2, OPENAI_API_KEY="none") as rails_1,
            server(
                [*theirs, "--port", str(base + 3)], base + 3, OPENAI_API_KEY="none",
                NEMO_GUARDRAILS_IORAILS_ENGINE="1",
            ) as rails_2,
            server(gateway, base + 4, LITELLM_LOCAL_MODEL_COST_MAP="True", **OPEN) as lite,
        ):  # fmt: skip
            config = {"guardrails": {"config_id": "main"}, "config_id": "main"}
            peers = [
                Peer("NeMo Guardrails (LLMRails)", f"http://127.0.0.1:{base + 2}", config, rails_1),
                Peer("NeMo Guardrails (IORails)", f"http://127.0.0.1:{base + 3}", config, rails_2),
                Peer("litellm", f"http://127.0.0.1:{base + 4}", {}, lite),
            ]
            direct = Peer("direct", f"http://127.0.0.1:{base}", {}, stub)
            mine = Peer("Calibrant", f"http://127.0.0.1:{base + 1}", {}, ours)
            finish(asyncio.run(raced(direct, mine, peers, 2 if quick else 8, quick)))


if __name__ == "__main__":
    main()
