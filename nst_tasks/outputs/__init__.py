"""Outputs of a run: layout, outcome markers, loss history, claims, ledger, report."""
