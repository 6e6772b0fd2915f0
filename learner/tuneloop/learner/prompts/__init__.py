"""The learner's own prompts: to learn from the answers, and to evaluate versions."""
