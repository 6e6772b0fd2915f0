"""Scorers: Python functions, a judge model, a reward model."""
