"""Marked values of metadata: stored as ciphertext, returned marked, never in plain text."""

from __future__ import annotations

import copy
import json
import pickle
from base64 import b64decode, b64encode
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from fastapi.encoders import jsonable_encoder
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter

import tenancy_core
from tenancy_core.crypto import Sensitive, TenantCipher, reveal_metadata, seal_metadata
from tenancy_core.errors import DecryptionError
from tenancy_core.tenant import thaw

CANARY = "canary-4f1d9c"
KEYS = TenantCipher([SecretStr("1" * 32)])
ACME = UUID(int=1)
WRAPPED = KEYS.new_data_key(ACME)
CIPHER = KEYS.open(ACME, WRAPPED)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["a", "0", "a/b", "a~1b", "~", "#0", "/", "$", ""]
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
plain = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
marked = st.recursive(
    scalars | texts | plain.map(Sensitive),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any) -> list[str]:
    """Return the field name of every sensitive value, as the cipher is told it."""
    asked: list[str] = []

    class Asked:
        def encrypt(self, field: str, value: bytes) -> bytes:
            asked.append(field)
            return value

    seal_metadata(value, Asked())
    return asked


# -- the wrapper -----------------------------------------------------------------------------------


def test_it_is_offered_by_the_facade() -> None:
    assert tenancy_core.Sensitive is Sensitive


@given(plain)
def test_a_sensitive_value_comes_back_and_is_not_printed(value: Any) -> None:
    marked = Sensitive(value)
    assert marked.reveal() == value
    for text in (repr(marked), str(marked), f"{marked}", repr([marked]), f"{marked!r:>20}"):
        assert text.strip("[] ") == "Sensitive(…)"


