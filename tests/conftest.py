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


_NEEDS = {
    "real": ("CALIBRANT_DATA", "needs real data: set CALIBRANT_DATA to a folder that holds it"),
    "real_model": (
        "CALIBRANT_MODELS",
        "needs two real models: set CALIBRANT_MODELS to a folder that holds gemma-3-270m and "
        "qwen2.5-coder-0.5b-instruct, as save_pretrained writes them",
    ),
}
"""Marker -> the variable that names a folder, and what is printed where it is not set."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs real data or models where there are none, with the reason printed."""
    for marker, (variable, reason) in _NEEDS.items():
        if os.environ.get(variable):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data and weights."""
    return Path(os.environ["CALIBRANT_DATA"])


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder of real models."""
    return Path(os.environ["CALIBRANT_MODELS"])
