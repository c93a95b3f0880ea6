"""HTTP as far as it is allowed: no connection to addresses that hand out a machine's credentials, no redirects.

Checked where a socket is about to be connected, so that it holds whatever a name is resolved to, and whenever.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import aiohttp

from nst_tasks.access import is_metadata
from nst_tasks.errors import StorageError, redact


async def client(**options: Any) -> aiohttp.ClientSession:
    """A session for fsspec's HTTP file system."""
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)
    connector = aiohttp.TCPConnector(socket_factory=open_socket)
    # as long as bytes come a large picture may take its time; a silent server is tried again later
    options.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=10))
    return aiohttp.ClientSession(connector=connector, trace_configs=[tracing], **options)


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for one of `socket.getaddrinfo`'s answers.

    Raises:
        PermissionError: a connection there is not allowed.
    """
    family, kind, protocol, _, place = address
    if is_metadata(str(place[0])):
        raise PermissionError(errno.EACCES, "an address at which machines are given their credentials")
    return socket.socket(family, kind, protocol)


async def _refuse_redirect(session: object, context: object, sent: aiohttp.TraceRequestRedirectParams) -> None:
    # it may lead out of the allowed roots
    raise StorageError(f"{redact(str(sent.url))}: the server sends on to another address, which is not followed; name that one")
