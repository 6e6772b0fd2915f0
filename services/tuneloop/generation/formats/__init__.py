"""The forms in which models write thoughts and calls of functions."""
