"""Techniques that measure: refusal, over-refusal, capability, reward, preference; judges and their
calibration."""
