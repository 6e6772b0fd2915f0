"""Steps, versions and decisions: which sample reached which weights."""
