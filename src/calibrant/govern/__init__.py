"""Floor 3: release policies, gates, intents. Needs no torch and no model."""
