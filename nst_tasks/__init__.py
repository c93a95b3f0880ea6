"""Style transfer and everything the flows need for it: manifests, images, recipes and storage."""

__version__ = "0.5.0"
