"""Floor 3: techniques that measure: refusal, over-refusal, capability; judges."""
