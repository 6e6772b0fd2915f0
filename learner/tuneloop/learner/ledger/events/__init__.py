"""Events as rows: what is recorded, and which samples it makes."""
