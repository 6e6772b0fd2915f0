"""Events in: from the streams, or from files, into the ledger."""
