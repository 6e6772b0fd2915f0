"""The gate: whether a candidate may serve."""
