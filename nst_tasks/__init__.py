"""What the flows are made of: manifests, pictures, recipes, storage and the style transfer itself."""

__version__ = "0.5.0"
