"""JSON that everybody reads alike: no member twice, no NaN, nothing behind the end, UTF-8 only."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Final, NoReturn, cast

__all__ = ["read_object"]


def read_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        ValueError: It is something else than one object of RFC 8259, or a member is there twice:
            which of the two counts differs between readers.
    """
    try:
        # Not json.loads(bytes): that guesses UTF-16 and UTF-32.
        value: object = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("is no object")  # noqa: TRY004 - it is data, not an argument, that is wrong
    return cast("dict[str, Any]", value)


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("has a member twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("has a number without bounds")
    return number


def _refuse(_: str) -> NoReturn:
    raise ValueError("has a NaN or an Infinity")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse
)
