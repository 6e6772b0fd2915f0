"""The networks: the policy, the reward model, and how batches pass through them."""
