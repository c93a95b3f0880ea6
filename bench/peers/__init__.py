"""Loops that people copy, rewritten on nst's features, to compare with."""
