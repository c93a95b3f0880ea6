"""Benchmarks of nst, started with `python -m bench NAME`."""
