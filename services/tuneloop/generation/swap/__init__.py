"""Hot swap: which version serves, and how the next one takes over."""
