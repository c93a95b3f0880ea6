"""Restrict the URIs that may be read and written: by store, by root folder, and by where the manifest came from.

There are many ways around a folder restriction (`..`, links, `file://host`, chained file systems), so this is an allow list.
Pure: the one function that looks at the disk, which resolves links, is passed in.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import posixpath
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from nst_tasks.errors import StorageError, redact, strip_secrets

_STORE_BY_PROTOCOL = {
    **dict.fromkeys(("", "file", "local"), "file"),
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "az"),
    "adl": "adl",
    "memory": "memory",
    "http": "http",
    "https": "https",
}
"""Protocol -> store. fsspec knows more protocols, but some of them open other files that a file's content names."""


_WEB_PROTOCOLS = ("http", "https")


_METADATA_NETWORKS = tuple(
    map(ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32"))
)
"""Link-local addresses and the metadata addresses at which clouds give a machine its credentials."""


@dataclass(frozen=True)
class Access:
    """Permission to read and write: everything on the known stores, or only what lies below `roots` if there are any.

    Attributes:
        roots: Allowed folders and URIs; their protocols are allowed too.
        web: Whether http and https are allowed.
        local: Whether files of this machine are allowed.
    """

    roots: tuple[str, ...] = ()
    web: bool = False
    local: bool = True


DEFAULT_ACCESS = Access()
"""Default access: every known store except the web."""


def restrict_for_manifest(access: Access, manifest_uri: str) -> Access:
    """Return the access of a manifest at this URI: one from a remote store may not name local files."""
    return replace(access, local=access.local and is_local(manifest_uri))


def is_local(uri: str) -> bool:
    """Return whether a URI or path names a file of this machine."""
    return _STORE_BY_PROTOCOL.get(_get_protocol(uri)) == "file"


def get_local_path(uri: str) -> str:
    """Return the path of a local URI."""
    return uri.partition("://")[2] if "://" in uri else uri


def explain_refusal(uri: str, access: Access, resolve_path: Callable[[str], str] = posixpath.normpath) -> str | None:
    """Return why an absolute path or URI is not allowed, as a predicate that follows it in a sentence, or None if it is.

    Args:
        uri: The path or URI to check.
        access: The access to check it against.
        resolve_path: A function that resolves `..` in a local path and, if it looks at the disk, links.
    """
    protocol = _get_protocol(uri)
    root_protocols = {_get_protocol(root) for root in access.roots}
    if "::" in uri:
        return "has a ::, which chains file systems; name the file itself"
    if protocol not in _STORE_BY_PROTOCOL and protocol not in root_protocols:
        known = ", ".join(name for name in dict.fromkeys(_STORE_BY_PROTOCOL.values()) if name not in _WEB_PROTOCOLS)
        return f"is on no store that is allowed ({known}); copy it to one, or name its place in NST_ALLOWED_ROOTS"
    if protocol in _WEB_PROTOCOLS and not access.web:
        return "is on the web, which is not allowed; copy it to a store, or set NST_ALLOW_HTTP=1"
    if is_local(uri):
        if not access.local:
            return "is a path on this machine, which a manifest on a store may not name; copy the file to the store"
        if not get_local_path(uri).startswith("/"):
            return "names a host or a home folder; give a whole path, such as /data/cat.jpg or file:///data/cat.jpg"
    elif _has_parent_segment(uri):
        return "has a .. in it, which a store does not resolve; name the place itself"
    if protocol in _WEB_PROTOCOLS:
        try:
            host = urlsplit(uri).hostname
        except ValueError:
            host = None
        if not host or "\\" in uri:  # clients differ in which host a backslash leaves
            return "is not an address; check the host"
        if is_metadata_address(host):
            return "is an address at which machines are given their credentials; name another host"
    canonical = _canonicalize(uri, resolve_path)
    if access.roots and not any(_is_path_prefix(canonical, _canonicalize(root, resolve_path)) for root in access.roots):
        roots = " ".join(map(redact, access.roots))
        return f"is not below NST_ALLOWED_ROOTS ({roots}); move it there, or name another place"
    return None


def is_below(uri: str, folder: str, resolve_path: Callable[[str], str] = posixpath.normpath) -> bool:
    """Return whether an allowed URI equals a folder or lies in it; `resolve_path` is as for `explain_refusal`."""
    return _is_path_prefix(_canonicalize(uri, resolve_path), _canonicalize(folder, resolve_path))


def is_valid_root(root: str) -> bool:
    """Return whether a text is a valid root: an absolute path or a URI without credentials, query, chain or remote `..`."""
    if "::" in root or strip_secrets(root) != root:
        return False
    return get_local_path(root).startswith("/") if is_local(root) else not _has_parent_segment(root)


def is_metadata_address(host: str) -> bool:
    """Return whether a host is a link-local or cloud metadata IP address; False for host names."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    unmapped = getattr(address, "ipv4_mapped", None) or address  # ::ffff:169.254.169.254 reaches the same host
    return any(unmapped in network for network in _METADATA_NETWORKS)


def _get_protocol(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else ""


def _has_parent_segment(uri: str) -> bool:
    """Return whether a remote URI has a `..` segment, also as %2e%2e or between backslashes, which some servers accept."""
    path = uri.partition("?")[0] if _get_protocol(uri) in _WEB_PROTOCOLS else uri
    return ".." in re.split(r"[/\\?#]", unquote(path))


def _canonicalize(uri: str, resolve_path: Callable[[str], str]) -> str:
    """Return a URI in normalized form, so that two can be compared."""
    if is_local(uri):
        return "file://" + resolve_path(re.sub("^/+", "/", get_local_path(uri)))
    protocol = _get_protocol(uri)
    if protocol not in _WEB_PROTOCOLS:
        return f"{_STORE_BY_PROTOCOL.get(protocol, protocol)}://{uri.partition('://')[2]}"
    parts = urlsplit(uri)
    return f"{protocol}://{parts.netloc.rpartition('@')[2].lower()}{unquote(parts.path)}"


def _is_path_prefix(place: str, root: str) -> bool:
    return (place.rstrip("/") + "/").startswith(root.rstrip("/") + "/")


def check_access(uri: str, allowed: Access) -> None:
    """Refuse a URI outside the allowed places, symbolic links resolved, and a local device or pipe.

    Raises:
        StorageError: The URI is forbidden, or names a device or a pipe.
    """
    if reason := explain_refusal(uri, allowed, os.path.realpath):
        raise StorageError(f"{redact(uri)}: {reason}")
    if is_local(uri):
        with contextlib.suppress(OSError, ValueError):  # a missing file is reported when it is opened
            mode = os.stat(get_local_path(uri)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StorageError(f"{redact(uri)}: is a device or a pipe, which may have no end; name a file")


def check_output(out: str, allowed: Access) -> None:
    """Refuse a forbidden output, and one that contains a symbolic link to a forbidden place.

    Raises:
        StorageError: The output or the target of a link is forbidden.
    """
    check_access(out, allowed)
    if allowed.roots and is_local(out):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(get_local_path(out)) as entries:
            for link in (entry.path for entry in entries if entry.is_symlink()):
                check_access(link, allowed)
