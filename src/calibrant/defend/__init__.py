"""Guards, and models behind guards."""
