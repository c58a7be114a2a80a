"""Interpretability techniques: the logit lens."""
