"""The engine of all attacks: protocol, scheduler, budget, cache, counts, metrics."""
