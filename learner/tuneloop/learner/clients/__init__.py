"""The generation and reward services, as the learner uses them."""
