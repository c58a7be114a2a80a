"""Shared set-up: real data where it lies beside the checkout, and the same examples on every machine."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No limit in seconds, which would measure the machine. The same examples everywhere, so a failure repeats.
settings.register_profile(
    "calibrant",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("calibrant")

# What libraries and tests hold lives as long as the process, and sweeping it over and over is a tenth of the
# suite's time. It is set aside once all is imported; what a test leaves behind is swept as ever.
gc.disable()


def pytest_collection_finish() -> None:
    """Set aside what is there, and sweep from here on."""
    gc.collect()
    gc.freeze()
    gc.enable()


_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if "CALIBRANT_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["CALIBRANT_DATA"] = str(_BESIDE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs real data where there is none, with the reason printed."""
    if os.environ.get("CALIBRANT_DATA"):
        return
    skip = pytest.mark.skip(reason="needs real data: set CALIBRANT_DATA to a folder that holds it")
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(skip)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data and weights."""
    return Path(os.environ["CALIBRANT_DATA"])
