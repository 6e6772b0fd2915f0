"""How long rollouts and versions are kept."""
