"""Floor 1: the append-only store of records and artefacts, and its verifier."""
