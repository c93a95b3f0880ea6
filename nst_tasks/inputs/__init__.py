"""Inputs of a run: settings, options, manifest, recipes, weights."""
