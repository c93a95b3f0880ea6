"""Orchestration and front door: the Prefect flows and the `nst` command."""
