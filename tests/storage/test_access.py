"""Access to places: every known way around the allowed roots, and common names that must stay allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_tasks.storage.access import (
    DEFAULT_ACCESS,
    Access,
    explain_refusal,
    is_local,
    is_metadata_address,
    restrict_for_manifest,
)

ROOTS = Access(("/data/in", "s3://team/inbox", "memory://m", "hdfs://node/d", "https://cdn.example.com/p"), web=True)
STORE = restrict_for_manifest(DEFAULT_ACCESS, "s3://team/m.csv")


@pytest.mark.parametrize(
    "uri",
    [
        "/data/in/cat.jpg", "/a b/../c@2x#1?.jpg", "//data/cat.jpg", "/data/in/~/cat.jpg", "/data/in/a:b.jpg", "/a\\b.jpg",
        "file:///data/cat.jpg", "local:///data/cat.jpg", "s3://bucket/a..b/c.jpg", "s3a://bucket/c.jpg", "gs://bucket/c.jpg",
        "gcs://bucket/c.jpg", "az://c/d.jpg", "abfs://c/d.jpg", "abfss://c@account.dfs.core.windows.net/d.jpg", "adl://s/c.jpg",
        "memory://c.jpg", "s3://bucket/c.jpg?versionId=3", "s3://bucket/100%.jpg",
    ],
)  # fmt: skip
def test_common_names_are_allowed_anywhere(uri: str) -> None:
    assert explain_refusal(uri, DEFAULT_ACCESS) is None


NO_STORE = (
    "is on no store that is allowed (file, s3, gs, az, adl, memory); copy it to one, or name its place in NST_ALLOWED_ROOTS"
)
CHAIN = "has a ::, which chains file systems; name the file itself"
WEB = "is on the web, which is not allowed; copy it to a store, or set NST_ALLOW_HTTP=1"
HOST = "names a host or a home folder; give a whole path, such as /data/cat.jpg or file:///data/cat.jpg"
CLIMBS = "has a .. in it, which a store does not resolve; name the place itself"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("simplecache::s3://b/a.png", CHAIN),
        ("zip://a.png::s3://b/x.zip", CHAIN),
        ("filecache::file:///etc/a.png", CHAIN),
        ("/data/in/a::b.png", CHAIN),
        *((f"{name}://x/a.png", NO_STORE) for name in ("reference", "dir", "github", "jupyter", "hdfs", "sftp", "data", "zip")),
        *(
            (f"{name}://x/a.png", NO_STORE)
            for name in ("FILE", "S3", "c", "/x/s3", "ftp", "smb", "git", "libarchive", "cached")
        ),
        ("https://host/a.png?sig=1", WEB),
        ("http://169.254.169.254/latest/meta-data", WEB),
        ("file://host/etc/a.png", HOST),
        ("file://~/a.png", HOST),
        ("local://a.png", HOST),
        ("s3://bucket/../other/a.png", CLIMBS),
        ("s3://bucket/a/%2e%2E/b.png", CLIMBS),
        ("gs://bucket/a\\..\\b.png", CLIMBS),
        ("memory://..", CLIMBS),
        ("s3://bucket/a?/../b.png", CLIMBS),
    ],
)
def test_ways_around_are_refused(uri: str, reason: str) -> None:
    assert explain_refusal(uri, DEFAULT_ACCESS) == reason


def test_manifest_on_a_store_names_no_local_file() -> None:
    for uri in ("/etc/passwd", "//etc/passwd", "file:///etc/passwd", "local:///etc/passwd"):
        assert (explain_refusal(uri, STORE) or "").startswith(
            "is a path on this machine, which a manifest on a store may not name"
        )
        assert is_local(uri)
    assert explain_refusal("s3://other/a.png", STORE) is None
    assert explain_refusal("gs://other/a.png", STORE) is None
    for uri in ("/data/m.csv", "file:///data/m.csv"):
        assert restrict_for_manifest(DEFAULT_ACCESS, uri) == DEFAULT_ACCESS
    for uri in ("memory://m.csv", "http://host/m.csv", "FILE:///m.csv", "flaky:///m.csv"):
        assert not restrict_for_manifest(DEFAULT_ACCESS, uri).local


@pytest.mark.parametrize(
    "uri",
    [
        "/data/in", "/data/in/a/cat.jpg", "/data//in/./x/../cat.jpg", "file:///data/in/cat.jpg", "//data/in/cat.jpg",
        "s3://team/inbox/cat.jpg", "s3a://team/inbox/a..b.jpg", "memory://m/cat.jpg", "hdfs://node/d/cat.jpg",
        "https://cdn.example.com/p/cat.jpg?sig=../x", "https://ann:pw@CDN.example.com/p",
    ],
)  # fmt: skip
def test_places_below_a_root_are_allowed(uri: str) -> None:
    assert explain_refusal(uri, ROOTS) is None


@pytest.mark.parametrize(
    "uri",
    [
        "/data", "/", "/data/inner/cat.jpg", "/data/in/../out/cat.jpg", "/etc/passwd", "file:///data/in/../../etc/passwd",
        "s3://team", "s3://team/inbox2/cat.jpg", "s3://other/inbox/cat.jpg", "s3://team//inbox/cat.jpg", "gs://team/inbox/cat.jpg",
        "memory://mm/cat.jpg", "hdfs://other/d/cat.jpg",
        "https://cdn.example.com/pq/cat.jpg", "http://cdn.example.com/p/cat.jpg", "https://evil.com/p/cat.jpg",
        "https://cdn.example.com@evil.com/p/cat.jpg", "https://evil.com#@cdn.example.com/p/cat.jpg",
        "https://cdn.example.com.evil.com/p/cat.jpg",
        "https://evil.com/?@cdn.example.com/p/cat.jpg", "https://cdn.example.com:8443/p/cat.jpg",
    ],
)  # fmt: skip
def test_places_outside_every_root_are_refused(uri: str) -> None:
    assert "NST_ALLOWED_ROOTS (/data/in s3://team/inbox memory://m hdfs://node/d https://cdn.example.com/p)" in (
        explain_refusal(uri, ROOTS) or ""
    )


def test_climbing_out_of_a_root_on_a_server_is_refused() -> None:
    for uri in ("s3://team/inbox/../x.jpg", "https://cdn.example.com/p/%2e%2e/x.jpg", "s3://team/inbox/..\\x.jpg"):
        assert explain_refusal(uri, ROOTS) == CLIMBS


def test_root_allows_its_protocol_except_http() -> None:
    assert explain_refusal("hdfs://node/d/a.jpg", ROOTS) is None
    assert explain_refusal("https://cdn.example.com/p/a.jpg", Access(ROOTS.roots, web=False)) == WEB


def test_links_are_followed_before_places_are_compared(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "cat.png").write_bytes(b"")
    (inside / "link.png").symlink_to(outside / "cat.png")
    (inside / "folder").symlink_to(outside)
    (tmp_path / "root").symlink_to(inside)
    for root in (inside, tmp_path / "root"):
        roots = Access((str(root),))
        for name in ("link.png", "folder/cat.png", "folder/new/x.png", "folder/../out/cat.png"):
            assert explain_refusal(f"{inside}/{name}", roots, os.path.realpath) is not None, name
            assert explain_refusal(f"file://{root}/{name}", roots, os.path.realpath) is not None, name
        assert explain_refusal(f"{inside}/new/x.png", roots, os.path.realpath) is None
        assert explain_refusal(f"{root}/x.png", roots, os.path.realpath) is None


METADATA = "is an address at which machines are given their credentials; name another host"


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.0.1:80", "u:p@169.254.169.254", "[fe80::1]", "[fe80::1%25eth0]", "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]", "100.100.100.200",
    ],
)  # fmt: skip
def test_metadata_addresses_are_always_refused(host: str) -> None:
    reason = explain_refusal(f"http://{host}/latest", Access(web=True))
    assert reason == (CHAIN if "::" in host else METADATA)
    bare = host.rpartition("@")[2].removesuffix(":80").strip("[]").replace("%25", "%")
    assert is_metadata_address(bare)


def test_other_addresses_are_not_metadata_addresses() -> None:
    for host in ("127.0.0.1", "10.0.0.1", "::1", "example.com", "", "169.254"):
        assert not is_metadata_address(host)
    assert explain_refusal("http://127.0.0.1:8000/a.png", Access(web=True)) is None
    for uri in ("http://[bad/a.png", "http:///a.png", "https://evil.com\\@cdn.example.com/p/cat.jpg"):
        assert explain_refusal(uri, ROOTS) == "is not an address; check the host"


@given(
    st.text("/.\\a~%2eE:?#@", max_size=20),
    st.sampled_from(["/data/in/", "file:///data/in/", "s3://team/inbox/", "memory://m/"]),
)
def test_no_path_climbs_out_of_its_root(tail: str, root: str) -> None:
    if explain_refusal(root + tail, ROOTS) is None:
        path = (root + tail).removeprefix("file://")
        place = os.path.normpath(path) if path.startswith("/") else path
        assert f"{place}/".startswith(root.removeprefix("file://"))
        assert path.startswith("/") or ".." not in place.split("/")


@given(st.text(max_size=30))
def test_any_text_is_checked_without_an_error(text: str) -> None:
    for access in (DEFAULT_ACCESS, STORE, ROOTS, Access(web=True)):
        for uri in (text, f"/{text}", f"https://{text}", f"{text}://x"):
            reason = explain_refusal(uri, access)
            assert reason is None or "; " in reason
