"""What Inspect finds of Calibrant by entry point: our models as a provider, our measurements as tasks.

Inspect only warns of an entry point that fails to import and then finds nothing, so this file imports as
little as it can: torch comes with the first model.
"""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from calibrant.app.inspect_tasks import capability, over_refusal, refusal, sycophancy

__all__ = ["calibrant", "capability", "over_refusal", "refusal", "sycophancy"]


@modelapi(name="calibrant")
def calibrant() -> type[ModelAPI]:
    """The provider of ``--model calibrant/NAME``."""
    from calibrant.app.inspect_provider import CalibrantAPI

    return CalibrantAPI
