"""Release policies, gates, intents. Needs no torch and no model."""
