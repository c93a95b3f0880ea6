"""Redaction of URIs, classes of errors, and sentences of a reason and a remedy."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_tasks import errors
from nst_tasks.errors import NstError, StorageUnavailable, is_fatal_to_run, is_pair_failure, is_transient, redact
from nst_tasks.inputs import manifest


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b.png", "s3://bucket/a/b.png"),
        ("https://host:9000/a.png", "https://host:9000/a.png"),
        ("https://user@host/a.png", "https://host/a.png"),
        ("https://user:pass@host:9000/a.png", "https://host:9000/a.png"),
        ("https://host/a.png?X-Amz-Signature=pass&x=1", "https://host/a.png"),
        ("https://host/a.png#pass", "https://host/a.png"),
        ("https://host?mail=me@pass", "https://host"),
        ("https://user:pass@host/a.png?pass#pass", "https://host/a.png"),
        # an unescaped slash, as half of all AWS secret keys have one
        ("s3://AKIA:pa/ss@bucket/a.png", "s3://bucket/a.png"),
        ("s3://user:pa@ss@bucket/a.png", "s3://bucket/a.png"),
        ("s3://user@pass@bucket/a.png", "s3://bucket/a.png"),
        # an @ in a name is no credential
        ("s3://user:pass@bucket/photo@2x.png", "s3://bucket/photo@2x.png"),
        ("s3://bucket/photo@2x.png", "s3://bucket/photo@2x.png"),
        ("https://host:9000/photo@2x.png", "https://host:9000/photo@2x.png"),
        ("http://[::1]:9000/a.png?pass", "http://[::1]:9000/a.png"),
        # Azure's container is no user
        ("abfss://pictures@account.dfs.core.windows.net/a.png", "abfss://pictures@account.dfs.core.windows.net/a.png"),
        ("abfs://user:pass@account/a.png?pass", "abfs://account/a.png"),
        # fsspec's chains
        ("zip://a.png::https://user:pass@host/x.zip?pass", "zip://a.png::https://host/x.zip"),
        ("simplecache::s3://user:pass@bucket/a.png", "simplecache::s3://bucket/a.png"),
        ("https://host/a.png?sig=pa::ss", "https://host/a.png"),
        # no address at all, yet no traceback in place of the message
        ("https://[bad/a.png", "https://[bad/a.png"),
        ("https://user:pass@", "https://"),
    ],
)
def test_redact_keeps_only_the_place(uri: str, expected: str) -> None:
    assert redact(uri) == expected


@pytest.mark.parametrize("path", ["", "a.png", "/data/a?b#c@d:e.png", "C:\\a.png", "mailto:a@b", "/data/a::b.png"])
def test_redact_leaves_local_paths_as_they_are(path: str) -> None:
    assert redact(path) == path


@pytest.mark.parametrize(
    "text", ["://x:" * 100_000, "@" + "://x:1" * 100_000, "://@" * 100_000, "://" * 100_000, "a::b" * 100_000]
)
def test_redact_is_linear_in_any_text(text: str) -> None:
    """In quadratic time, each of these would take minutes."""
    redact(text)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/in/a\nnst: all is well.png", r"/in/a\nnst: all is well.png"),
        ("/in/\x1b]0;title\x07\x9b31m.png", r"/in/\x1b]0;title\x07\x9b31m.png"),
        ("s3://b/a\u202egnp.exe", r"s3://b/a\u202egnp.exe"),
        ("/in/caf\udce9\r\u2028.png", r"/in/caf\udce9\r\u2028.png"),
        (
            "/in/caf\u00e9 9.41\u202fAM \u5bff.png",
            "/in/caf\u00e9 9.41\u202fAM \u5bff.png",
        ),  # ordinary names of people's files
    ],
)
def test_redact_escapes_control_characters(uri: str, expected: str) -> None:
    assert redact(uri) == redact(expected) == expected
    expected.encode()


@given(st.text(), st.text())
def test_redact_never_raises_and_is_idempotent(prefix: str, suffix: str) -> None:
    output = redact(f"{prefix}://{suffix}")
    assert redact(output) == output


NAME = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(host=NAME, path=NAME, secret=st.text("SECRET", min_size=6))
def test_redact_never_shows_a_secret(host: str, path: str, secret: str) -> None:
    place = f"s3://{host.lower()}/{path.lower()}"
    for uri in (
        f"s3://u:{secret}@{host.lower()}/{path.lower()}",
        f"s3://{secret}:{secret}@{host.lower()}/{path.lower()}",
        f"{place}?token={secret}",
        f"{place}#{secret}",
        f"{place}?{secret}#{secret}",
    ):
        assert redact(uri) == place


def test_sanitized_error_drops_its_causes() -> None:
    for cause in (StorageUnavailable("s3://b/a: later"), None):
        try:
            try:
                raise OSError("GET https://h/a?token=hunter2\nhunter2")
            except OSError as error:
                if cause is None:
                    raise
                raise cause from error
        except Exception as error:
            safe = errors.sanitize_for_log(error)
        text = "".join(traceback.format_exception(safe))
        assert "hunter2" not in text.replace('raise OSError("GET https://h/a?token=hunter2\\nhunter2")', "")
        assert "test_errors.py" in text
        assert safe is cause or (type(safe), str(safe)) == (NstError, "unexpected OSError: GET https://h/a")


@pytest.mark.parametrize(
    ("error", "transient", "ends"),
    [
        (errors.StorageUnavailable("x"), True, False),
        (errors.StorageUnusable("x"), False, True),
        (errors.StorageError("x"), False, False),
        (errors.PictureError("x"), False, False),
        (errors.DivergedError("x"), False, False),
        (errors.PairError("x"), False, False),
        (errors.ManifestError("x"), False, False),
        (errors.SettingsError("x"), False, False),
        (errors.Interrupted("x"), False, True),
        (NstError("x"), False, False),
        (TimeoutError("foreign errors are translated first"), False, False),
        (KeyboardInterrupt(), False, False),
    ],
)
def test_errors_that_are_retried_or_end_the_run(error: BaseException, transient: bool, ends: bool) -> None:
    assert (is_transient(error), is_fatal_to_run(error), is_pair_failure(error)) == (
        transient,
        ends,
        not transient and not ends,
    )


@pytest.mark.parametrize(
    ("sentence", "reason", "remedy"),
    [
        ("/in/elk.png: does not exist; check the name", "/in/elk.png: does not exist", "check the name"),
        (
            "row 7, column size: 9 is below the smallest size, 64; give 64 to 8192 or leave it empty",
            "row 7, column size: 9 is below the smallest size, 64",
            "give 64 to 8192 or leave it empty",
        ),
        # a cell, a name or another library's words may hold the separator
        ("row 2, column recipe: a; b is none; give x, y", "row 2, column recipe: a; b is none", "give x, y"),
        ("/in/a; b.png: not a picture: 0 bytes; check the file", "/in/a; b.png: not a picture: 0 bytes", "check the file"),
        ("not done in 3 s; raise it, or lower steps: so", "not done in 3 s", "raise it, or lower steps: so"),
        # several problems of one row: each remedy says which column it is for
        (
            "row 2, column size: 9 is small; give more; row 2, column seed: -1 is below 0; give 0; row 2, column 5: x is "
            "spare; delete it",
            "row 2, column size: 9 is small; row 2, column seed: -1 is below 0; row 2, column 5: x is spare",
            "size: give more; seed: give 0; 5: delete it",
        ),
        ("s3://b/a.png: the store failed (TimeoutError)", "s3://b/a.png: the store failed (TimeoutError)", ""),
        ("row 2, column a: bad; row 2, column b: worse; mend it", "row 2, column a: bad; row 2, column b: worse", "b: mend it"),
        ("", "", ""),
    ],
)
def test_a_sentence_is_a_reason_and_a_remedy(sentence: str, reason: str, remedy: str) -> None:
    assert errors.split_reason_and_remedy(sentence) == (reason, remedy)


def test_rejected_row_reasons_are_split_again() -> None:
    result = manifest.parse(b"content,style,size,seed\n,a.png,9,-1\n", "/in")
    reason, remedy = errors.split_reason_and_remedy("; ".join(manifest.group_problems_by_row(result)[2]))
    assert reason.count("row 2, column ") == 3
    assert remedy == (
        "content: give a path or a URI; size: give 64 to 8192 or leave it empty; seed: give 0 to 2147483647 or leave it empty"
    )


def test_every_error_is_in_the_tree_and_drawn_at_its_top() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) == 15
    assert all(issubclass(c, NstError) for c in classes)
    tree = errors.__doc__ or ""
    for c in classes:
        assert c.__name__ in tree
    # the command line turns these two into exit code 2, and a retry must be a storage error to be caught as one
    assert issubclass(errors.ManifestError, errors.InputError)
    assert issubclass(errors.SettingsError, errors.InputError)
    assert issubclass(errors.StorageUnavailable, errors.StorageError)
    assert issubclass(errors.StorageUnusable, errors.StorageError)
    assert issubclass(errors.PictureError, errors.PairError)


def test_secrets_are_redacted_before_a_line_is_cut() -> None:
    """Half of a user and password would not be recognized."""
    assert "hunter" not in errors.summarize(ValueError(f"{'x' * 180} https://user:hunter2@{'h' * 50}"))
