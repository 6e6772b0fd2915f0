"""The ability suite: short items that show what a version still knows, scored before a release."""
