"""Servers on loopback, pictures and the command line, for tests that need the real thing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nst_tasks import images

PATTERNS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cat": lambda y, x: np.stack([x, y, 0.5 + 0.0 * x], -1),
    "dog": lambda y, x: np.stack([0.5 + 0.5 * np.sin(9 * x), y, 1 - x], -1),
    "oil": lambda y, x: np.stack([0.5 + 0.5 * np.sin(40 * (x + y)), 0.5 + 0.5 * np.sin(31 * y), 0.3 + 0.0 * x], -1),
    "ink": lambda y, x: np.repeat((np.sin(50 * x * y) > 0)[..., None].astype(float), 3, -1),
}


def picture(name: str, height: int = 72, width: int = 96) -> bytes:
    """A PNG with a pattern of its own by name: two contents (cat, dog), two styles (oil, ink)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return images.encode(PATTERNS[name](y, x).astype(np.float32), None, "png", {})


@dataclass(frozen=True)
class S3:
    """A real S3 server's endpoint, and environments under which clients find it: as its owner, and as one who may only read."""

    endpoint: str
    environment: dict[str, str]
    reader: dict[str, str]


def answers(url: str) -> bool:
    """Whether a server answers there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def server(command: list[str], environment: Mapping[str, str], url: str, log: Path) -> Iterator[None]:
    """A server process that answers at `url`, ended by its own pid."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=dict(environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 120
            while not answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command[0]} did not come up:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.send_signal(signal.SIGINT)  # as Ctrl-C would
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def nst(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command `nst` as a process of its own, with further environment variables."""
    command = [str(Path(sys.executable).parent / "nst"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False)
