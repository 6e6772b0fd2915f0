"""Statistics: pure functions, standard library only."""
