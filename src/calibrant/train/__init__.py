"""Floor 3: techniques that train: SFT, DPO."""
