"""How each algorithm makes losses of a batch of samples, one algorithm to a module."""
