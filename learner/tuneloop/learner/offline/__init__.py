"""Training from files, datasets and the ledger: the same plans, losses and trainers as online."""
