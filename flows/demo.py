"""Sample images and example manifests for the demo, written to a folder."""

from __future__ import annotations

from importlib import resources

from manifests.samples import samples
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri


def write_samples(folder: str) -> str:
    """Write the sample images and the example manifests below `folder`, and return the path of the demo's manifest.

    Raises:
        SettingsError: Package scikit-image is not installed.
        StorageError: The folder cannot be written.
    """
    for name, data in samples().items():
        files.write(join_uri(folder, "samples", name), data)
    for example in resources.files("manifests").iterdir():
        if example.name.endswith(".csv"):
            files.write(join_uri(folder, "samples", example.name), example.read_bytes())
    return join_uri(folder, "samples", "demo.csv")
