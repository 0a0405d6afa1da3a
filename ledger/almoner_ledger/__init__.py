"""The ledger: the one part that writes the books."""
