"""Storage in a local folder, in memory, on a local web server, and on a store that fails on demand."""

from __future__ import annotations

import errno
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar

import aiohttp
import botocore.exceptions
import fsspec
import pytest

from nst_tasks.errors import Interrupted, NstError, PictureError, StorageError, StorageUnavailable, StorageUnusable
from nst_tasks.inputs.settings import Settings
from nst_tasks.storage import files, parallel
from nst_tasks.storage.parallel import SEQUENTIAL_GRACE_SECONDS, map_parallel
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.storage.uri import get_folder, join_uri, make_absolute


@pytest.fixture(params=["path", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return an empty folder, of each kind that works without a server."""
    if request.param == "memory":
        place = f"memory://{tmp_path.name}"
        yield place
        memory = fsspec.filesystem("memory")
        if memory.exists(place):
            memory.rm(place, recursive=True)
    else:
        yield {"path": str(tmp_path), "file": f"file://{tmp_path}"}[request.param]


# Reading and writing


def test_write_creates_folders_and_read_returns_the_bytes(base: str) -> None:
    place = join_uri(base, "new", "deep", "a.bin")
    files.write(place, b"one")
    assert files.read(place) == b"one"
    files.write(place, b"two, longer")
    assert files.read(place) == b"two, longer"
    assert list(files.list_files(join_uri(base, "new", "deep"))) == ["a.bin"]


def test_write_accepts_a_function_of_a_file(base: str) -> None:
    uri = join_uri(base, "written", "by.parts")

    def write_parts(file: IO[bytes]) -> None:
        for part in (b"one ", b"after ", b"another"):
            file.write(part)

    files.write(uri, write_parts)
    assert files.read(uri) == b"one after another"


def test_write_all_raises_the_first_failure(base: str) -> None:
    contents = {join_uri(base, "a", f"{k}.bin"): bytes([k]) for k in range(3)}
    files.write_all(contents)
    assert {uri: files.read(uri) for uri in contents} == contents
    files.write_all({})
    if "memory" in base:
        return
    with pytest.raises(StorageError, match="0.bin/x: a file is in the way"):
        files.write_all({join_uri(base, "a", "0.bin", "x"): b"", join_uri(base, "a", "9.bin"): b""})


def test_failed_write_function_leaves_the_old_bytes(tmp_path: Path) -> None:
    def write_and_fail(file: IO[bytes]) -> None:
        file.write(b"new")
        raise ZeroDivisionError

    files.write(str(tmp_path / "a"), b"old")
    with pytest.raises(ZeroDivisionError):
        files.write(str(tmp_path / "a"), write_and_fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_reading_a_missing_file_is_an_error(base: str) -> None:
    place = join_uri(base, "none.bin")
    with pytest.raises(StorageError) as caught:
        files.read(place)
    assert str(caught.value) == f"{place}: does not exist; check the name"
    assert type(caught.value) is StorageError


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of the files that this process writes; a write fails where it reaches the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_failed_write_leaves_the_old_bytes(tmp_path: Path) -> None:
    place = tmp_path / "a.bin"
    files.write(str(place), b"old")
    with pytest.raises(StorageError, match=r"a\.bin: the file is larger than"), limit_file_size(1000):
        files.write(str(place), b"new" * 100_000)
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_write_over_a_folder_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(StorageError, match=r"a\.bin: it is a folder, not a file; choose another path"):
        files.write(str(tmp_path / "a.bin"), b"new")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_reader_sees_old_or_new_bytes_only(tmp_path: Path) -> None:
    place = str(tmp_path / "a.bin")
    versions = [bytes([k]) * 200_000 for k in range(2)]
    files.write(place, versions[0])
    end = threading.Event()

    def rewrite() -> None:
        for k in range(40):
            files.write(place, versions[k % 2])
        end.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not end.is_set():
        assert files.read(place) in versions
    writer.join()


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "画" * 83 + ".png"])
def test_longest_possible_name_can_be_written(tmp_path: Path, name: str) -> None:
    files.write(str(tmp_path / name), b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_file_at_the_root_can_be_written() -> None:
    place = f"/nst-test-{os.getpid()}.bin"
    if not os.access("/", os.W_OK):
        pytest.skip("the root folder is not writable for this user")
    try:
        files.write(place, b"x")
        assert files.read(place) == b"x"
    finally:
        Path(place).unlink(missing_ok=True)


# Stat, listing, expand


def test_stat_has_size_and_a_version_of_each_write(base: str) -> None:
    place = join_uri(base, "a.bin")
    assert files.stat(place) is None
    versions = set()
    for data in (b"one", b"two", b"two"):
        files.write(place, data)
        entry = files.stat(place)
        assert entry is not None
        assert entry.size == 3
        assert entry == files.stat(place)
        versions.add(entry.version)
        time.sleep(0.002)
    assert len(versions) == 3
    assert "" not in versions


def test_store_version_changes_despite_same_time_and_size(tmp_path: Path) -> None:
    place = tmp_path / "a.bin"
    files.write(str(place), b"one")
    os.utime(place, (1, 1))
    entry = files.stat(str(place))
    files.write(str(place), b"two")
    os.utime(place, (1, 1))
    assert files.stat(str(place)) != entry


def test_listing_is_sorted_without_folders_and_dot_files(base: str) -> None:
    for name in ("b.bin", "a.bin", ".hidden", "c/d.bin", "B.bin"):
        files.write(join_uri(base, "x", name), name.encode())
    entries = files.list_files(join_uri(base, "x"))
    assert list(entries) == ["B.bin", "a.bin", "b.bin"]
    assert [entry.size for entry in entries.values()] == [5, 5, 5]
    assert list(files.list_files(join_uri(base, "x", ""))) == list(entries)


def test_listing_a_prefix_leaves_out_the_other_names(base: str) -> None:
    for name in ("ab.1", "ab.2", "abc/d", "b.ab", "a"):
        files.write(join_uri(base, "x", name), b"1")
    assert list(files.list_files(join_uri(base, "x"), "ab")) == ["ab.1", "ab.2"]
    assert files.list_files(join_uri(base, "x"), "c") == files.list_files(join_uri(base, "none"), "a") == {}


def test_listing_a_missing_folder_is_empty(base: str) -> None:
    assert files.list_files(join_uri(base, "none")) == {}


def test_listing_is_never_stale(base: str) -> None:
    files.write(join_uri(base, "x", "a.bin"), b"1")
    assert list(files.list_files(join_uri(base, "x"))) == ["a.bin"]
    files.write(join_uri(base, "x", "b.bin"), b"1")
    assert list(files.list_files(join_uri(base, "x"))) == ["a.bin", "b.bin"]


def test_glob_gives_sorted_readable_files(base: str) -> None:
    for name in ("b.png", "a.png", "c.txt", ".hidden.png", "folder.png/x.bin"):
        files.write(join_uri(base, "x", name), name.encode())
    uris = files.expand_glob(join_uri(base, "x", "*.png"))
    assert [files.read(uri) for uri in uris] == [b"a.png", b"b.png"]
    assert all(("://" in uri) == ("://" in base) for uri in uris)
    assert len(files.expand_glob(join_uri(base, "x", "*"))) == 3
    assert files.expand_glob(join_uri(base, "x", "a.png")) == uris[:1]
    assert files.expand_glob(join_uri(base, "x", "*.gif")) == []


# Names


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("s3://bucket/a/m.csv", "s3://bucket/a"),
        ("s3://bucket/m.csv", "s3://bucket"),
        ("memory://a/m.csv", "memory://a"),
        ("memory://m.csv", "memory://"),
        ("file:///data/m.csv", "file:///data"),
        ("file:///m.csv", "file:///"),
        ("/data/m.csv", "/data"),
        ("/m.csv", "/"),
        ("data/m.csv", "data"),
        ("m.csv", "."),
    ],
)
def test_get_folder(uri: str, folder: str) -> None:
    assert get_folder(uri) == folder


@pytest.mark.parametrize(
    ("base", "names", "uri"),
    [
        ("s3://bucket/out", ["images", "a.png"], "s3://bucket/out/images/a.png"),
        ("s3://bucket/out/", ["a.png"], "s3://bucket/out/a.png"),
        ("s3://bucket", ["a.png"], "s3://bucket/a.png"),
        ("/out//", ["a.png"], "/out/a.png"),
        ("/", ["a.png"], "/a.png"),
        ("file:///", ["a.png"], "file:///a.png"),
        ("memory://", ["a.png"], "memory:///a.png"),
    ],
)
def test_join_uri(base: str, names: list[str], uri: str) -> None:
    assert join_uri(base, *names) == uri


def test_make_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_absolute("in/../m.csv") == str(tmp_path / "m.csv")
    assert make_absolute("/m.csv") == "/m.csv"
    assert make_absolute("s3://bucket/m.csv") == "s3://bucket/m.csv"


# Probing


def test_probing_a_good_place_leaves_no_file(base: str) -> None:
    files.probe_writable(join_uri(base, "new", "out"))
    assert files.list_files(join_uri(base, "new", "out")) == {}
    if not base.startswith("memory:"):
        place = Path(base.removeprefix("file://"))
        assert not [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("out", "reason"), [("a.bin", "a file is in the way"), ("a.bin/x", "a part of the path is a file")])
def test_probing_below_a_file_is_refused(tmp_path: Path, out: str, reason: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(StorageError) as caught:
        files.probe_writable(str(tmp_path / out))
    assert str(caught.value).startswith(str(tmp_path / out))
    assert reason in str(caught.value)
    assert type(caught.value) is StorageError


# Translation of foreign errors


class FaultyStore(fsspec.AbstractFileSystem):
    """Store of which every call raises `error`."""

    protocol = "faulty"
    cachable = False
    error: BaseException = OSError()
    last_options: ClassVar[dict[str, object]] = {}

    def _raise(self, *args: object, **options: object) -> None:
        FaultyStore.last_options = self.storage_options
        raise self.error

    cat_file = pipe_file = info = ls = glob = rm_file = _raise  # type: ignore[assignment]


fsspec.register_implementation("faulty", FaultyStore, clobber=True)

PLACE = "faulty://user:hunter2@bucket/a.png?token=hunter2#hunter2"
REDACTED_PLACE = "faulty://bucket/a.png: "
LATER = "the store failed for the moment"
NO_PLACE = "not a place that can be read or written; check protocol and name"


TRANSLATIONS = [
    (FileNotFoundError("hunter2"), StorageError, "does not exist; check the name"),
    (PermissionError("hunter2"), StorageError, "access is denied; check the permissions or credentials"),
    (OSError(errno.EPERM, "hunter2"), StorageError, "access is denied"),
    (OSError(errno.ENOSPC, "hunter2"), StorageUnusable, "the disk is full"),
    (OSError(errno.EDQUOT, "hunter2"), StorageUnusable, "the disk quota is used up"),
    (OSError(errno.EROFS, "hunter2"), StorageUnusable, "the file system is read-only"),
    (OSError(errno.ENAMETOOLONG, "hunter2"), StorageError, "the name is too long"),
    (NotADirectoryError("hunter2"), StorageError, "a part of the path is a file, not a folder; choose another path"),
    (IsADirectoryError(errno.EISDIR, "hunter2"), StorageError, "it is a folder, not a file; choose another path"),
    (FileExistsError("hunter2"), StorageError, "a file is in the way; choose another path"),
    (NotImplementedError("hunter2"), StorageError, "this kind of store cannot do that"),
    (ValueError("hunter2"), StorageError, NO_PLACE),
    (botocore.exceptions.NoCredentialsError(), StorageUnusable, "no credentials are found; set AWS_ACCESS_KEY_ID"),
    (botocore.exceptions.PartialCredentialsError(provider="hunter2", cred_var="x"), StorageUnusable, "are incomplete"),
    (botocore.exceptions.ProfileNotFound(profile="hunter2"), StorageUnusable, "check AWS_PROFILE"),
    (botocore.exceptions.ParamValidationError(report="hunter2"), StorageError, "check bucket and key"),
    (aiohttp.InvalidURL("hunter2"), StorageError, NO_PLACE),
    (OSError(errno.EIO, "hunter2"), StorageUnavailable, f"{LATER} (OSError, EIO)"),
    (OSError("hunter2"), StorageUnavailable, f"{LATER} (OSError)"),
    (TimeoutError("hunter2"), StorageUnavailable, f"{LATER} (TimeoutError)"),
    (
        ConnectionResetError(errno.ECONNRESET, "hunter2"),
        StorageUnavailable,
        f"{LATER} (ConnectionResetError, ECONNRESET)",
    ),
    (BrokenPipeError("hunter2"), StorageUnavailable, LATER),
    (
        botocore.exceptions.EndpointConnectionError(endpoint_url="hunter2"),
        StorageUnavailable,
        "EndpointConnectionError",
    ),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="hunter2"), StorageUnavailable, "ReadTimeoutError"),
    (aiohttp.ServerDisconnectedError("hunter2"), StorageUnavailable, "ServerDisconnectedError"),
    (aiohttp.ClientPayloadError("hunter2"), StorageUnavailable, "ClientPayloadError"),
]


@pytest.mark.parametrize(("error", "kind", "sentence"), TRANSLATIONS, ids=[type(e).__name__ for e, _, _ in TRANSLATIONS])
def test_foreign_errors_are_translated_without_their_texts(
    error: Exception, kind: type[StorageError], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyStore, "error", error)
    calls = [lambda: files.read(PLACE), lambda: files.expand_glob(PLACE)]
    if not isinstance(error, FileNotFoundError):  # stat and listing return nothing for it
        calls += [lambda: files.stat(PLACE), lambda: files.list_files(PLACE)]
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        assert type(caught.value) is kind
        assert str(caught.value).startswith(REDACTED_PLACE)
        assert sentence in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is error
    with pytest.raises(StorageError, match="^" + REDACTED_PLACE) as caught:
        files.write(PLACE, b"x")
    # an unreadable picture fails one pair, an unwritable output fails every pair
    assert type(caught.value) is (StorageUnusable if sentence.startswith("access is denied") else kind)
    assert sentence in str(caught.value)


def test_stat_and_listing_of_a_missing_object_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyStore, "error", FileNotFoundError())
    assert files.stat(PLACE) is None
    assert files.list_files(PLACE) == {}
    # a store with cached listings would not see later writes of others
    assert FaultyStore.last_options == {"use_listings_cache": False}


def test_the_probe_names_the_place_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyStore, "error", PermissionError("hunter2"))
    with pytest.raises(StorageError, match=r"^faulty://bucket/out/\.nst-probe-\w+: access is denied") as caught:
        files.probe_writable("faulty://user:hunter2@bucket/out")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("x"), KeyboardInterrupt()])
def test_programming_errors_are_not_translated(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyStore, "error", error)
    with pytest.raises(type(error)):
        files.read(PLACE)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "nope://u:hunter2@bucket/a?hunter2",
            f"nope://bucket/a: {NO_PLACE}",
        ),
        (
            "http://[bad/a.png?hunter2",
            f"http://[bad/a.png: {NO_PLACE}",
        ),
        # its file system needs an organization and a repository as well
        ("github://a/b", f"github://a/b: {NO_PLACE}"),
    ],
)
def test_unknown_place_is_refused_in_one_sentence(uri: str, sentence: str) -> None:
    with pytest.raises(StorageError) as caught:
        files.read(uri)
    assert str(caught.value) == sentence
    with pytest.raises(StorageError) as caught:
        files.probe_writable(uri)
    assert "hunter2" not in str(caught.value)


def test_a_file_system_that_is_not_installed_is_named() -> None:
    fsspec.register_implementation("uninstalled", "no_such_package.File", clobber=True, errtxt="Install no-such-package")
    with pytest.raises(StorageError) as caught:
        files.read("uninstalled://bucket/a.png?hunter2")
    sentence = "the file system for uninstalled:// is not installed (Install no-such-package)"
    assert str(caught.value) == f"uninstalled://bucket/a.png: {sentence}"


@pytest.fixture
def web_server() -> Iterator[str]:
    """Start a web server that answers `/STATUS` with that status."""

    class AnswerHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = int(self.path[1:4])
            self.send_response(status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"pong")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnswerHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (400, StorageError, "the server answers HTTP 400"),
        (403, StorageError, "the server answers HTTP 403"),
        (404, StorageError, "does not exist"),
        (410, StorageError, "the server answers HTTP 410"),
        (429, StorageUnavailable, LATER),
        (500, StorageUnavailable, LATER),
        (503, StorageUnavailable, LATER),
    ],
)
def test_answers_of_a_web_server_are_translated(web_server: str, status: int, kind: type[StorageError], sentence: str) -> None:
    assert files.read(f"{web_server}/200") == b"pong"
    with pytest.raises(StorageError) as caught:
        files.read(f"{web_server}/{status}?token=hunter2")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{web_server}/{status}: {sentence}")
    assert "hunter2" not in str(caught.value)


def test_unreachable_web_server_is_a_transient_failure() -> None:
    with pytest.raises(StorageUnavailable, match=f"^http://127.0.0.1:1/a.png: {LATER}"):
        files.read("http://127.0.0.1:1/a.png")


# Parallel map


def test_parallel_map_keeps_order_and_returns_errors() -> None:
    failure = PictureError("3 is no picture")

    def square_slowly(item: int) -> int:
        time.sleep(0.05 * (item == 0))
        if item == 3:
            raise failure
        return item * item

    assert map_parallel(square_slowly, range(6), threads=4) == [0, 1, 4, failure, 16, 25]
    assert map_parallel(square_slowly, [], threads=4) == []


def test_parallel_map_runs_as_many_calls_as_threads() -> None:
    barrier = threading.Barrier(3, timeout=10)  # fails unless three calls run at the same time
    map_parallel(lambda _: barrier.wait(), range(3), threads=3)
    active, peak, lock = 0, 0, threading.Lock()

    def count_active(_: int) -> None:
        nonlocal active, peak
        with lock:
            active += 1
            peak = max(peak, active)
        time.sleep(0.005)
        with lock:
            active -= 1

    map_parallel(count_active, range(12), threads=2)
    assert peak == 2


def test_fast_local_items_are_read_in_the_calling_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_thread(item: int) -> tuple[int, bool]:
        return item, threading.current_thread() is threading.main_thread()

    monkeypatch.setattr(parallel, "FAST_READ_SECONDS", 60.0)
    assert map_parallel(check_thread, range(100), threads=4, local=True) == [(item, True) for item in range(100)]
    assert map_parallel(check_thread, range(100), threads=4) == [(item, False) for item in range(100)]
    monkeypatch.setattr(parallel, "FAST_READ_SECONDS", 0.0)

    def check_thread_slowly(item: int) -> tuple[int, bool]:
        time.sleep(2 * SEQUENTIAL_GRACE_SECONDS)
        return check_thread(item)

    assert map_parallel(check_thread_slowly, range(6), threads=4, local=True) == [(item, item == 0) for item in range(6)]


def test_parallel_map_raises_programming_errors() -> None:
    def broken(item: int) -> NstError:
        raise KeyError(item)

    with pytest.raises(KeyError) as caught:
        map_parallel(broken, [1], threads=1)
    assert "broken" in "".join(traceback.format_tb(caught.value.__traceback__))


# Retries


def make_failing_call(*errors: Exception) -> Callable[[], str]:
    """Make a function that raises these errors, one per call, and then returns."""
    remainder = iter(errors)

    def call() -> str:
        for error in remainder:
            raise error
        return "done"

    return call


def test_transient_failures_are_retried_and_reported() -> None:
    messages: list[str] = []
    settings = Settings(retries=2, retry_seconds=0.01)
    outage = StorageUnavailable("s3://b/a: the store failed for the moment")
    assert (
        call_with_retries(make_failing_call(outage, outage), settings.retry_delays, threading.Event(), messages.append)
        == "done"
    )
    assert messages == [f"{outage}; trying again in 0.01 s", f"{outage}; trying again in 0.02 s"]
    with pytest.raises(StorageUnavailable):
        call_with_retries(make_failing_call(outage, outage, outage), settings.retry_delays, threading.Event(), messages.append)


@pytest.mark.parametrize("error", [StorageError("x"), StorageUnusable("x"), PictureError("x"), KeyError("x")])
def test_permanent_failures_are_not_retried(error: Exception) -> None:
    with pytest.raises(type(error)):
        call_with_retries(
            make_failing_call(error), Settings(retries=2, retry_seconds=0).retry_delays, threading.Event(), lambda line: None
        )


def test_retry_delay_ends_at_the_stop_signal() -> None:
    stop = threading.Event()
    with pytest.raises(Interrupted):  # the first attempt is not delayed
        call_with_retries(
            make_failing_call(StorageUnavailable("x")),
            Settings(retries=1, retry_seconds=600).retry_delays,
            stop,
            lambda line: stop.set(),
        )


# Conditional create


def test_an_object_is_created_once(base: str) -> None:
    place = join_uri(base, "new", "claim")
    assert files.create_if_absent(place, b"first")
    assert not files.create_if_absent(place, b"second")
    assert files.read(place) == b"first"
    assert list(files.list_files(join_uri(base, "new"))) == ["claim"]


def test_deleting_a_missing_file_succeeds(base: str) -> None:
    place = join_uri(base, "new", "claim")
    files.write(place, b"first")
    for _ in range(2):
        files.delete(place)
        assert files.stat(place) is None


def test_support_for_conditional_create_is_detected(base: str) -> None:
    assert files.can_create_if_absent(join_uri(base, "new"))
    assert not files.list_files(join_uri(base, "new"))


def test_many_creators_have_one_winner(tmp_path: Path) -> None:
    place = str(tmp_path / "claim")
    results = map_parallel(lambda k: files.create_if_absent(place, str(k).encode()), range(32), threads=8)
    assert [k for k, is_winner in enumerate(results) if is_winner] == [int(files.read(place))]
    assert os.listdir(tmp_path) == ["claim"]


# Temporary files


def test_stale_temporary_files_are_deleted(tmp_path: Path) -> None:
    old_time = time.time() - 100
    for name, age in ((".a.png.12345678.nst.tmp", 100), (".b.png.12345678.nst.tmp", 0), (".mine.tmp", 100), ("c.nst.tmp", 100)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (old_time, old_time) if age else None)
    files.delete_stale_temporaries(str(tmp_path), 50)
    assert sorted(os.listdir(tmp_path)) == [".b.png.12345678.nst.tmp", ".mine.tmp", "c.nst.tmp"]
    files.delete_stale_temporaries(str(tmp_path / "nothing here"), 50)
    files.delete_stale_temporaries("memory://nothing", 50)


KILLED_WRITE = """
import os, signal, sys
from nst_tasks.storage import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the bytes are written, before the rename
files._write_local(sys.argv[1], b"half", os.replace)
"""


def test_temporary_file_of_a_killed_write_is_deleted(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED_WRITE, str(tmp_path / "a.png")], timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    assert files.list_files(str(tmp_path)) == {}
    files.delete_stale_temporaries(str(tmp_path), -1)
    assert os.listdir(tmp_path) == []
