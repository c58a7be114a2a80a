"""The process in which any-guardrail runs: started when it is first needed, ended when it misbehaves.

A process that dies, gives no answer in time, or writes anything but the one answer, is killed, and the call
fails with CapabilityError, never with an answer. The next call starts another one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from calibrant.core import CapabilityError, ConfigError

WORKER = Path(__file__).with_name("_any_guardrail_worker.py")
_LINE = 1 << 20
"""Most bytes of an answer."""
_START = 60.0
"""Most seconds for an interpreter to name its packages."""


def versions_in(python: str) -> dict[str, str]:
    """The packages of the interpreter ``python`` that can change an answer.

    Raises:
        ConfigError: it does not run, or has no any-guardrail.
    """
    command = [python, "-P", str(WORKER), "--versions"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_START, check=True
        )
        found = {str(key): str(value) for key, value in json.loads(done.stdout).items()}
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"'python': '{python}' does not run: {error}",
            hint="name the interpreter of an environment with any-guardrail; it needs Python 3.11 or later",
        ) from None
    if not found.get("any-guardrail"):
        raise ConfigError(
            f"the interpreter '{python}' has no package any-guardrail",
            hint="pip install 'calibrant[any-guardrail]', or name the interpreter of another environment",
        )
    return found


class Peer:
    """A guardrail in a process of its own; threads may share it, and are answered one after the other."""

    def __init__(
        self,
        python: str,
        load: Mapping[str, Any],
        timeout: float,
        check: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Nothing is started yet. ``load``: what is asked first. ``check``: looks at the answer to that."""
        self._python, self._load, self._timeout, self._check = python, dict(load), timeout, check
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._heard: deque[bytes] = deque(maxlen=4)
        self._loaded: dict[str, Any] = {}

    def loaded(self) -> dict[str, Any]:
        """What the worker said when the guardrail was loaded.

        Raises:
            CapabilityError: it can not be loaded, or the process misbehaves.
        """
        with self._lock:
            if self._process is None:
                self._start()
                self._loaded = self.ask(**self._load)
                if "error" in self._loaded:
                    self._fail(f"can not load it: {self._loaded['error']}")
                try:
                    self._check(self._loaded)
                except CapabilityError as error:
                    self._fail(error.message)
            return self._loaded

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer, which may be ``{"error": ...}``.

        Raises:
            CapabilityError: the process died, gave no answer in time, or wrote something else.
        """
        with self._lock:
            if self._process is None:
                self.loaded()
            assert self._process is not None and self._process.stdin and self._process.stdout
            name, late = secrets.token_hex(8), threading.Event()
            timer = threading.Timer(self._timeout, self._stop_late, (late, self._end))
            timer.daemon = True
            timer.start()
            line = b""
            try:
                with suppress(OSError):  # it is dead, or was killed: no line is read either
                    self._process.stdin.write(json.dumps({"id": name, **question}).encode() + b"\n")
                    self._process.stdin.flush()
                    line = self._process.stdout.readline(_LINE)
            finally:
                timer.cancel()
            if late.is_set():
                self._fail(f"gave no answer within {self._timeout:g} s")
            if not line:
                self._fail(f"died{self._last_words()}")
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict) or answer.pop("id", None) != name:
                self._fail(f"wrote something that is no answer: {line[:60]!r}")
            return answer

    def close(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            self._end()
            self._process = None

    def _start(self) -> None:
        offline = {"HF_HUB_OFFLINE": "1"} if self._load["folder"] else {}
        try:
            process = subprocess.Popen(
                [self._python, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **offline},
                start_new_session=True,
            )
        except OSError as error:
            self._fail(f"does not start: {error}")
        heard = self._heard = deque(maxlen=4)
        threading.Thread(target=_listen, args=(process, heard), daemon=True).start()
        self._process, self._end = process, weakref.finalize(self, _kill, process)

    @staticmethod
    def _stop_late(late: threading.Event, end: Callable[[], object]) -> None:
        late.set()
        end()

    def _last_words(self) -> str:
        told = b" ".join(self._heard).decode(errors="replace").strip()
        return f"; its last words: {told[-300:]}" if told else ""

    def _fail(self, why: str) -> NoReturn:
        """End the process, which has shown that it is not to be relied on."""
        self.close()
        raise CapabilityError(
            f"any-guardrail, in the process of '{self._python}', {why}",
            hint="see docs/defend.any_guardrail.md for what it needs",
        )


def _listen(process: subprocess.Popen[bytes], heard: deque[bytes]) -> None:
    """Keep the last that a process says on standard error, so that it never waits for a reader."""
    assert process.stderr is not None
    with suppress(OSError, ValueError), process.stderr as told:
        while line := told.readline(2000):
            heard.append(line.strip())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    with suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
