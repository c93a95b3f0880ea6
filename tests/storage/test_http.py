"""HTTP against a real server: what is followed, what is refused, and that no metadata service is ever connected to."""

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


class Site(http.server.BaseHTTPRequestHandler):
    """Answers /to/PLACE with a redirect to PLACE, all else with pong; remembers what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
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
    """Start a server; return its address and the paths that it was asked for."""
    handler = type("Handler", (Site,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
        server.shutdown()
        thread.join()


def test_pictures_on_the_web_are_read_and_their_size_is_known(site: tuple[str, list[str]]) -> None:
    address, _ = site
    assert files.read(f"{address}/a.png?sig=1") == b"pong"
    entry = files.stat(f"{address}/a.png")
    assert entry is not None and entry.size == 4


@pytest.mark.parametrize("target", ["http://169.254.99.99/latest", "{}/b.png", "/b.png"])
def test_redirects_are_not_followed(site: tuple[str, list[str]], target: str) -> None:
    address, asked = site
    with pytest.raises(StorageError) as caught:
        files.read(f"{address}/to/{target.format(address)}?hunter2")
    assert "the server sends on to another address, which is not followed; name that one" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not any(path.startswith("/b.png") for path in asked)


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


def test_a_silent_server_is_given_up_and_a_slow_one_is_not() -> None:
    async def limits() -> aiohttp.ClientTimeout:
        async with await open_session() as session:
            return session.timeout

    found = asyncio.run(limits())
    assert (found.total, found.sock_connect, found.sock_read) == (None, 5, 10)
