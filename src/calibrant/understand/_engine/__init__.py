"""The intervention engine: many patches of one batch, with as little of the model run again as each needs."""
