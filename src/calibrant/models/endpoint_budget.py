"""What a call of an endpoint may cost, and why it gave no answer."""

from __future__ import annotations

import math
import threading

from calibrant.core.errors import InputError


class EndpointError(InputError):
    """Why a call gave no answer, and what that means for trying again and for the bill."""

    def __init__(self, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        """HTTP status; None when there was none, or it was 200."""
        self.retry = status is not None and (status in (408, 429) or status >= 500)
        """Another try may help."""
        self.billed = status is None
        """The server may have generated tokens all the same."""
        self.blocked = False
        """A content filter refused."""
        self.wait: float | None = None
        """Seconds that the server asks to wait."""


class Meter:
    """Requests and tokens so far, across threads; refuses before a limit would be passed."""

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        """None is no limit."""
        self._max_requests = math.inf if max_requests is None else max_requests
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._changed = threading.Condition()
        self._requests = 0
        self._tokens = 0
        self._open = 0

    def reserve(self, tokens: int, last: str) -> None:
        """Book one request and at most ``tokens``; waits while an open call may still give some back."""
        with self._changed:
            while self._open and self._tokens + tokens > self._max_tokens:
                self._changed.wait()
            short = ""
            if self._requests >= self._max_requests:
                short = f"{self._requests} requests made, max_requests is {self._max_requests}"
            elif self._tokens + tokens > self._max_tokens:
                short = (
                    f"{self._tokens} tokens used, {tokens} more could pass max_tokens = {self._max_tokens}"
                )
            if short:
                before = f" (before that: {last})" if last else ""
                raise EndpointError(f"budget: {short}{before}", hint="raise the limit in ApiConfig")
            self._requests += 1
            self._tokens += tokens
            self._open += 1

    def settle(self, reserved: int, used: int) -> None:
        """Replace a booking by what was really used."""
        with self._changed:
            self._tokens += used - reserved
            self._open -= 1
            self._changed.notify_all()
