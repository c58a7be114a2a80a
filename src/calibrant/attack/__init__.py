"""Attack techniques: jailbreaks, campaigns of them, and training on their successes."""
