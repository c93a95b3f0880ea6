"""Join, split and make absolute URIs and local paths."""

from __future__ import annotations

import os


def join_uri(base: str, *names: str) -> str:
    """Return a URI with names appended to its path."""
    protocol, mark, path = base.rpartition("://")
    return protocol + mark + "/".join([path.rstrip("/"), *names])


def get_folder(uri: str) -> str:
    """Return the folder of an object's URI; a manifest's relative URIs are resolved against it."""
    protocol, mark, path = uri.rpartition("://")
    head, slash, _ = path.rpartition("/")
    return protocol + mark + (head or slash or ("" if mark else "."))


def make_absolute(uri: str) -> str:
    """Return a URI unchanged, or a local path made absolute, so that it does not depend on the working folder."""
    return uri if "://" in uri else os.path.abspath(uri)
