"""What people and programs wrote, made fit for a log: one line, limited, and plain JSON.

Whatever is stored has to come back as the same canonical bytes from the JSON column of every
database, because they are part of a hash: SQLite and PostgreSQL keep the text of a number, MySQL
turns long integers into doubles and prints doubles its own way. So numbers that a double may not
hold exactly are stored as text.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final, cast

from tenancy_core.tenant import thaw

__all__ = [
    "ACTION_LIMIT",
    "DEPTH_LIMIT",
    "JSON_LIMIT",
    "TEXT_LIMIT",
    "canonical",
    "check_action",
    "clean_json",
    "clean_text",
]

ACTION_LIMIT: Final = 64
"""Longest name of an action, in characters."""

TEXT_LIMIT: Final = 1_000
"""Longest text, in characters, counted as it is stored; a longer one is cut and ends in ``…``."""

JSON_LIMIT: Final = 8_192
"""Most bytes that ``details``, and ``personal``, may have as canonical JSON."""

DEPTH_LIMIT: Final = 8
"""Deepest nesting of objects and lists; ``{"a": 1}`` has depth 1."""

_INTEGER_LIMIT: Final = 2**53 - 1
"""Beyond it a double does not hold every integer: RFC 8259, section 6."""

_LONGEST_INTEGER_BITS: Final = 3_000
"""Some 900 digits, which are below the limit of a text."""

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, format and bidi characters, surrogates, line and paragraph separators."""

_JOINERS: Final = frozenset("\u200c\u200d")
"""Scripts and emoji need them, and they move nothing around."""

_ACTION: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
_HARMLESS_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")


def check_action(action: str) -> str:
    """Return the name of an action if it is one.

    Raises:
        ValueError: It is not two or more words of ``[a-z0-9_-]`` with dots between, or longer than
            64 characters. The message does not repeat it.
    """
    if len(action) > ACTION_LIMIT or _ACTION.fullmatch(action) is None:
        raise ValueError(
            "An audit action is two or more words of a-z, 0-9, '_' and '-' with dots between, such "
            f"as 'invoice.sent', and has at most {ACTION_LIMIT} characters."
        )
    return action


def clean_text(text: str) -> str:
    r"""Return a text as it is stored: on one line, nothing hidden in it, of limited length.

    Characters that are no glyphs (newlines, escape sequences, bidi controls, halves of surrogate
    pairs) become what Python writes for them, such as ``\n``, ``\x1b`` or ``\u202e``. A backslash
    stays as it is.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers pass ids
        raise TypeError(f"An actor or a reason is a str, not {type(text).__name__}.")
    start = str.__str__(text[: TEXT_LIMIT + 1])
    if start.isprintable() and len(start) <= TEXT_LIMIT:
        return start
    pieces = [_visible(character) for character in start]
    if sum(map(len, pieces)) <= TEXT_LIMIT and len(start) <= TEXT_LIMIT:
        return "".join(pieces)
    kept: list[str] = []
    room = TEXT_LIMIT - 1
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def clean_json(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return ``details`` or ``personal`` as it is stored.

    Texts and keys are cleaned by :func:`clean_text`. Fractions, and integers beyond ±(2**53 - 1),
    become text. Tuples become lists.

    Args:
        values: JSON values; mappings and sequences may be nested.
        what: How the argument is called, for the messages.

    Raises:
        ValueError: It is nested too deep or has too many bytes, two keys become the same, or a
            value is not JSON (also NaN and Infinity). The message names the value.
    """
    cleaner = _Cleaner(what)
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise cleaner.refusal((), f"is a {type(values).__name__}; pass a dict")
    cleaned = cast("dict[str, Any]", cleaner.clean(values, ()))
    if len(canonical(cleaned)) > JSON_LIMIT:
        raise cleaner.too_long()
    return cleaned


class _Cleaner:
    """Walks through a value, and stops as soon as it is certain to be too long."""

    __slots__ = ("_left", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = JSON_LIMIT

    def refusal(self, path: tuple[str, ...], why: str) -> ValueError:
        return ValueError(f"{self._what}{''.join(path)} {why}.")

    def too_long(self) -> ValueError:
        return self.refusal((), f"has more than {JSON_LIMIT} bytes as JSON; log less of it")

    def clean(self, value: object, path: tuple[str, ...]) -> object:
        self._left -= 1
        if self._left < 0:
            raise self.too_long()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return self._integer(int(value), path)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self.refusal(path, "is NaN or infinite; JSON has no such number")
            return float.__repr__(value)
        if isinstance(value, (Mapping, list, tuple)):
            if len(path) >= DEPTH_LIMIT:
                raise self.refusal(path, f"is nested deeper than {DEPTH_LIMIT} levels")
            if isinstance(value, Mapping):
                return self._object(cast("Mapping[object, object]", value), path)
            items = cast("list[object] | tuple[object, ...]", value)
            return [self.clean(item, (*path, f"[{n}]")) for n, item in enumerate(items)]
        raise self.refusal(
            path, f"is a {type(value).__name__}; use a str, int, float, bool, None, list or dict"
        )

    def _text(self, text: str) -> str:
        cleaned = clean_text(text)
        self._left -= len(cleaned)
        return cleaned

    def _integer(self, value: int, path: tuple[str, ...]) -> int | str:
        if abs(value) <= _INTEGER_LIMIT:
            return value
        if value.bit_length() > _LONGEST_INTEGER_BITS:
            raise self.refusal(path, "is an integer of too many digits")
        return self._text(str(value))

    def _object(self, values: Mapping[object, object], path: tuple[str, ...]) -> dict[str, object]:
        cleaned: dict[str, object] = {}
        for number, (key, value) in enumerate(values.items()):
            if not isinstance(key, str):
                raise self.refusal(path, f"has a key that is a {type(key).__name__}; use a str")
            name = self._text(key)
            # A key may be an attacker's as well: one that could do harm is named by its place.
            shown = name if _HARMLESS_KEY.fullmatch(name) else f"(key {number})"
            if name in cleaned:
                raise self.refusal((*path, f".{shown}"), "is there twice once keys are cleaned")
            cleaned[name] = self.clean(value, (*path, f".{shown}"))
        return cleaned


def canonical(value: Any) -> bytes:  # noqa: ANN401 - JSON has no closed type
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: It is not JSON.
    """
    text = json.dumps(
        thaw(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")
