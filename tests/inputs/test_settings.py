"""Settings from environment variables, with one line for each invalid value."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nst_tasks.errors import SettingsError
from nst_tasks.inputs.settings import Settings, get_range, read_environment
from nst_tasks.storage.access import Access

NUMBERS = [name for name in Settings.model_fields if get_range(name)]
TEXTS = [name for name, field in Settings.model_fields.items() if field.annotation is str]


def test_an_empty_environment_gives_the_defaults() -> None:
    assert read_environment({}) == Settings()
    assert read_environment({"NST_BATCH": "", "NST_READERS": "  ", "PATH": "/bin", "NST_UNHEARD_OF": "x"}) == Settings()


def test_every_field_has_its_variable() -> None:
    assert {*NUMBERS, *TEXTS, "allowed_roots"} == {*Settings.model_fields}
    settings = read_environment(
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
    assert settings == Settings(
        max_megapixels=50,
        device_memory_gib=2.5,
        batch=4,
        readers=3,
        retries=0,
        retry_seconds=0.5,
        allow_http=1,
        allowed_roots=("/data",),
    )
    assert settings.max_pixels == 50_000_000
    assert settings.access == Access(("/data",), web=True)
    assert Settings().access == Access((), web=False)


@pytest.mark.parametrize("field", TEXTS)
def test_text_is_stripped_and_defaults_when_empty(field: str) -> None:
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
def test_invalid_root_is_refused(root: str) -> None:
    """Such a root is not ignored, because everything is allowed without roots."""
    with pytest.raises(
        SettingsError, match="^NST_ALLOWED_ROOTS: '.*' is not a place to stay below; give whole paths"
    ) as caught:
        read_environment({"NST_ALLOWED_ROOTS": root})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # a traceback would show the secrets
    with pytest.raises(ValidationError, match="is not a place to stay below") as invalid:
        Settings(allowed_roots=(root,))
    assert "hunter2" not in str(invalid.value)


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_READERS", "5")
    assert read_environment().readers == 5


def test_construction_reads_neither_environment_nor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_READERS", "5")
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("NST_BATCH=6\n")
    assert (Settings().readers, Settings().batch) == (8, 0)
    assert (read_environment().readers, read_environment().batch) == (5, 0)
    assert read_environment({}) == Settings()


def test_variables_in_lower_case_are_ignored() -> None:
    assert read_environment({"NST_BATCH": "3", "nst_batch": "4", "NST_readers": "5"}) == Settings(batch=3)


@pytest.mark.parametrize("values", [{"batch": 257}, {"lease_seconds": 0}, {"readers": "many"}, {"unheard_of": 1}])
def test_impossible_settings_are_refused_at_construction(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


def test_settings_are_frozen_hashable_and_picklable(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(batch=3, allowed_roots=("/data", "s3://team"))
    data = pickle.dumps(settings)
    monkeypatch.setenv("NST_READERS", "5")  # a worker's environment
    assert pickle.loads(data) == settings
    assert len({settings, pickle.loads(data), Settings()}) == 2
    with pytest.raises(ValidationError):
        settings.batch = 4


@pytest.mark.parametrize("field", NUMBERS)
def test_setting_bounds_are_inclusive(field: str) -> None:
    smallest, largest = get_range(field).split("..")
    assert float(smallest) <= getattr(Settings(), field) <= float(largest)
    for bound in (smallest, largest):
        assert getattr(read_environment({"NST_" + field.upper(): bound}), field) == float(bound)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NST_READERS", "0"),
        ("NST_READERS", "65"),
        ("NST_READERS", "2.5"),
        ("NST_READERS", "4.0"),
        ("NST_READERS", "eight"),
        ("NST_RETRIES", "-1"),
        ("NST_DEVICE_MEMORY_GIB", "0.4"),
        ("NST_DEVICE_MEMORY_GIB", "nan"),
        ("NST_DEVICE_MEMORY_GIB", "inf"),
        ("NST_RETRY_SECONDS", "-0.1"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_and_limits(name: str, text: str) -> None:
    field = name.removeprefix("NST_").lower()
    with pytest.raises(SettingsError) as caught:
        read_environment({name: text})
    meaning = Settings.model_fields[field].description
    assert str(caught.value) == f"{name}: {text!r} is not a number in {get_range(field)} ({meaning})"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("NST_BATCH", "is not a number in 0..256 (the most pairs in a GPU's batch, 0 chooses 8; a CPU's holds one)"),
        ("NST_DEVICE_MEMORY_GIB", "is not a number in 0.5..1000 (memory that one batch may take on a device, in GiB)"),
        ("NST_RETRY_SECONDS", "is not a number in 0..600 (the delay before the first retry, doubled each time up to 15 s)"),
        (
            "NST_ALLOWED_ROOTS",
            "is not a place to stay below; give whole paths or URIs such as /data s3://team, separated by spaces or |",
        ),
    ],
)
def test_refusal_has_the_range_and_meaning(name: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_environment({name: " x "})
    assert str(caught.value) == f"{name}: 'x' {sentence}"


def test_all_invalid_values_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_environment({"NST_ALLOWED_ROOTS": "a /b c", "NST_READERS": "no", "NST_BATCH": "9999", "NST_RETRIES": "3"})
    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert names == ["NST_BATCH", "NST_READERS", "NST_ALLOWED_ROOTS", "NST_ALLOWED_ROOTS"]


def test_retries_outlast_a_minute_of_outage() -> None:
    assert sum(Settings().retry_delays) > 110
    assert max(Settings().retry_delays) == 15
    assert Settings(retries=3, retry_seconds=1).retry_delays == [1, 2, 4]
    assert Settings(retries=2, retry_seconds=60).retry_delays == [60, 60]  # an explicit longer delay is kept
    assert Settings(retries=3, retry_seconds=0).retry_delays == [0, 0, 0]
    assert Settings(retries=0).retry_delays == []


def test_example_has_every_variable_at_its_default() -> None:
    lines = Path(__file__).parents[2].joinpath(".env.example").read_text().splitlines()
    example = dict(line.removeprefix("# ").split("=") for line in lines if line.startswith("# NST_"))
    assert [*example] == [f"NST_{name.upper()}" for name in Settings.model_fields]
    assert read_environment(example) == Settings()
    assert [name for name, text in example.items() if not text] == [
        *("NST_INBOX", "NST_OUT", "NST_DASK_ADDRESS", "NST_RAY_ADDRESS", "NST_ALLOWED_ROOTS")
    ]


def test_the_example_sets_nothing_by_itself() -> None:
    lines = Path(__file__).parents[2].joinpath(".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
