"""Environment variables become settings, or one line each."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from nst_tasks.errors import SettingsError
from nst_tasks.inputs.settings import ENVIRONMENT_PREFIX, NUMBER_FIELDS, ROOTS_FIELD, TEXT_FIELDS, Settings, read_environment
from nst_tasks.storage.access import Access


def test_an_empty_environment_gives_the_defaults() -> None:
    assert read_environment({}) == Settings()
    assert read_environment({"NST_BATCH": "", "NST_READERS": "  ", "PATH": "/bin", "NST_UNHEARD_OF": "x"}) == Settings()


def test_every_field_has_its_variable() -> None:
    assert [*NUMBER_FIELDS, *TEXT_FIELDS, ROOTS_FIELD] == [field.name for field in fields(Settings)]
    found = read_environment(
        {
            "NST_MAX_MEGAPIXELS": "50",
            "NST_DEVICE_MEMORY_GIB": "2.5",
            "NST_BATCH": " 4 ",
            "NST_READERS": "3",
            "NST_RETRIES": "0",
            "NST_RETRY_SECONDS": "0.5",
            "NST_ALLOW_HTTP": "1",
            "NST_ALLOWED_ROOTS": "/data",
        }
    )
    assert found == Settings(50, 2.5, 4, 3, 0, 0.5, allow_http=1, allowed_roots=("/data",))
    assert found.max_pixels == 50_000_000
    assert found.access == Access(("/data",), web=True)
    assert Settings().access == Access((), web=False)


@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_a_text_is_taken_as_it_is_and_its_default_when_empty(field: str) -> None:
    assert getattr(read_environment({"NST_" + field.upper(): " a b "}), field) == "a b"
    assert getattr(read_environment({"NST_" + field.upper(): " "}), field) == getattr(Settings(), field)


@pytest.mark.parametrize(
    ("text", "roots"),
    [
        ("", ()),
        ("  ", ()),
        (" /data\ts3://team/inbox\n", ("/data", "s3://team/inbox")),
        ("/my data|s3://team", ("/my data", "s3://team")),
        ("/my data|", ("/my data",)),
        ("/a/../b file:///c hdfs://node/d", ("/a/../b", "file:///c", "hdfs://node/d")),
    ],
)
def test_allowed_roots_are_separated_by_spaces_or_bars(text: str, roots: tuple[str, ...]) -> None:
    assert read_environment({"NST_ALLOWED_ROOTS": text}).allowed_roots == roots


@pytest.mark.parametrize(
    "root",
    [
        "data",
        "~/data",
        "|",
        "s3://team/../other",
        "file://host/a",
        "zip://x::s3://team",
        "s3://u:hunter2@team",
        "https://h/?hunter2",
    ],
)
def test_a_root_that_is_no_place_is_refused(root: str) -> None:
    """Never left out in silence: without roots, everything is allowed."""
    with pytest.raises(
        SettingsError, match="^NST_ALLOWED_ROOTS: '.*' is not a place to stay below; give whole paths"
    ) as caught:
        read_environment({"NST_ALLOWED_ROOTS": root})
    assert "hunter2" not in str(caught.value)


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_READERS", "5")
    assert read_environment().readers == 5


@pytest.mark.parametrize("field", NUMBER_FIELDS)
def test_the_bounds_themselves_are_allowed_and_defaults_lie_between(field: str) -> None:
    smallest, largest, _ = NUMBER_FIELDS[field]
    assert float(smallest) <= getattr(Settings(), field) <= float(largest)
    for bound in (smallest, largest):
        assert getattr(read_environment({"NST_" + field.upper(): bound}), field) == float(bound)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NST_READERS", "0"),
        ("NST_READERS", "65"),
        ("NST_READERS", "2.5"),
        ("NST_READERS", "eight"),
        ("NST_RETRIES", "-1"),
        ("NST_DEVICE_MEMORY_GIB", "0.4"),
        ("NST_DEVICE_MEMORY_GIB", "nan"),
        ("NST_DEVICE_MEMORY_GIB", "inf"),
        ("NST_RETRY_SECONDS", "-0.1"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_and_limits(name: str, text: str) -> None:
    smallest, largest, meaning = NUMBER_FIELDS[name.removeprefix("NST_").lower()]
    with pytest.raises(SettingsError) as caught:
        read_environment({name: text})
    assert str(caught.value) == f"{name}: {text!r} is not a number in {smallest}..{largest} ({meaning})"


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_environment({"NST_READERS": "no", "NST_BATCH": "9999", "NST_RETRIES": "3"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["NST_BATCH", "NST_READERS"]


def test_the_retries_outlast_a_minute_without_the_store_and_wait_no_longer_than_needed() -> None:
    assert sum(Settings().retry_delays) > 110
    assert max(Settings().retry_delays) == 15
    assert Settings(retries=3, retry_seconds=1).retry_delays == [1, 2, 4]
    assert Settings(retries=2, retry_seconds=60).retry_delays == [60, 60]  # who asks for more gets it
    assert Settings(retries=3, retry_seconds=0).retry_delays == [0, 0, 0]
    assert Settings(retries=0).retry_delays == []


def test_the_example_names_every_variable_with_its_default_and_meaning() -> None:
    lines = Path(__file__).parents[2].joinpath(".env.example").read_text().splitlines()
    before = dict(zip(lines[1:], lines, strict=False))
    names = [ENVIRONMENT_PREFIX + field.name.upper() for field in fields(Settings)]
    assert [line.removeprefix("# ").partition("=")[0] for line in lines if line.startswith("# NST_")] == names
    for field in fields(Settings):
        found = next(line for line in lines if line.startswith(f"# {ENVIRONMENT_PREFIX}{field.name.upper()}="))
        value = found.partition("=")[2]
        assert read_environment({ENVIRONMENT_PREFIX + field.name.upper(): value}) == Settings()
        assert bool(value) == bool(field.default not in ("", ()))
        meaning = NUMBER_FIELDS[field.name][2] if field.name in NUMBER_FIELDS else TEXT_FIELDS.get(field.name)
        assert meaning is None or before[found] == f"# {meaning}"


def test_the_example_sets_nothing_by_itself() -> None:
    lines = Path(__file__).parents[2].joinpath(".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
