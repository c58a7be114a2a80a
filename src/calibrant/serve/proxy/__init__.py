"""Guard proxy: an OpenAI-compatible endpoint that puts layers of guards before and behind a model."""
