"""Techniques that train: SFT, DPO, KTO, reward models, PPO, RLOO, GRPO, online DPO."""
