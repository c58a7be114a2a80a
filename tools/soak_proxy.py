"""Soak of the guard proxy: ten minutes at 64 at once, with clients that drop out at random.

    python tools/soak_proxy.py [SECONDS]

A stub streams a reply in pieces; one in four holds a forbidden word. Half of the clients stream, and one in
five of those leaves after a random part. It ends with status 1 where a forbidden word reached a client, or a
request has no line in the audit. Memory is told.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from defend_proxy import STACK, WORD, server

STUB = f"""
import asyncio, json, random, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
WORDS = "the keeper of the tower by the river sees to its lamp every night of the year and then some".split()
async def chat(request):
    body = await request.json()
    words = [random.choice(WORDS) for _ in range(30)]
    if random.random() < .25:
        words[random.randrange(30)] = "{WORD}"
    text = " ".join(words)
    if not body.get("stream"):
        return JSONResponse({{"choices": [{{"index": 0, "message": {{"content": text}}, "finish_reason": "stop"}}]}})
    async def events():
        size = random.choice([1, 3, 7, 20])
        for at in range(0, len(text), size):
            await asyncio.sleep(.002)
            yield "data: " + json.dumps({{"choices": [{{"index": 0, "delta": {{"content": text[at:at + size]}}}}]}}) + "\\n\\n"
        yield 'data: {{"choices": [{{"index": 0, "delta": {{}}, "finish_reason": "stop"}}]}}\\n\\ndata: [DONE]\\n\\n'
    return StreamingResponse(events(), media_type="text/event-stream")
async def models(request):
    return JSONResponse({{"data": [{{"id": "stub"}}]}})
app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)])
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""  # noqa: E501


class Counts:
    """What clients have seen."""

    sent = leaked = left = blocked = whole = 0


async def client(url: str, counts: Counts, until: float, seed: int) -> None:
    """One client after another, until the time is up."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        while time.monotonic() < until:
            body = {"model": "stub", "messages": [{"role": "user", "content": "tell me of the tower"}]}
            counts.sent += 1
            if rng.random() < 0.5:
                answer = (await http.post(url, json=body)).json()["choices"][0]
                text, end = answer["message"]["content"], answer["finish_reason"]
            else:
                text, end = await streamed(http, url, body, rng.randrange(1, 25) if rng.random() < 0.2 else 0)
            counts.leaked += WORD in text
            counts.left += not end
            counts.blocked += end == "content_filter"
            counts.whole += end == "stop"


async def streamed(http: httpx.AsyncClient, url: str, body: Any, most: int) -> tuple[str, str]:
    """Text and end of a stream; no end where the client leaves after ``most`` events."""
    text, end, seen = "", "", 0
    with suppress(httpx.RemoteProtocolError):
        async with http.stream("POST", url, json={**body, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    text, end = text + (choice["delta"].get("content") or ""), choice["finish_reason"] or end
                    seen += 1
                    if most and seen >= most:
                        return text, ""
    return text, end


def resident(pid: int) -> float:
    """Bytes of a process in memory."""
    return 4096.0 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])


async def soaked(url: str, pid: int, seconds: float) -> tuple[Counts, list[float]]:
    """Counts, and memory twenty times on the way."""
    counts, until, memory = Counts(), time.monotonic() + seconds, []
    clients = [asyncio.ensure_future(client(url, counts, until, seed)) for seed in range(64)]
    for _ in range(20):
        await asyncio.sleep(seconds / 20)
        memory.append(resident(pid))
    await asyncio.gather(*clients)
    return counts, memory


def main() -> None:
    """Soak, then count."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), 18710
        (folder / "stub.py").write_text(STUB)
        (folder / "stack.toml").write_text(STACK)
        command = [sys.executable, "-m", "calibrant", "serve", "guard", str(folder / "stack.toml")]
        command += ["--upstream", f"http://127.0.0.1:{base}/v1", "--port", str(base + 1)]
        with server([sys.executable, str(folder / "stub.py"), str(base)], base):
            with server([*command, "--ledger", str(folder / "ledger")], base + 1) as pid:
                url = f"http://127.0.0.1:{base + 1}/v1/chat/completions"
                counts, memory = asyncio.run(soaked(url, pid, seconds))
            audit = next((folder / "ledger" / "audit").glob("*.jsonl")).read_bytes().splitlines()
    lines = [json.loads(line) for line in audit if b'"outcome"' in line]
    for line in (
        f"{counts.leaked} forbidden words reached a client",
        f"{counts.sent} requests: {counts.whole} whole, {counts.blocked} blocked, {counts.left} left early",
        f"{len(lines)} lines in the audit",
        f"memory {memory[1] / 2**20:.0f} to {memory[-1] / 2**20:.0f} MiB",
    ):
        sys.stdout.write(line + "\n")
    sys.exit(1 if counts.leaked or len(lines) != counts.sent else 0)


if __name__ == "__main__":
    main()
