"""What a step takes: which samples, and how much each counts."""
