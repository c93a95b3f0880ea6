"""A proxy on loopback that passes HTTP on to a server behind it and does some of the requests harm."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit


class Fault(StrEnum):
    """What may happen to a request: the server's own refusals by their S3 code, or something on the way."""

    INTERNAL_ERROR = "InternalError"
    SLOW_DOWN = "SlowDown"
    EXPIRED_TOKEN = "ExpiredToken"
    UNKNOWN_KEY = "InvalidAccessKeyId"
    WRONG_SIGNATURE = "SignatureDoesNotMatch"
    WRONG_CLOCK = "RequestTimeTooSkewed"
    ACCESS_DENIED = "AccessDenied"
    FULL = "QuotaExceeded"
    CONDITION = "PreconditionFailed"
    INVALID = "InvalidRequest"
    RESET = "the connection is reset before the server sees the request"
    LOST = "the server does what it is asked, and the connection is reset before its answer arrives"
    STALL = "nothing comes for as long as the proxy lives"
    TRUNCATED = "the connection ends in the middle of the answer's body, or before it where it has none"


PASSING = (Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.RESET, Fault.LOST, Fault.STALL, Fault.TRUNCATED)
STATUS = {
    Fault.INTERNAL_ERROR: 500,
    Fault.SLOW_DOWN: 503,
    Fault.EXPIRED_TOKEN: 400,
    Fault.UNKNOWN_KEY: 403,
    Fault.WRONG_SIGNATURE: 403,
    Fault.WRONG_CLOCK: 403,
    Fault.ACCESS_DENIED: 403,
    Fault.FULL: 403,
    Fault.CONDITION: 412,
    Fault.INVALID: 400,
}


def at_random(share: float, seed: int, faults: tuple[Fault, ...] = PASSING) -> Callable[[str, str], Fault | None]:
    """One of the faults, each as often as the others, for this share of all requests."""
    generator, lock = random.Random(seed), threading.Lock()

    def decide(method: str, path: str) -> Fault | None:
        with lock:
            return generator.choice(faults) if generator.random() < share else None

    return decide


@dataclass
class Proxy:
    """A running proxy: where it listens, which requests it harms, and what it has done so far."""

    endpoint: str
    decide: Callable[[str, str], Fault | None]
    requests: int = 0
    harmed: Counter[Fault] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def proxy(upstream: str, decide: Callable[[str, str], Fault | None]) -> Iterator[Proxy]:
    """Start a proxy before the server at `upstream`; `decide` says by method and path what happens to each request."""
    address, closing = urlsplit(upstream).netloc, threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = running.decide(self.command, self.path)
            with running.lock:
                running.requests += 1
                running.harmed.update([fault] if fault else [])
            if fault in STATUS:
                xml = f'<?xml version="1.0"?><Error><Code>{fault}</Code><Message>injected</Message></Error>'.encode()
                self.answer(STATUS[fault], {"Content-Type": "application/xml"}, len(xml), xml)
            elif fault == Fault.RESET:
                self.reset()
            elif fault == Fault.STALL:
                closing.wait()
                self.reset()
            else:
                self.forward(body, fault)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request

        def forward(self, body: bytes, fault: Fault | None) -> None:
            connection = http.client.HTTPConnection(address, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # the signature covers Host, so it stays as it is
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                self.reset()  # the server behind is away: so is the proxy
                return
            finally:
                connection.close()
            if fault == Fault.LOST or (fault == Fault.TRUNCATED and not data):
                self.reset()
                return
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in UNKEPT}
            length = int(answer.headers.get("Content-Length") or 0) if self.command == "HEAD" else len(data)
            self.answer(answer.status, kept, length, data[: len(data) // 2] if fault == Fault.TRUNCATED else data)
            if fault == Fault.TRUNCATED:
                self.reset()

        def answer(self, status: int, headers: dict[str, str], length: int, data: bytes) -> None:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def reset(self) -> None:
            with contextlib.suppress(OSError):  # an end without lingering is a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away

    with Server(("127.0.0.1", 0), Handler) as server:
        running = Proxy(f"http://127.0.0.1:{server.server_address[1]}", decide)
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            yield running
        finally:
            closing.set()
            server.shutdown()
            thread.join()


UNKEPT = ("connection", "content-length", "transfer-encoding", "date", "server")
