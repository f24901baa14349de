"""Whatever is done to a token: it holds if it is the one that was signed, and else it does not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from support.scopes import connection
from support.tokens import (
    FLAT,
    SECRET,
    bearer,
    claims,
    ec_key,
    ed_key,
    listed,
    pem,
    rsa_key,
    segment,
    sign,
    token,
)
from tenancy_core import TenancyConfig
from tenancy_core._resolvers.jwt import JwtResolver
from tenancy_core._resolvers.jwt import resolver as resolver_module
from tenancy_core._resolvers.jwt.keys import Key
from tenancy_core._resolvers.jwt.strict_json import read_object
from tenancy_core.errors import InvalidCredentials, InvalidIdentifier, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

URL = "sqlite+aiosqlite:///./data/control.db"
KEYS: dict[str, Any] = {
    "RS256": rsa_key(),
    "PS256": rsa_key(),
    "ES256": ec_key(),
    "EdDSA": ed_key(),
    "HS256": SECRET,
}
NOW = 1_800_000_000
GOOD = claims(iat=NOW, exp=NOW + 600)


def resolver(algorithm: str) -> JwtResolver:
    keys: dict[str, Any] = (
        {"secret": SECRET}
        if algorithm == "HS256"
        else {"public_key": pem(KEYS[algorithm]), "algorithms": [algorithm]}
    )
    return JwtResolver(TenancyConfig(database_url=URL, **listed(keys)), now=lambda: NOW)


RESOLVERS = {algorithm: resolver(algorithm) for algorithm in KEYS}
TOKENS = {algorithm: token(GOOD, key=key, algorithm=algorithm) for algorithm, key in KEYS.items()}
algorithms = st.sampled_from(sorted(KEYS))


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that waits for nothing, as with keys from the settings."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits for something")


def outcome(value: bytes, algorithm: str = "HS256") -> Any:
    """Return the tenant, or the kind of refusal. Any other error fails the test."""
    sent = connection((b"authorization", value))
    try:
        claim = at_once(RESOLVERS[algorithm].resolve(sent))
    except RequestRefused as error:
        return type(error)
    if claim is None:
        return None
    assert (claim.source, claim.verified) == ("jwt", True)
    return claim.identifier


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_tokens_themselves_hold(algorithm: str) -> None:
    assert outcome(b"Bearer " + TOKENS[algorithm], algorithm) == "acme"


@settings(max_examples=300)
@given(algorithms, st.data())
def test_a_token_with_another_byte_does_not_hold(algorithm: str, data: st.DataObject) -> None:
    good = TOKENS[algorithm]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 3)))
    put = data.draw(st.binary(max_size=3) | st.sampled_from([b"=", b".", b"A", b"_", b"+", b"/"]))
    changed = good[:start] + put + good[end:]
    # A space behind the scheme is none of the token.
    assume(changed.lstrip(b" ") != good)
    assert outcome(b"Bearer " + changed, algorithm) is InvalidCredentials


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
HEADER_NAMES = ["alg", "kid", "typ", "crit", "b64", "jku", "jwk", "x5u", "x5c", "cty", "zip", "enc"]


@settings(max_examples=300)
@given(
    algorithms,
    st.dictionaries(st.sampled_from(HEADER_NAMES), values | st.sampled_from([*KEYS, "none"])),
    st.dictionaries(st.sampled_from([*GOOD, "nbf", "sub"]), values),
)
def test_a_signature_is_for_one_header_and_one_payload(
    algorithm: str, header: dict[str, Any], changes: dict[str, Any]
) -> None:
    head, body, signature = TOKENS[algorithm].split(b".")
    new_head = segment({"alg": algorithm, "typ": "JWT", **header})
    new_body = segment({**GOOD, **changes})
    assume((new_head, new_body) != (head, body))
    for forged in (
        new_head + b"." + body + b"." + signature,
        head + b"." + new_body + b"." + signature,
        new_head + b"." + new_body + b"." + signature,
        new_head + b"." + new_body + b".",
    ):
        if forged != TOKENS[algorithm]:
            assert outcome(b"Bearer " + forged, algorithm) is InvalidCredentials


@settings(max_examples=300)
@given(algorithms, st.binary(max_size=600))
@example("ES256", bytes(64))
@example("ES256", b"\xff" * 64)
@example("RS256", bytes(256))
@example("RS256", (1).to_bytes(256, "big"))
@example("PS256", b"\xff" * 256)
@example("EdDSA", bytes(64))
@example("EdDSA", b"\x01" + bytes(63))
@example("HS256", b"")
def test_a_signature_that_was_guessed_does_not_hold(algorithm: str, guess: bytes) -> None:
    message = TOKENS[algorithm].rpartition(b".")[0]
    assert outcome(b"Bearer " + message + b"." + segment(guess), algorithm) is InvalidCredentials


@settings(max_examples=200)
@given(st.sampled_from(sorted(KEYS)), st.sampled_from(sorted(KEYS)))
def test_a_key_signs_with_its_own_algorithm_only(ours: str, theirs: str) -> None:
    expected = "acme" if ours == theirs else InvalidCredentials
    assert outcome(b"Bearer " + TOKENS[theirs], ours) == expected


@settings(max_examples=300)
@given(value=st.binary(max_size=300), prefixed=st.booleans())
def test_no_header_is_an_error_of_ours(*, value: bytes, prefixed: bool) -> None:
    found = outcome(b"Bearer " * prefixed + value)
    assert found in (None, InvalidCredentials, InvalidIdentifier)
    assert not prefixed or found is InvalidCredentials


# -- a holder of the key who makes strange tokens ----------------------------------------------


def signed(header: bytes, payload: bytes) -> bytes:
    message = segment(header) + b"." + segment(payload)
    return b"Bearer " + message + b"." + segment(sign(message, SECRET, "HS256"))


HEAD = b'{"alg":"HS256"}'
BODY = json.dumps(GOOD).encode()


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*GOOD, "nbf"]), values))
def test_claims_are_what_the_rules_say_whoever_signed_them(changes: dict[str, Any]) -> None:
    whole = {**GOOD, **changes}
    found = outcome(signed(HEAD, json.dumps(whole).encode()))
    assert found in (InvalidCredentials, whole["tenant_id"])
    if found == whole["tenant_id"]:
        assert type(whole["exp"]) is int
        assert whole["exp"] >= NOW - 30
        assert whole["iss"] == GOOD["iss"]
        assert whole["aud"] == GOOD["aud"]
        assert found.isascii()


TWICE = [
    (b'{"alg":"HS256","alg":"HS256"}', BODY),
    (b'{"alg":"none","alg":"HS256"}', BODY),
    (b'{"alg":"HS256","kid":"a","kid":"b"}', BODY),
    (HEAD, BODY[:-1] + b',"tenant_id":"acme"}'),
    (HEAD, BODY[:-1] + b',"tenant_id":"beta"}'),
    (HEAD, BODY[:-1] + b',"exp":1800000600}'),
    (HEAD, BODY[:-1] + b',"\\u0065xp":1800000600}'),
    (HEAD, BODY[:-1] + b',"own":{"a":1,"a":2}}'),
]
NO_OBJECTS = [
    (HEAD, b"[" + BODY + b"]"),
    (HEAD, BODY + BODY),
    (HEAD, BODY + b" x"),
    (HEAD, BODY + b"\x00"),
    (HEAD, b"\xef\xbb\xbf" + BODY),
    (HEAD, BODY.decode().encode("utf-16")),
    (HEAD, BODY.decode().encode("utf-32")),
    (HEAD, BODY[:-1] + b',"x":NaN}'),
    (HEAD, BODY[:-1] + b',"x":-Infinity}'),
    (HEAD, BODY[:-1] + b',"x":1e999}'),
    (HEAD, BODY[:-1] + b',"x":"\xff"}'),
    (HEAD, BODY[:-1] + b',"x":"\n"}'),
    (HEAD, BODY[:-1] + b",}"),
    (HEAD, BODY.replace(b'"', b"'")),
    (HEAD, BODY[:-1] + b',"x":' + b"[" * 11_000),
    (HEAD, BODY[:-1] + b',"x":' + b'{"a":' * 2000),
    (b'{"alg":"HS256","x":' + b"[" * 11_000, BODY),
    (HEAD, b'"text"'),
    (HEAD, b"null"),
    (HEAD, b"7"),
    (b"[" + HEAD + b"]", BODY),
    (b'"HS256"', BODY),
    (b"null", BODY),
    (HEAD + HEAD, BODY),
    (b"\xef\xbb\xbf" + HEAD, BODY),
    (HEAD.decode().encode("utf-16"), BODY),
    (b'{"alg":"HS256","x":NaN}', BODY),
]


@pytest.mark.parametrize("number", range(len(TWICE)))
def test_a_member_that_is_there_twice_is_refused(number: int) -> None:
    assert outcome(signed(*TWICE[number])) is InvalidCredentials


@pytest.mark.parametrize("number", range(len(NO_OBJECTS)))
def test_what_is_not_one_strict_object_is_refused(number: int) -> None:
    assert outcome(signed(*NO_OBJECTS[number])) is InvalidCredentials


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_nested_deeply_is_read_or_refused_and_harms_nobody(number: int) -> None:
    # How deep Python's reader goes differs between its versions.
    deep = (b"[" * 5000 + b"]" * 5000, b'{"a":' * 1900 + b"1" + b"}" * 1900)[number]
    found = outcome(signed(HEAD, BODY[:-1] + b',"x":' + deep + b"}"))
    assert found in ("acme", InvalidCredentials)


def test_what_is_strict_json_is_accepted() -> None:
    assert outcome(signed(b' { "alg" : "HS256" } ', b"\n\t" + BODY + b" \r\n")) == "acme"
    assert (
        outcome(signed(HEAD, BODY[:-1] + b',"x":1.5e3,"y":{"exp":"a"},"z":["\\ud800"]}')) == "acme"
    )


def _padded(value: bytes) -> bytes:
    return value + b"=" * (-len(value) % 4)


def _spare_bit(value: bytes) -> bytes:
    """Return a text that decodes to the same bytes, where there is one."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(value) % 4, "there are no bits to spare"
    return value[:-1] + bytes([alphabet[alphabet.index(value[-1]) ^ 1]])


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "padding": lambda part: part + b"=",
    "right padding": _padded,
    "much padding": lambda part: part + b"====",
    "a space behind": lambda part: part + b" ",
    "a space inside": lambda part: part[:4] + b" " + part[4:],
    "a line break": lambda part: part[:4] + b"\n" + part[4:],
    "a stray character": lambda part: part[:4] + b"!" + part[4:],
    "a byte above ASCII": lambda part: part[:4] + b"\xc2\xa0" + part[4:],
    "a full-width digit": lambda part: part[:4] + "１".encode() + part[4:],
    "spare bits": _spare_bit,
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_token_has_one_spelling(spelling: str, part: int) -> None:
    # Such that each part has bits to spare, and the signature is made over the new spelling.
    header, payload = b'{"alg":"HS256" }', BODY + b" " * (2 - len(BODY) % 3)
    assert all(len(value) % 3 for value in (header, payload))
    parts = [segment(header), segment(payload)]
    if part < 2:
        parts[part] = SPELLINGS[spelling](parts[part])
    message = b".".join(parts)
    signature = segment(sign(message, SECRET, "HS256"))
    if part == 2:
        signature = SPELLINGS[spelling](signature)
    if spelling == "right padding" and part < 2:
        assert message.count(b"=")
    assert outcome(b"Bearer " + message + b"." + signature) is InvalidCredentials


