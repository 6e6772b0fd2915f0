"""What people and monitors read from the ledger."""
