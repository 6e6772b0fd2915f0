"""A new version answers a share of the users first, and their feedback decides about it."""
