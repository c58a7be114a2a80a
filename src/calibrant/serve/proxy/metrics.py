"""Numbers of the proxy in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from calibrant.core import LayerVerdict

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OUTCOMES = (
    "answered", "blocked_input", "blocked_output", "client_left", "error", "refused", "unanswered",
)  # fmt: skip


class Metrics:
    """Counts of one proxy."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, layers: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "calibrant_requests", "Requests by outcome.", ["outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "calibrant_request_seconds", "Seconds a request took.", buckets=_SECONDS, registry=self._registry
        )
        self._released = Counter(
            "calibrant_released_characters", "Characters released to clients.", registry=self._registry
        )
        self._verdicts = Counter(
            "calibrant_layer_verdicts", "Last verdicts of layers.", ["layer", "answer", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._layer_seconds = Histogram(
            "calibrant_layer_seconds", "Seconds of a layer's last call.", ["layer"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        for layer in layers:
            self._layer_seconds.labels(layer)

    def told(self, outcome: str, ms: float, released: int, verdicts: Sequence[LayerVerdict]) -> None:
        """Count one request."""
        self._requests.labels(outcome).inc()
        self._seconds.observe(ms / 1000)
        self._released.inc(released)
        for one in verdicts:
            self._verdicts.labels(one.layer, one.verdict.answer, one.status).inc()
            self._layer_seconds.labels(one.layer).observe((one.ms or 0.0) / 1000)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
