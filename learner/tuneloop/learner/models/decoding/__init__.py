"""Completions of a model in training: sampled, or the likeliest."""
