"""What a trained model leaves: the artefact 'model', and the live model in the result."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from calibrant.core import OpenLM, Result, Run
from calibrant.models.lora import merged
from calibrant.models.open_model import OpenModel


class Tuned(Result):
    """A result with a model."""

    model: Any = Field(exclude=True)
    """The tuned OpenLM, live, under an identity of its own."""


def save_tuned(name: str, model: OpenLM, policy: OpenLM, run: Run) -> OpenModel:
    """``policy``, trained by ``name`` from ``model``, with its adapters merged; written as 'model'."""
    # Named anew: under the old identity it would pass for the model that came in.
    tuned = OpenModel.from_module(
        merged(policy).module, policy.tokenizer, f"{model.identity.name} after {name}"
    )
    tuned.save(run.artifact("model"))
    return tuned
