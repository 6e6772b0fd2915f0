"""What a run learns from at each step."""
