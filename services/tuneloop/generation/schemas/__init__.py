"""What requests bring to be compiled: bounds that are counted, and a trial in another process."""
