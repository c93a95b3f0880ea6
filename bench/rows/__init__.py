"""Measurements of the rows in the table of docs/speed.md."""
