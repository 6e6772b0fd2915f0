"""Redaction: personal data is replaced before a text is kept anywhere."""
