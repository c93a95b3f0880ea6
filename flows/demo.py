"""The demo's pictures and manifest, laid out in a folder of the caller's."""

from __future__ import annotations

from importlib import resources

from nst_tasks import storage
from nst_tasks.samples import samples


def prepare(folder: str) -> str:
    """Write the sample pictures and the bundled manifest below `folder`; the manifest's path.

    Raises:
        SettingsError: scikit-image is not installed. StorageError: the folder cannot be written.
    """
    for name, data in samples():
        storage.write(storage.join(folder, "samples", name), data)
    manifest = storage.join(folder, "samples", "demo.csv")
    storage.write(manifest, resources.files("manifests").joinpath("demo.csv").read_bytes())
    return manifest
