"""The append-only store of records and artefacts, and its verifier."""

from calibrant.ledger.store import Ledger
from calibrant.ledger.verify import Report, verify

__all__ = ["Ledger", "Report", "verify"]
