"""HTTP with a real server: redirects are refused, and no metadata service is ever connected to."""

from __future__ import annotations

import asyncio
import errno
import http.server
import socket
import threading
from collections.abc import Iterator

import aiohttp
import pytest

from nst_tasks.errors import StorageError
from nst_tasks.storage import files
from nst_tasks.storage.http import open_session, open_socket


class RedirectHandler(http.server.BaseHTTPRequestHandler):
    """Handler that redirects /to/PLACE to PLACE, answers anything else with pong, and records the paths."""

    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        place = self.path.removeprefix("/to/")
        self.send_response(200 if place == self.path else 302)
        self.send_header(*("Content-Length", "4") if place == self.path else ("Location", place))
        self.end_headers()
        if place == self.path and self.command == "GET":
            self.wfile.write(b"pong")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[tuple[str, list[str]]]:
    """Start a server; return its address and the list of requested paths."""
    handler = type("Handler", (RedirectHandler,), {"paths": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.paths
        server.shutdown()
        thread.join()


def test_pictures_on_the_web_are_read_and_their_size_is_known(site: tuple[str, list[str]]) -> None:
    address, _ = site
    assert files.read(f"{address}/a.png?sig=1") == b"pong"
    entry = files.stat(f"{address}/a.png")
    assert entry is not None and entry.size == 4


@pytest.mark.parametrize("target", ["http://169.254.99.99/latest", "{}/b.png", "/b.png"])
def test_redirects_are_not_followed(site: tuple[str, list[str]], target: str) -> None:
    address, paths = site
    with pytest.raises(StorageError) as caught:
        files.read(f"{address}/to/{target.format(address)}?hunter2")
    assert "the server sends on to another address, which is not followed; name that one" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not any(path.startswith("/b.png") for path in paths)


@pytest.mark.parametrize("host", ["169.254.99.99", "[fe80::1]"])
def test_a_metadata_address_is_never_connected_to(host: str) -> None:
    family, kind, protocol, name, place = socket.getaddrinfo(host.strip("[]"), 80, type=socket.SOCK_STREAM)[0]
    with pytest.raises(PermissionError) as caught:
        open_socket((family, kind, protocol, name, place))
    assert caught.value.errno == errno.EACCES


def test_address_is_checked_at_connect_time() -> None:
    with pytest.raises(StorageError, match="^http://169.254.99.99/latest: access is denied; ") as caught:
        files.read("http://169.254.99.99/latest?token=hunter2")
    assert type(caught.value) is StorageError


def test_timeout_limits_silence_and_not_the_total_time() -> None:
    async def get_timeout() -> aiohttp.ClientTimeout:
        async with await open_session() as session:
            return session.timeout

    timeout = asyncio.run(get_timeout())
    assert (timeout.total, timeout.sock_connect, timeout.sock_read) == (None, 5, 10)
