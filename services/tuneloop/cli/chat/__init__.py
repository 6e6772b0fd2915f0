"""`tuneloop chat`: the conversation and the screens it takes place on."""