@given(plain, plain)
def test_two_are_equal_if_their_json_is(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (Sensitive(one) == Sensitive(other)) == same
    assert Sensitive(one) == Sensitive(one)
    assert hash(Sensitive(one)) == hash(Sensitive(copy.deepcopy(one)))
    assert Sensitive(one) != one


def test_it_cannot_be_changed_in_any_way() -> None:
    inner = {"a": [CANARY]}
    marked = Sensitive(inner)
    inner["a"].append("changed")
    marked.reveal()["a"].append("changed")
    assert marked.reveal() == {"a": [CANARY]}
    for attempt in (
        lambda: setattr(marked, "_json", CANARY),
        lambda: setattr(marked, "other", CANARY),
        lambda: delattr(marked, "_json"),
    ):
        with pytest.raises(AttributeError, match="cannot be changed") as refused:
            attempt()
        assert CANARY not in str(refused.value)
    assert copy.copy(marked) is marked
    assert copy.deepcopy([marked])[0] is marked
    assert marked.reveal() == {"a": [CANARY]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_S1_it_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled") as refused:
        pickle.dumps({"a": Sensitive(CANARY)}, protocol)
    assert CANARY not in str(refused.value)


def test_S1_whatever_makes_json_of_objects_makes_none_of_it() -> None:
    """FastAPI falls back to ``dict`` and ``vars`` for objects that it does not know."""
    for encode in (json.dumps, jsonable_encoder, TypeAdapter(Any).dump_json, vars, dict):
        with pytest.raises((TypeError, ValueError)) as refused:
            encode(Sensitive({CANARY: CANARY}))
        assert CANARY not in str(refused.value) + repr(refused.value)


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NO_JSON: dict[str, Any] = {
    "bytes": b"a",
    "a set": {"a"},
    "NaN": float("nan"),
    "infinity": [float("inf")],
    "an object": object(),
    "a secret of pydantic": SecretStr(CANARY),
    "a number as a name": {1: "a"},
    "a name that is half a character": {"\ud83d": "a"},
    "itself": loop(),
    "another sensitive value": [Sensitive("a")],
    "what looks sealed": {"$sealed": "AAAA"},
    "a number that no JSON parser reads": 10**5000,
}


@pytest.mark.parametrize("what", NO_JSON)
def test_what_is_no_json_is_refused_and_not_repaired(what: str) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z].*") as refused:
        Sensitive(NO_JSON[what])
    assert CANARY not in str(refused.value)


# -- sealing ---------------------------------------------------------------------------------------


@given(st.dictionaries(texts, marked, max_size=4))
def test_what_is_sealed_comes_back_and_only_what_is_marked_is_sealed(metadata: Any) -> None:
    sealed = seal_metadata(metadata, CIPHER)
    stored = json.loads(json.dumps(sealed))
    revealed = reveal_metadata(stored, CIPHER)
    assert revealed == metadata
    assert reveal_metadata(MappingProxyType(stored), CIPHER) == metadata
    # As if nothing had been marked, apart from what was.
    assert _without(sealed) == _without(metadata)


def _without(value: Any) -> Any:
    if isinstance(value, Sensitive) or (isinstance(value, dict) and "$sealed" in value):
        return "sealed"
    if isinstance(value, dict):
        return {name: _without(item) for name, item in value.items()}
    return [_without(item) for item in value] if isinstance(value, list) else value


def test_K8_what_is_stored_holds_no_plain_text() -> None:
    metadata = {"a": Sensitive(CANARY), "b": [{"c": Sensitive({CANARY: [CANARY]})}], "d": "open"}
    stored = json.dumps(seal_metadata(metadata, CIPHER))
    assert CANARY not in stored
    for encoded in (CANARY.encode().hex(), b64encode(CANARY.encode()).decode().rstrip("=")):
        assert encoded not in stored
    assert '"open"' in stored


def test_a_sealed_value_is_an_object_with_one_key() -> None:
    sealed = seal_metadata({"a": Sensitive("x")}, CIPHER)
    assert list(sealed["a"]) == ["$sealed"]
    assert len(b64decode(sealed["a"]["$sealed"])) == len('"x"') + 33
    assert seal_metadata({"a": Sensitive("x")}, CIPHER) != sealed


def test_without_encryption_nothing_is_stored_in_plain_text() -> None:
    assert seal_metadata({"a": ["b", 1]}, None) == {"a": ["b", 1]}
    with pytest.raises(ValueError, match="TENANCY_ENABLE_ENCRYPTION=true") as refused:
        seal_metadata({"a": [{"b": Sensitive(CANARY)}]}, None)
    assert CANARY not in str(refused.value)
    with pytest.raises(DecryptionError, match="TENANCY_ENABLE_ENCRYPTION=true"):
        reveal_metadata(seal_metadata({"a": Sensitive(1)}, CIPHER), None)
    assert reveal_metadata({"a": 1}, None) == {"a": 1}


FORGED: tuple[Any, ...] = (
    {"a": {"$sealed": "AAAA"}},
    {"a": {"$sealed": None}},
    {"a": [{"$sealed": "AAAA", "b": 1}]},
    {"$sealed": "AAAA"},
    {"a": {"$sealed": Sensitive("x")}},
)


@pytest.mark.parametrize("metadata", FORGED, ids=repr)
@pytest.mark.parametrize("cipher", [CIPHER, None], ids=["on", "off"])
def test_nobody_passes_a_sealed_value_in_from_outside(metadata: Any, cipher: Any) -> None:
    with pytest.raises(ValueError, match="'\\$sealed', which is kept for encrypted values"):
        seal_metadata(metadata, cipher)


def test_what_is_stored_already_stays_as_it_is() -> None:
    stored = seal_metadata({"a": Sensitive("x"), "b": [Sensitive("y")], "c": 1}, CIPHER)
    frozen = MappingProxyType({**stored, "a": MappingProxyType(stored["a"])})
    changed = seal_metadata({**frozen, "c": Sensitive(2)}, CIPHER, current=frozen)
    assert changed["a"] == stored["a"]
    assert changed["b"] == stored["b"]
    assert json.loads(json.dumps(changed)) == changed
    assert reveal_metadata(changed, CIPHER) == {
        "a": Sensitive("x"),
        "b": [Sensitive("y")],
        "c": Sensitive(2),
    }
    assert seal_metadata(dict(frozen), None, current=frozen) == stored
    for moved in (
        {"b": stored["a"]},
        {"a": stored["b"][0]},
        {"b": [1, stored["b"][0]]},
        {"a": {"$sealed": stored["a"]["$sealed"], "x": 1}},
    ):
        with pytest.raises(ValueError, match="kept for encrypted values"):
            seal_metadata(moved, CIPHER, current=frozen)


@pytest.mark.parametrize(
    "what",
    sorted(
        {*NO_JSON}
        - {
            "a number that no JSON parser reads",
            "another sensitive value",
            "what looks sealed",
        }
    ),
)
def test_metadata_is_json_as_a_whole(what: str) -> None:
    with pytest.raises(ValueError, match=r"JSON"):
        seal_metadata({"a": NO_JSON[what]}, CIPHER)


# -- where a value belongs -------------------------------------------------------------------------


def test_a_sealed_value_belongs_to_its_place_and_its_tenant() -> None:
    stored = seal_metadata({"a": Sensitive("x"), "b": [Sensitive("y"), 1]}, CIPHER)
    other = KEYS.open(UUID(int=2), KEYS.new_data_key(UUID(int=2)))
    for metadata, cipher in (
        ({"b": stored["a"]}, CIPHER),
        ({"a": stored["b"][0]}, CIPHER),
        ({"b": [1, stored["b"][0]]}, CIPHER),
        ({"b": {"0": stored["b"][0]}}, CIPHER),
        ({"a": {"a": stored["a"]}}, CIPHER),
        (stored, other),
    ):
        with pytest.raises(DecryptionError):
            reveal_metadata(metadata, cipher)


@example({"a": [Sensitive(0)]}, {"a": {"0": Sensitive(0)}})
@example({"a": [Sensitive(0)]}, {"a#0": Sensitive(0)})
@example({"a/b": Sensitive(0)}, {"a": {"b": Sensitive(0)}})
@example({"a~1b": Sensitive(0)}, {"a/b": Sensitive(0)})
@example({"": {"": Sensitive(0)}}, {"/": Sensitive(0)})
@given(st.dictionaries(texts, marked, max_size=3), st.dictionaries(texts, marked, max_size=3))
def test_no_two_places_have_one_name(one: Any, other: Any) -> None:
    def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        if isinstance(value, Sensitive):
            return [at]
        if isinstance(value, dict):
            return [place for name in value for place in places(value[name], (*at, name))]
        if isinstance(value, list):
            return [place for i, item in enumerate(value) for place in places(item, (*at, i))]
        return []

    named = [*zip(places(one), paths(one), strict=True)]
    named += zip(places(other), paths(other), strict=True)
    for place, name in named:
        for other_place, other_name in named:
            assert (name == other_name) == (place == other_place)


def test_a_place_has_a_name_that_no_other_kind_of_field_has() -> None:
    assert paths({"a": [{"b/c#~": Sensitive(0)}]}) == ["metadata/a#0/b~1c~2~0"]


BROKEN = {
    "no text": 5,
    "no base64": "*",
    "empty": "",
    "base64 with a line break": "AAAA\n",
    "base64 with spare bits": None,
    "base64 of another alphabet": None,
    "not ASCII": "ä",
    "another key beside it": None,
}


@pytest.mark.parametrize("how", BROKEN)
def test_S4_a_sealed_value_in_any_other_form_is_refused(how: str) -> None:
    cipher = KEYS.open(ACME, WRAPPED)
    while True:  # until both characters that differ between the alphabets, and padding, are there
        stored = seal_metadata({"a": Sensitive("xyz")}, cipher)
        text: str = stored["a"]["$sealed"]
        if "+" in text and text.endswith("=") and not text.endswith("=="):
            break
    spare = text[:-2] + chr(ord(text[-2]) + 1) + "="
    forms: dict[str, Any] = {
        "base64 with spare bits": {"$sealed": spare},
        "base64 of another alphabet": {"$sealed": text.replace("+", "-")},
        "another key beside it": {"$sealed": text, "b": 1},
    }
    if how == "base64 with spare bits":
        assert b64decode(spare) == b64decode(text)
    assert reveal_metadata(stored, cipher) == {"a": Sensitive("xyz")}
    with pytest.raises(DecryptionError):
        reveal_metadata({"a": forms.get(how, {"$sealed": BROKEN[how]})}, cipher)


def test_what_was_encrypted_as_something_else_is_no_json_value() -> None:
    stored = {"a": {"$sealed": b64encode(CIPHER.encrypt("metadata/a", b"no json")).decode()}}
    with pytest.raises(DecryptionError):
        reveal_metadata(stored, CIPHER)


def test_frozen_and_thawed_metadata_are_the_same_here() -> None:
    stored = seal_metadata({"a": [{"b": Sensitive(1)}]}, CIPHER)
    frozen = MappingProxyType({"a": (MappingProxyType(stored["a"][0]),)})
    assert thaw(frozen) == stored
    assert reveal_metadata(frozen, CIPHER) == {"a": [{"b": Sensitive(1)}]}
