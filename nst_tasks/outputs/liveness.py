"""Detect whether a process of this machine still runs, and whether it crashed in native code."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import os
import platform
import secrets
import tempfile
from pathlib import Path

_CRASH_LOG_PREFIX = "nst-crash-"


@functools.cache
def enable_crash_log() -> str:
    """Make a native crash of this process leave its stack in a temporary file, and return the file's name.

    The name is empty if `faulthandler` is already in use or the file cannot be created. A kill, a power failure and the
    kernel's out-of-memory killer leave no stack: they say nothing about the pair.
    """
    if faulthandler.is_enabled():
        return ""
    for old in Path(tempfile.gettempdir()).glob(f"{_CRASH_LOG_PREFIX}*.log"):
        with contextlib.suppress(OSError):
            if not old.stat().st_size and not is_running(old.stem.removeprefix(_CRASH_LOG_PREFIX).rpartition("-")[0]):
                old.unlink()  # left empty by a process that was killed
    path = Path(tempfile.gettempdir(), f"{_CRASH_LOG_PREFIX}{process_id()}-{secrets.token_hex(4)}.log")
    try:
        file = path.open("x")
    except OSError:
        return ""
    faulthandler.enable(file)

    def remove_crash_log() -> None:
        faulthandler.disable()
        file.close()
        path.unlink(missing_ok=True)

    atexit.register(remove_crash_log)
    return path.name


def left_crash_log(name: str) -> bool:
    """Return whether a crash in native code wrote to the crash log of this name."""
    path = Path(tempfile.gettempdir(), Path(name).name)
    try:
        return path.name.startswith(_CRASH_LOG_PREFIX) and path.stat().st_size > 0
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return False


@functools.cache
def machine_id() -> str:
    """Return the host name, boot ID and PID namespace: processes with equal values see each other's PIDs."""

    def read_id(read: str) -> str:
        try:
            return os.readlink(read) if read.startswith("/proc/self") else Path(read).read_text().strip()
        except OSError:
            return ""

    return " ".join((platform.node(), read_id("/proc/sys/kernel/random/boot_id"), read_id("/proc/self/ns/pid")))


def process_id() -> str:
    """Return an identity of this process: its pid and start time, as pids are reused."""
    return f"{os.getpid()}.{_read_start_time(os.getpid())}"


def is_running(process: str) -> bool:
    """Return whether the process of this identity runs on this machine."""
    pid, _, started = process.partition(".")
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        pass
    except (OSError, OverflowError, ValueError):  # more digits than a number may have are a ValueError
        return False
    return _read_start_time(int(pid)) == started


def _read_start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, which distinguishes it from a later one with the same PID.

    Empty for a dead process or a zombie, and on systems without `/proc`.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
