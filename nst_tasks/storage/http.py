"""HTTP client that refuses redirects and connections to cloud metadata addresses.

The address is checked when a socket is opened, so that the check cannot be evaded by what a host name resolves to, or when.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import aiohttp

from nst_tasks.errors import StorageError, redact
from nst_tasks.storage.access import is_metadata_address


async def open_session(**options: Any) -> aiohttp.ClientSession:
    """Create a session for fsspec's HTTP file system."""
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)
    connector = aiohttp.TCPConnector(socket_factory=open_socket)
    # no total limit, because a large image may take long; a silent server times out and is retried
    options.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=10))
    return aiohttp.ClientSession(connector=connector, trace_configs=[tracing], **options)


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Open a socket for one of the results of `socket.getaddrinfo`.

    Raises:
        PermissionError: The address is link-local or a cloud metadata address.
    """
    family, kind, protocol, _, socket_address = address
    if is_metadata_address(str(socket_address[0])):
        raise PermissionError(errno.EACCES, "an address at which machines are given their credentials")
    return socket.socket(family, kind, protocol)


async def _refuse_redirect(session: object, context: object, params: aiohttp.TraceRequestRedirectParams) -> None:
    # a redirect may leave the allowed roots
    raise StorageError(
        f"{redact(str(params.url))}: the server sends on to another address, which is not followed; name that one"
    )
