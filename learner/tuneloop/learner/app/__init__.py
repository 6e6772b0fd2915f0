"""The learner's parts, put together from its settings."""
