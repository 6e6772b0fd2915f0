"""Build the learner's parts from its settings."""
