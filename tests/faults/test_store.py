"""What nst makes of a real S3 server's failures, and of those on the way to it, one kind at a time."""

from __future__ import annotations

import fsspec
import pytest

from nst_tasks.errors import StorageError, StorageUnavailable, StorageUnusable
from nst_tasks.storage import files
from tests.support.proxy import PASSING, Fault, Proxy

WHOLE = bytes(range(256)) * 400


@pytest.fixture
def way(way: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Put one object in the bucket, and make the client try once, for a second."""
    files.write("s3://nst-faults/whole", WHOLE)
    quick = {"read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": quick})
    return way


READING = {
    "read": lambda: files.read("s3://nst-faults/whole"),
    "stat": lambda: files.stat("s3://nst-faults/whole"),
    "listing": lambda: files.list_files("s3://nst-faults"),
}
WRITING = {
    "write": lambda: files.write("s3://nst-faults/new", b"new"),
    "create": lambda: files.create_if_absent("s3://nst-faults/first", b"first"),
}


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name)
def test_what_passes_is_worth_a_retry_and_never_half_an_object(way: Proxy, fault: Fault) -> None:
    for name, call in {**READING, **WRITING}.items():
        if fault == Fault.STALL and name not in ("read", "write"):  # each takes its seconds
            continue
        way.decide = lambda method, path: fault
        with pytest.raises(StorageUnavailable, match="the store failed for the moment"):
            call()
        way.decide = lambda method, path: None
        files.delete("s3://nst-faults/first")
        assert call() is not False, name
    assert files.read("s3://nst-faults/whole") == WHOLE


@pytest.mark.parametrize(
    ("fault", "when_reading", "sentence"),
    [
        (Fault.EXPIRED_TOKEN, StorageUnusable, "access is denied, the credentials have expired; renew them and run the same"),
        (Fault.UNKNOWN_KEY, StorageUnusable, "access is denied, the credentials are not valid; correct them"),
        (Fault.WRONG_SIGNATURE, StorageUnusable, "access is denied, the credentials are not valid; correct them"),
        (Fault.WRONG_CLOCK, StorageUnusable, "access is denied, this machine's clock is wrong"),
        (Fault.FULL, StorageUnusable, "the store is full; make room"),
        # one object may be another's; an output that may not be written is no use to anybody
        (Fault.ACCESS_DENIED, StorageError, "access is denied; check the permissions or credentials"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_what_lasts_is_told_apart_by_the_servers_own_code(
    way: Proxy, fault: Fault, when_reading: type[StorageError], sentence: str
) -> None:
    way.decide = lambda method, path: fault
    before = way.requests
    for calls, kind in ((READING, when_reading), (WRITING, StorageUnusable)):
        for call in calls.values():
            with pytest.raises(StorageError, match=sentence) as caught:
                call()
            assert type(caught.value) is kind
    assert way.requests - before <= 8  # nothing is tried again


def test_lost_answer_never_makes_two_creators(way: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client repeats the request by itself and is refused by the object that the first one made: false, not true twice."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    faults = iter([Fault.LOST])
    way.decide = lambda method, path: next(faults, None) if method == "PUT" else None
    files.delete("s3://nst-faults/first")
    assert not files.create_if_absent("s3://nst-faults/first", b"mine")
    assert files.read("s3://nst-faults/first") == b"mine"
    assert way.harmed[Fault.LOST] == 1
    assert not files.create_if_absent("s3://nst-faults/first", b"another's")
    assert files.read("s3://nst-faults/first") == b"mine"


def test_refusal_by_a_vanished_object_is_transient(way: Proxy) -> None:
    """A claim that another run releases meanwhile; or a server that came up again and does not know its own mind yet."""
    way.decide = lambda method, path: Fault.CONDITION if method == "PUT" else None
    with pytest.raises(StorageUnavailable, match="refused an object because of one that is gone"):
        files.create_if_absent("s3://nst-faults/gone", b"mine")
    way.decide = lambda method, path: None
    assert files.create_if_absent("s3://nst-faults/gone", b"mine")


def test_request_refused_by_the_store_shows_its_code(way: Proxy) -> None:
    way.decide = lambda method, path: Fault.INVALID
    with pytest.raises(StorageError, match=r"the store refuses the name or the request \(InvalidRequest\)$") as caught:
        files.write("s3://nst-faults/new", b"new")
    assert type(caught.value) is StorageError


def test_s3_client_gives_up_soon_unless_configured(way: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be interrupted must not take minutes; who sets FSSPEC_S3 or AWS_MAX_ATTEMPTS knows better."""
    way.decide = lambda method, path: Fault.INTERNAL_ERROR if method == "GET" else None
    for user, environment, attempts in (
        ({}, {}, 3),
        ({"retries": {"total_max_attempts": 2}}, {}, 2),
        ({}, {"AWS_MAX_ATTEMPTS": "1"}, 1),
    ):
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": user} if user else {})
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        before = way.requests
        with pytest.raises(StorageUnavailable):
            files.read("s3://nst-faults/whole")
        assert way.requests - before == attempts
