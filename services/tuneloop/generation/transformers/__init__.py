"""The engine on plain transformers."""
