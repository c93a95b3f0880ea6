"""The demo's pictures and the example manifests, laid out in a folder of the caller's."""

from __future__ import annotations

from importlib import resources

from nst_tasks import storage
from nst_tasks.samples import samples


def prepare(folder: str) -> str:
    """Write the sample pictures and the example manifests below `folder`; the path of the demo's.

    Raises:
        SettingsError: scikit-image is not installed. StorageError: the folder cannot be written.
    """
    for name, data in samples().items():
        storage.write(storage.join(folder, "samples", name), data)
    for example in resources.files("manifests").iterdir():
        if example.name.endswith(".csv"):
            storage.write(storage.join(folder, "samples", example.name), example.read_bytes())
    return storage.join(folder, "samples", "demo.csv")
