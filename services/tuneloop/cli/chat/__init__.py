"""`tuneloop chat`: a conversation in the terminal."""
