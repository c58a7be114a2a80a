"""What a model is called that is read otherwise (``variants.py``): known before anything is loaded."""

from __future__ import annotations

from importlib.metadata import version

from calibrant.core.lm import Identity


def plain_identity(identity: Identity) -> Identity:
    """Of a model without its chat template."""
    if identity.parts.get("template") == "none":
        return identity
    return Identity(name=f"plain:{identity.name}", parts={"model": identity.digest, "template": "none"})


def untrained_identity(identity: Identity, seed: int) -> Identity:
    """Of a model with weights drawn anew, which torch and transformers do."""
    drawn_by = {name: version(name) for name in ("torch", "transformers")}
    parts = {"model": identity.digest, "seed": str(seed), "version": "1", **drawn_by}
    return Identity(name=f"untrained:{seed}/{identity.name}", parts=parts)
