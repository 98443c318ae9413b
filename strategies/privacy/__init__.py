"""Differential privacy: what a mechanism costs (events), what costs add up to (accounting), and where they are kept (ledger)."""
