"""A run: its folder, settings, checkpoints, and what a person sees of it."""
