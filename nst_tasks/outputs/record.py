"""JSON records of the output: outcome markers, claims and ledger entries are dataclasses, written sorted and read strictly.

A field that the class does not have is ignored, as a newer version of nst may have added it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""Type of a field that holds an integer of at most 64 bits, such as the tables of a report can hold."""


def encode(record: Any) -> bytes:
    """Encode a dataclass as JSON with sorted keys, so that equal records give equal bytes."""
    return (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()


def decode(kind: type[T], data: bytes) -> T:
    """Decode JSON as a value of type `kind`; no value is converted from another type.

    Raises:
        pydantic.ValidationError: The bytes are not JSON, are nested too deeply, or lack a field or have a wrong one.
    """
    value: T = _make_adapter(kind).validate_json(data, strict=True)  # type: ignore[arg-type]  # every class is hashable
    return value


@functools.cache  # made when first needed, because making it is slow and validating a manifest does not need it
def _make_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
