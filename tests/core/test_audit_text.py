"""What goes into the log is JSON that every database gives back as it was, and of limited size."""

from __future__ import annotations

import json
import sys
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.audit import write_events
from tenancy_core.audit.text import (
    DEPTH_LIMIT,
    JSON_LIMIT,
    TEXT_LIMIT,
    canonical,
    clean_json,
    clean_text,
)

if TYPE_CHECKING:
    from tenancy_core import Tenancy

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


# -- text -----------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(codec=None), max_size=1200))
def test_A6_a_text_is_one_line_of_limited_length_and_valid_utf_8(text: str) -> None:
    kept = clean_text(text)
    assert len(kept) <= TEXT_LIMIT
    assert len(kept.splitlines()) <= 1
    kept.encode("utf-8")
    assert clean_text(kept) == kept, "cleaning twice changes nothing"
    if text.isprintable() and len(text) <= TEXT_LIMIT:
        assert kept == text


def test_A6_every_character_that_moves_or_hides_others_is_escaped() -> None:
    import unicodedata

    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kept = clean_text(character)
        if unicodedata.category(character) not in hidden or code in (0x200C, 0x200D):
            assert kept == character
        else:
            assert kept.isascii()
            assert kept.isprintable()
            assert kept.encode().decode("unicode_escape") == character, "nothing is lost"


def test_A6_an_escape_is_never_cut_in_half() -> None:
    for length in range(TEXT_LIMIT - 6, TEXT_LIMIT + 1):
        kept = clean_text("x" * length + "\u202e" * 10)
        assert len(kept) <= TEXT_LIMIT
        assert kept.rstrip("…").rstrip("x") in ("", r"\u202e")


def test_a_text_of_the_limit_is_kept_whole() -> None:
    assert clean_text("ä" * TEXT_LIMIT) == "ä" * TEXT_LIMIT
    assert clean_text("ä" * (TEXT_LIMIT + 1)) == "ä" * (TEXT_LIMIT - 1) + "…"
    assert clean_text("\n" * (TEXT_LIMIT // 2)) == r"\n" * (TEXT_LIMIT // 2)


def test_a_family_and_a_persian_word_stay_readable() -> None:
    for text in ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "می\u200cخواهم"):
        assert clean_text(text) == text


# -- JSON -----------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_A6_what_is_kept_comes_back_as_the_same_bytes(wanted: dict[str, Any]) -> None:
    try:
        kept = clean_json(wanted, "details")
    except ValueError as error:
        assert "twice" in str(error) or "too many digits" in str(error)  # noqa: PT017 - which of them
        return
    sealed = canonical(kept)
    assert len(sealed) <= JSON_LIMIT
    assert canonical(json.loads(json.dumps(kept))) == sealed
    # MySQL: other key order, long integers and fractions as doubles.
    as_doubles = json.loads(json.dumps(kept), parse_int=lambda n: int(float(n)))
    assert canonical(dict(reversed(as_doubles.items()))) == sealed
    assert clean_json(kept, "details") == kept


class Size(IntEnum):
    BIG = 7


class Colour(StrEnum):
    RED = "red"


def test_numbers_that_a_double_may_not_hold_become_text() -> None:
    kept = clean_json(
        {
            "half": 0.5,
            "small": 1e-300,
            "exact": 2**53 - 1,
            "long": 2**53,
            "longer": -(10**30),
            "true": True,
            "size": Size.BIG,
            "colour": Colour.RED,
        },
        "details",
    )
    assert kept == {
        "half": "0.5",
        "small": "1e-300",
        "exact": 2**53 - 1,
        "long": str(2**53),
        "longer": "-1" + "0" * 30,
        "true": True,
        "size": 7,
        "colour": "red",
    }
    assert {key: type(value) for key, value in kept.items()} == {
        "half": str,
        "small": str,
        "exact": int,
        "long": str,
        "longer": str,
        "true": bool,
        "size": int,
        "colour": str,
    }


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": 1}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


cycle: dict[str, Any] = {}
cycle["again"] = cycle


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"a": float("nan")}, "details.a is NaN or infinite"),
        ({"a": [1, float("-inf")]}, "details.a[1] is NaN or infinite"),
        ({"a": {1, 2}}, "details.a is a set"),
        ({"a": b"bytes"}, "details.a is a bytes"),
        ({"a": {1: 2}}, "details.a has a key that is a int"),
        ({"a": 10**1000}, "details.a is an integer of too many digits"),
        (nested(DEPTH_LIMIT + 1), "is nested deeper than 8 levels"),
        (cycle, "is nested deeper than 8 levels"),
        ([1], "details is a list; pass a dict"),
        ({"a\n": 1, "a\\n": 2}, "details.(key 1) is there twice once keys are cleaned"),
        ({"\x1b[31m": object()}, "details.(key 0) is a object"),
        ({f"k{n}": n for n in range(2_000)}, "details has more than 8192 bytes"),
        ({"a": ["x" * 1_000] * 9}, "details has more than 8192 bytes"),
        ({"a": ["€" * 1_000] * 2}, "details has more than 8192 bytes"),
        ({"a": [None] * 10_000_000}, "details has more than 8192 bytes"),
    ],
    ids=[
        "nan",
        "infinity",
        "set",
        "bytes",
        "key",
        "digits",
        "deep",
        "cycle",
        "list",
        "twice",
        "hostile-key",
        "many",
        "long",
        "escaped",
        "huge",
    ],
)
def test_A6_what_is_no_json_is_refused_and_named(wanted: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r"^details") as caught:
        clean_json(wanted, "details")
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_as_large_and_as_deep_as_allowed_is_kept() -> None:
    assert clean_json(nested(DEPTH_LIMIT), "details") == nested(DEPTH_LIMIT)
    head = len(canonical({"a": ["x" * 900] * 8, "b": ""}))
    largest = {"a": ["x" * 900] * 8, "b": "x" * (JSON_LIMIT - head)}
    assert len(canonical(clean_json(largest, "details"))) == JSON_LIMIT
    frozen = MappingProxyType({"a": (1, MappingProxyType({"b": 2}))})
    assert clean_json(frozen, "details") == {"a": [1, {"b": 2}]}


@pytest.mark.anyio
async def test_what_the_database_gives_back_is_what_was_sealed(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme"):
        event = await tenancy.audit.record(
            "note.written",
            details={
                "z": 0.1,
                "a": -0.0,
                "é": "é\U0001f512",
                "n": [2**63, -(2**53), 1e22, True, None],
            },
            personal={"\u2028": "\ud800", "empty": {}, "list": []},
        )
        assert event == (await tenancy.audit.read(after=2))[0]
        assert (await tenancy.audit.verify()).ok
    await write_events(tenancy, "acme", 5)
    assert (await tenancy.audit.verify("acme")).ok
