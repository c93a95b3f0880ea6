"""Sample images and example manifests for the demo, written to a folder."""

from __future__ import annotations

from importlib import resources

from nst_tasks import storage
from nst_tasks.samples import samples


def prepare(folder: str) -> str:
    """Write the sample images and the example manifests below `folder`, and return the path of the demo's manifest.

    Raises:
        SettingsError: Package scikit-image is not installed.
        StorageError: The folder cannot be written.
    """
    for name, data in samples().items():
        storage.write(storage.join(folder, "samples", name), data)
    for example in resources.files("manifests").iterdir():
        if example.name.endswith(".csv"):
            storage.write(storage.join(folder, "samples", example.name), example.read_bytes())
    return storage.join(folder, "samples", "demo.csv")
