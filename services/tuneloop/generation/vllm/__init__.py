"""The engine on vLLM. No other package imports vLLM."""
