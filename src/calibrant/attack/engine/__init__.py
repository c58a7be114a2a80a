"""What every attack runs on: protocol, scheduler, budget, cache, counts, metrics."""
