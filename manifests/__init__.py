"""Example manifests, as package data: `importlib.resources.files("manifests")`."""