@pytest.mark.parametrize("dots", [0, 1, 3, 4, 5])
def test_a_token_has_three_parts(dots: int) -> None:
    head, body, signature = TOKENS["HS256"].split(b".")
    for parts in ([head, body, signature, b"", b""], [head, body, signature, head, body]):
        assert outcome(b"Bearer " + b".".join((parts * 2)[: dots + 1])) is InvalidCredentials
    for extra in (b".", b".."):
        assert outcome(b"Bearer " + TOKENS["HS256"] + extra) is InvalidCredentials
        assert outcome(b"Bearer " + extra + TOKENS["HS256"]) is InvalidCredentials


def test_R18_a_token_that_is_too_long_is_refused_before_it_is_read() -> None:
    def of_size(size: int) -> bytes:
        # base64 grows by a third, so the last bytes are set by the header's name.
        body = BODY[:-1] + b',"x":"' + b"x" * ((size - 600) * 3 // 4) + b'"}'
        good = signed(HEAD, body)
        return good.replace(b"Bearer ", b"Bearer" + b" " * (1 + size - len(good)), 1)

    assert len(of_size(16 * 1024)) == 16 * 1024
    assert outcome(of_size(16 * 1024)) == "acme"
    assert outcome(of_size(16 * 1024 + 1)) is InvalidIdentifier
    assert outcome(b"Bearer " + os.urandom(1_000_000)) is InvalidIdentifier
    assert outcome(b"Bearer " + b"." * 1_000_000) is InvalidIdentifier
    assert outcome(b"Basic " + b"a" * 1_000_000) is None


# -- what is remembered ------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The algorithm of each signature that is really computed."""
    found: list[str] = []
    really = Key.verifies

    def verifies(key: Key, algorithm: str, message: bytes, signature: bytes) -> bool:
        found.append(algorithm)
        return really(key, algorithm, message, signature)

    monkeypatch.setattr(Key, "verifies", verifies)
    return found


def test_a_signature_is_computed_once_and_the_rest_is_looked_at_every_time(
    computed: list[str],
) -> None:
    now = [NOW]
    public = {"public_key": pem(KEYS["EdDSA"]), "algorithms": ["EdDSA"]}
    config = TenancyConfig(database_url=URL, **listed(public))
    fresh = JwtResolver(config, now=lambda: now[0])
    sent = connection(bearer(TOKENS["EdDSA"]))
    for _ in range(5):
        assert at_once(fresh.resolve(sent)) is not None
    assert computed == ["EdDSA"]
    message = TOKENS["EdDSA"].rpartition(b".")[0]
    for _ in range(2):
        with pytest.raises(InvalidCredentials):
            at_once(fresh.resolve(connection(bearer(message + b"." + segment(bytes(64))))))
    assert computed == ["EdDSA"] * 3, "what does not hold is not remembered"
    now[0] = NOW + 600 + 31
    with pytest.raises(InvalidCredentials):
        at_once(fresh.resolve(sent))
    assert computed == ["EdDSA"] * 3


def test_a_signature_is_remembered_for_the_key_that_verified_it_only(computed: list[str]) -> None:
    fresh = resolver("EdDSA")
    sent = connection(bearer(TOKENS["EdDSA"]))
    assert at_once(fresh.resolve(sent)) is not None
    other = {"public_key": pem(ed_key("another")), "algorithms": ["EdDSA"]}
    config = TenancyConfig(database_url=URL, **listed(other))
    fresh._trusted = JwtResolver(config)._trusted  # as if the issuer had changed its key
    for _ in range(2):
        with pytest.raises(InvalidCredentials):
            at_once(fresh.resolve(sent))
    assert computed == ["EdDSA"] * 3


def test_no_more_than_a_bounded_number_is_remembered(
    computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "_REMEMBERED", 3)
    fresh = resolver("EdDSA")

    def ask(number: int) -> None:
        own = token({**GOOD, "sub": str(number)}, key=KEYS["EdDSA"], algorithm="EdDSA")
        assert at_once(fresh.resolve(connection(bearer(own)))) is not None

    for number in [*range(5), 4, 3, 2]:
        ask(number)
    assert len(computed) == 5
    assert len(fresh._verified) == 3
    ask(0)
    assert len(computed) == 6
    assert len(fresh._verified) == 3


# -- the reader of JSON ------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=3), values).map(json.dumps))
@example('{"a":1,"a":1}')
@example('{"a":NaN}')
@example('{"a":1e999}')
@example("{}{}")
def test_what_the_strict_reader_accepts_everybody_reads_alike(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        found = read_object(data)
    except ValueError:
        return
    pairs: list[Any] = json.loads(data, object_pairs_hook=list)
    assert found == json.loads(data)
    assert len(found) == len(pairs)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_flat_settings_and_a_list_of_one_are_the_same() -> None:
    flat = JwtResolver(TenancyConfig(database_url=URL, **FLAT), now=lambda: NOW)
    claim = at_once(flat.resolve(connection(bearer(TOKENS["HS256"]))))
    assert claim is not None
    assert claim.identifier == "acme"
