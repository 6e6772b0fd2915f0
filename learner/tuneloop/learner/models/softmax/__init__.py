"""The softmax over what an LM head gives: in torch, and on GPUs as a kernel of our own."""
