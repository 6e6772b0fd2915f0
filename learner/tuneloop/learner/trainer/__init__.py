"""One optimizer step, and what a trainer keeps between steps."""
