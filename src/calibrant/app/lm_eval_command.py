"""The command ``python -m calibrant.evals.lm_eval``: any reference of ours as a model of lm-eval."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from calibrant.app.references.openers import Openers
from calibrant.core import CalibrantError, OpenLM
from calibrant.evals.lm_eval import main
from calibrant.ledger import Ledger


def open_model(reference: str) -> OpenLM:
    """The local model that a reference names; records are those of ``$CALIBRANT_LEDGER``.

    Raises:
        InputError: there is no such model. CapabilityError: it has no weights here.
    """
    ledger = Ledger(Path(os.environ.get("CALIBRANT_LEDGER", ".calibrant")))
    model: OpenLM = Openers(ledger).open(reference, OpenLM).load()
    return model


def run() -> None:
    """Hand the command line over; our own errors end it with status 3 and their remedy."""
    try:
        main(sys.argv[1:], open_model)
    except CalibrantError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3)
