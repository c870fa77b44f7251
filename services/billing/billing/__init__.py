"""Metering, wallet and ledger."""
