"""API keys: the file that holds them, and the look-up that requests use."""
