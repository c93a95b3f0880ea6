"""The whole flow on a real S3 server: manifest, pictures and output all there."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import s3fs

from nst_tasks.errors import StorageError, StorageUnavailable
from nst_tasks.images import codec
from nst_tasks.inputs.run import Run
from nst_tasks.outputs import claims, outcome
from nst_tasks.storage import files
from tests.support.commands import nst
from tests.support.duplicates import check_two_rows_of_one_pair
from tests.support.jobs import run_into
from tests.support.pictures import encode_pattern
from tests.support.servers import S3

ROWS = "id,content,style,recipe\na,in/cat.png,in/oil.png,\nb,in/dog.png,s3://nst-in/in/ink.png,tf-tutorial\nbad,in/gone.png,in/oil.png,\n"


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fill a bucket with a manifest and its pictures, reached by the environment's credentials alone."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    for name in ("nst-in", "nst-out"):
        if not fs.exists(name):
            fs.mkdir(name)
    for name in ("cat", "dog", "oil", "ink"):
        files.write(f"s3://nst-in/in/{name}.png", encode_pattern(name))
    files.write("s3://nst-in/m.csv", ROWS.encode())
    yield "s3://nst-out"
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_manifest_on_s3_becomes_pictures_on_s3(s3: S3, flow_api: str, bucket: str) -> None:
    out = f"{bucket}/nightly"
    options = ("run", "s3://nst-in/m.csv", "--out", out, "--backbone", "tiny", "--size", "64", "--steps", "2", "--json")
    result = nst(*options)
    assert result.exit_code == 1, result.stderr
    report = json.loads(result.stdout)
    assert report["counts"] == {"succeeded": 2, "failed": 1, "rejected": 0, "skipped": 0}
    assert "s3://nst-in/in/gone.png: does not exist" in report["failures"][0]

    for id in "ab":
        data = files.read(f"{out}/images/{id}.png")
        marker = outcome.from_json(files.read(f"{out}/outcomes/{id}.json"))
        assert codec.read_size(data, 10**6) == (48, 64)
        assert codec.read_metadata(data)["nst:key"] == marker.key
    history = pd.read_parquet(f"{out}/history")
    assert sorted(history.pair_id.unique()) == ["a", "b"]
    summary = pd.read_parquet(report["files"]["summary"])
    assert summary.set_index("id").status.to_dict() == {"a": "succeeded", "b": "succeeded", "bad": "failed"}
    assert b"data:image/jpeg" in files.read(report["files"]["report"])
    assert files.list_files(out) == {}  # nothing but folders at the top

    written_texts = [f"{out}/outcomes/a.json", f"{out}/outcomes/bad.json", report["files"]["run"], report["files"]["report"]]
    for text in (result.stdout, result.stderr, *(files.read(uri).decode() for uri in written_texts)):
        assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in text

    files.write("s3://nst-in/in/gone.png", encode_pattern("cat"))
    rerun = nst(*options)
    assert rerun.exit_code == 0, rerun.stderr
    assert json.loads(rerun.stdout)["counts"] == {"succeeded": 1, "failed": 0, "rejected": 0, "skipped": 2}


def test_dry_run_and_grid_and_report_speak_s3(bucket: str) -> None:
    result = nst("grid", "--content", "s3://nst-in/in/[cd]*.png", "--style", "s3://nst-in/in/oil.png")
    assert result.stdout.splitlines()[1] == "cat_oil,s3://nst-in/in/cat.png,s3://nst-in/in/oil.png"
    result = nst("run", "s3://nst-in/m.csv", "--out", f"{bucket}/dry", "--backbone", "tiny", "--dry-run")
    assert "a: cat x oil, painterly, 96 x 72" in result.stdout
    assert files.list_files(f"{bucket}/dry") == {}


def test_wrong_credentials_are_one_sentence_and_exit_code_2(bucket: str) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    result = nst("run", "s3://nst-in/m.csv", "--out", bucket, AWS_SECRET_ACCESS_KEY="wrong-secret-of-the-tests")
    assert result.exit_code == 2
    assert "access is denied" in result.stderr
    assert "wrong-secret" not in result.stderr + result.stdout


def test_forbidden_output_is_reported_before_compute(s3: S3, bucket: str) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    result = nst("run", "s3://nst-in/m.csv", "--out", bucket, "--backbone", "tiny", **s3.reader)
    assert result.exit_code == 2
    assert "nst: --out: the output cannot be written" in result.stderr
    assert "access is denied" in result.stderr


def test_http_missing_is_permanent_and_silence_transient(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="does not exist") as error_info:
        files.read("s3://nst-in/nowhere.png")
    assert not isinstance(error_info.value, StorageUnavailable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own retries, each after a longer wait
    with pytest.raises(StorageUnavailable, match="failed for the moment"):
        files.read("s3://nst-in/in/cat.png")


def test_listings_are_never_stale_and_writes_are_whole(bucket: str) -> None:
    prefix = f"{bucket}/fresh"
    assert files.list_files(prefix) == {}
    files.write(f"{prefix}/one", b"1")
    assert list(files.list_files(prefix)) == list(files.list_files(prefix, "o")) == ["one"]
    files.write(f"{prefix}/onemore/two", b"2")
    files.write(f"{prefix}/two", b"2")
    assert list(files.list_files(prefix, "one")) == ["one"]
    assert files.list_files(prefix, "three") == files.list_files(f"{prefix}/nowhere", "o") == {}
    first = files.stat(f"{prefix}/one")
    files.write(f"{prefix}/one", b"2")
    second = files.stat(f"{prefix}/one")
    assert first is not None
    assert second is not None
    assert (first.size, first.version != second.version) == (second.size, True)
    large = os.urandom(12 * 2**20)  # above the size from which uploads come in parts
    files.write(f"{prefix}/large", large)
    assert files.read(f"{prefix}/large") == large
    readers = [threading.Thread(target=files.read, args=(f"{prefix}/one",)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def test_claims_hold_on_s3(bucket: str) -> None:
    out = f"{bucket}/claims-{os.getpid()}"
    assert files.can_create_if_absent(out)
    got: list[str] = []
    together = threading.Barrier(6)
    with ExitStack() as stack:

        def attempt(run: Run) -> None:
            together.wait()
            got.extend(stack.enter_context(claims.hold(["k1", "k2"], run)))

        runs = [run_into(out, exclusive=True, id=f"run-{k}") for k in range(6)]
        threads = [threading.Thread(target=attempt, args=[run]) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == ["k1", "k2"]
        assert sorted(claims.current_claims(out)) == ["k1", "k2"]
    assert claims.current_claims(out) == {}


def test_two_rows_of_one_pair_agree_on_s3(tmp_path: Path, bucket: str) -> None:
    check_two_rows_of_one_pair(tmp_path, f"{bucket}/twice-{os.getpid()}")
