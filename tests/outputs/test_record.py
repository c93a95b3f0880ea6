"""JSON records: exact bytes, and no cost before the first one is read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from nst_tasks.outputs.record import Count, decode, encode


@dataclass(frozen=True)
class Dog:
    name: str
    age: Count = 3


def test_bytes_of_a_record() -> None:
    assert encode(Dog("schön")) == b'{\n "age": 3,\n "name": "sch\\u00f6n"\n}\n'


def test_missing_fields_default_and_unknown_ones_are_ignored() -> None:
    assert decode(Dog, b'{"name": "a", "mood": {"of": "today"}}') == Dog("a")


@pytest.mark.parametrize("age", [b'"3"', b"3.0", b"true", b"null", b"-1", b"9223372036854775808", b"1" * 5000])
def test_no_value_is_converted(age: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(Dog, b'{"name": "a", "age": ' + age + b"}")


def test_import_makes_no_adapter() -> None:
    """Making one takes tens of milliseconds, which `nst validate` must not spend."""
    program = "from nst_tasks.outputs import claims, ledger, outcome, record; print(record._make_adapter.cache_info().currsize)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert process.stdout == "0\n"
