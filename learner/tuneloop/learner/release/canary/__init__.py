"""A new version answers a share of the users first, and their judgement decides on it."""
