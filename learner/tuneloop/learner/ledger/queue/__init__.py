"""Samples that wait to be learned from, as trainers take them."""
