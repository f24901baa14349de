"""The rows J of the threat model: tokens as attackers make them, through the middleware."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.key_server import key_server
from support.scopes import WhoAmI, ask, connection, http_scope, opened, record
from support.tokens import (
    FLAT,
    ISSUER,
    SECRET,
    bearer,
    claims,
    ec_key,
    jwk,
    listed,
    pem,
    rsa_key,
    segment,
    sign,
    token,
)
from support.waiting import until
from tenancy_core import ConfigurationError, Tenancy, TenancyMiddleware, TenantStatus
from tenancy_core._resolvers.jwt import JwtResolver
from tenancy_core._resolvers.jwt.jwks import COOL_DOWN, MAX_AGE, MAX_BYTES, MAX_STALE
from tenancy_core.errors import InvalidCredentials, InvalidIdentifier
from tenancy_core.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.key_server import KeyServer
    from support.scopes import Answer
    from tenancy_core import TenancyConfig
    from tenancy_core.tenant import Tenant

    MakeConfig = Callable[..., TenancyConfig]
    Send = Callable[..., Awaitable[Answer]]

pytestmark = pytest.mark.anyio

BODY = (
    b'{"type":"about:blank","title":"The request does not prove its tenant.","status":401,'
    b'"code":"token_invalid"}'
)


def label(value: object) -> str:
    """Return the name of a parameter: short, and another for each."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…{len(text)}"


@asynccontextmanager
async def serving(config: TenancyConfig, *tenants: Tenant, **objects: Any) -> AsyncIterator[Send]:
    """Serve the tenants, acme and beta by default; yields what sends a token."""
    async with opened(config, *tenants, **objects) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)

        async def send(value: bytes, *headers: tuple[bytes, bytes]) -> Answer:
            return await ask(app, http_scope(b"/", bearer(value), *headers))

        yield send


def refused(answer: Answer) -> bool:
    """Whether it is the one answer to every token that does not hold, to the byte."""
    assert (answer.status, answer.code) == (401, "token_invalid"), answer
    assert answer.body == BODY
    assert dict(answer.headers) == {
        b"content-type": b"application/problem+json",
        b"cache-control": b"no-store",
        b"www-authenticate": b'Bearer error="invalid_token"',
        b"content-length": str(len(BODY)).encode(),
    }
    return True


def accepted(answer: Answer, tenant: str = "acme") -> bool:
    return (answer.status, answer.body) == (200, tenant.encode())


def rs256(server: KeyServer, **settings: Any) -> dict[str, Any]:
    """Return the settings of a service with a ``jwks_url``."""
    flat = {name: value for name, value in FLAT.items() if name != "jwt_secret"}
    return {**flat, "jwt_jwks_url": server.url, "jwt_algorithms": "RS256", **settings}


def by(key: Any, kid: str | None = "one", **changes: Any) -> bytes:
    """Return a token that is signed with an RSA key."""
    header = {**changes.pop("header", {}), **({} if kid is None else {"kid": kid})}
    return token(key=key, algorithm="RS256", header=header, **changes)


# -- J1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "NoNe", "nOnE", "", " none", None, 0, [], ...], ids=label
)
@pytest.mark.parametrize("signed", [False, True])
async def test_J1_alg_none_is_refused(make_config: MakeConfig, name: Any, *, signed: bool) -> None:
    head = {"typ": "JWT"} if name is ... else {"alg": name, "typ": "JWT"}
    message = segment(head) + b"." + segment(claims())
    async with serving(make_config(**FLAT)) as send:
        if signed:
            assert refused(await send(message + b"." + segment(sign(message, SECRET, "HS256"))))
        else:
            assert refused(await send(message + b"."))
            assert refused(await send(message))
        assert accepted(await send(token()))


@pytest.mark.parametrize("name", ["none", "None", "HS256,none"])
def test_J1_alg_none_cannot_be_configured(make_config: MakeConfig, name: str) -> None:
    with pytest.raises(ConfigurationError, match="TENANCY_JWT_ALGORITHMS names something that is"):
        make_config(**FLAT, jwt_algorithms=name)


async def test_J1_an_algorithm_that_is_not_configured_is_refused(make_config: MakeConfig) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(algorithm="HS512")))
        assert refused(await send(token(header={"alg": "hs256"})))
    async with serving(make_config(**FLAT, jwt_algorithms="HS512")) as send:
        assert accepted(await send(token(algorithm="HS512")))
        assert refused(await send(token()))


async def test_J1_an_algorithm_that_is_not_configured_asks_nobody_for_keys(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    async with serving(make_config(**rs256(issuer))) as send:
        for algorithm in ("RS512", "ES256", "HS256", "none"):
            assert refused(await send(by(rsa_key(), header={"alg": algorithm})))
        assert issuer.asked == 0


# -- J2, J3 ------------------------------------------------------------------------------------


def public_texts(key: Any) -> dict[str, bytes]:
    """Return what an attacker knows of a key, in the forms that a verifier may hold it in."""
    text = pem(key)
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "pem": text.encode(),
        "pem without its last newline": text.strip().encode(),
        "der": der,
        "jwk": json.dumps(jwk(key, "one")).encode(),
        "compact jwk": json.dumps(jwk(key, "one"), separators=(",", ":")).encode(),
        "modulus": jwk(key).get("n", jwk(key).get("x")).encode(),
        "nothing": b"",
    }


@pytest.mark.parametrize("form", public_texts(rsa_key()))
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_J2_a_public_key_is_no_secret(
    make_config: MakeConfig, issuer: KeyServer, form: str, algorithm: str
) -> None:
    known = public_texts(rsa_key())[form]
    forged = token(key=known, algorithm=algorithm, header={"kid": "one"})
    honest = by(rsa_key())
    async with serving(make_config(**rs256(issuer))) as send:
        assert accepted(await send(honest))
        assert refused(await send(forged))
    settings = listed({"public_key": pem(rsa_key()), "algorithms": ["RS256"]})
    async with serving(make_config(**settings)) as send:
        assert accepted(await send(honest))
        assert refused(await send(forged))


@pytest.mark.parametrize("mixed", ["HS256,RS256", "ES256,HS512", "EdDSA,PS256,HS384"])
def test_J2_symmetric_and_asymmetric_algorithms_are_not_mixed(
    make_config: MakeConfig, issuer: KeyServer, mixed: str
) -> None:
    for settings in (
        {**FLAT, "jwt_algorithms": mixed},
        rs256(issuer, jwt_algorithms=mixed),
        listed({"public_key": pem(rsa_key()), "algorithms": mixed.split(",")}),
    ):
        with pytest.raises(ConfigurationError, match=r"mixes algorithms with a shared secret"):
            make_config(**settings)


@pytest.mark.parametrize("known", ["pem", "jwk"])
def test_J2_a_public_key_cannot_be_configured_as_the_secret(
    make_config: MakeConfig, known: str
) -> None:
    text = public_texts(rsa_key())[known].decode()
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(make_config(**{**FLAT, "jwt_secret": text}))
    assert str(caught.value).startswith(
        "TENANCY_JWT_SECRET is a public key, a certificate or a JWK"
    )
    assert text not in str(caught.value)
    with pytest.raises(
        ConfigurationError, match="TENANCY_JWT_ISSUERS, entry 1: secret is a public"
    ):
        Tenancy(make_config(**listed({"secret": text})))


def test_J3_only_a_secret_alone_has_a_default_algorithm(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    missing = "TENANCY_JWT_ALGORITHMS is missing"
    with pytest.raises(ConfigurationError, match=missing):
        make_config(**{**rs256(issuer), "jwt_algorithms": ()})
    with pytest.raises(ConfigurationError, match="are both set, and a token is checked with one"):
        make_config(**FLAT, jwt_jwks_url=issuer.url)
    for keys in ({"public_key": pem(rsa_key())}, {"jwks_url": issuer.url}):
        with pytest.raises(ConfigurationError, match="entry 1: algorithms is missing"):
            make_config(**listed(keys))
    assert make_config(**FLAT).token_issuers[0].accepted == ("HS256",)


# -- J4, J5 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "aud", "iss", "tenant_id"])
@pytest.mark.parametrize("value", [..., None, "", [], {}], ids=label)
async def test_J4_a_claim_that_is_required_is_there(
    make_config: MakeConfig, name: str, value: Any
) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(**{name: value})))


async def test_J4_what_is_waived_need_not_be_there(make_config: MakeConfig) -> None:
    waived = {**FLAT, "jwt_audience": "*", "jwt_issuer": "*"}
    async with serving(make_config(**waived)) as send:
        assert accepted(await send(token(aud=..., iss=...)))
        assert accepted(await send(token(aud="of another service", iss="https://other.example")))
        assert refused(await send(token(exp=...)))
        assert refused(await send(token(iss=["https://other.example"])))
        assert refused(await send(token(key=SECRET[::-1])))


NO_DATES = [
    "{soon}.0",
    '"{soon}"',
    "1e400",
    "-1e400",
    "1e10",
    "-1",
    "-{soon}",
    "253402300800",
    "9" * 400,
    "9" * 5000,
    "true",
    "null",
    "[{soon}]",
    '{{"$numberLong": "{soon}"}}',
    '"soon"',
    "NaN",
    "Infinity",
    "٣",
]


@pytest.mark.parametrize("text", NO_DATES, ids=label)
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
async def test_J5_a_date_is_a_whole_number_of_seconds(
    make_config: MakeConfig, name: str, text: str
) -> None:
    value = text.format(soon=int(time.time()) + 60)
    rest = json.dumps(claims(**{name: ...}))[:-1]
    payload = f'{rest}, "{name}": {value}}}'.encode()
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(payload)))


async def test_J5_the_last_date_is_in_the_year_9999(make_config: MakeConfig) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert accepted(await send(token(exp=253402300799, nbf=0, iat=0)))


async def test_J5_a_maximal_lifetime_is_enforced(make_config: MakeConfig) -> None:
    now = int(time.time())
    async with serving(make_config(**FLAT, jwt_max_lifetime=900)) as send:
        assert accepted(await send(token(iat=now - 60, exp=now + 840)))
        assert refused(await send(token(iat=now - 60, exp=now + 841)))
        assert refused(await send(token(iat=...)))
        assert refused(await send(token(iat="now")))


# -- J6, J7 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audience", "ours"),
    [
        ("notes", True),
        (["notes"], True),
        (["billing", "notes"], True),
        (["notes", "notes"], True),
        ("billing", False),
        (["billing"], False),
        ("note", False),
        ("notes2", False),
        ("Notes", False),
        ("notes ", False),
        ("billing notes", False),
        ("billing,notes", False),
        ("*", False),
        (["notes", 1], False),
        (["notes", None], False),
        ([["notes"]], False),
        ({"notes": True}, False),
        (True, False),
    ],
    ids=label,
)
async def test_J6_the_audience_has_to_be_ours(
    make_config: MakeConfig, audience: Any, *, ours: bool
) -> None:
    async with serving(make_config(**FLAT)) as send:
        answer = await send(token(aud=audience))
        assert accepted(answer) if ours else refused(answer)


A, B = "https://a.example", "https://b.example"


async def test_J7_a_key_is_bound_to_its_issuer(make_config: MakeConfig, issuer: KeyServer) -> None:
    issuer.publish(jwk(rsa_key("b"), "one"))
    settings = listed(
        {"issuer": A, "public_key": pem(rsa_key("a")), "algorithms": ["RS256"]},
        {"issuer": B, "jwks_url": issuer.url, "algorithms": ["RS256", "ES256"]},
        {"secret": SECRET},
    )
    async with serving(make_config(**settings)) as send:
        assert accepted(await send(by(rsa_key("a"), iss=A)))
        assert accepted(await send(by(rsa_key("b"), iss=B)))
        assert accepted(await send(token()))
        assert refused(await send(by(rsa_key("a"), iss=B)))
        assert refused(await send(by(rsa_key("b"), iss=A)))
        assert refused(await send(by(rsa_key("a"))))
        assert refused(await send(token(iss=A)))
        assert refused(await send(token(iss=B)))
        assert refused(await send(by(rsa_key("a"), iss="https://c.example")))


@pytest.mark.parametrize(
    "name", ["https://a.example/", "HTTPS://a.example", "https://a.exampl", "", "*", f"{A} "]
)
async def test_J7_an_issuer_is_compared_to_the_letter(make_config: MakeConfig, name: str) -> None:
    settings = listed({"issuer": A, "secret": SECRET})
    async with serving(make_config(**settings)) as send:
        assert accepted(await send(token(iss=A)))
        assert refused(await send(token(iss=name)))


async def test_J7_audience_and_tenants_are_bound_to_the_issuer_as_well(
    make_config: MakeConfig,
) -> None:
    other = SECRET[::-1]
    settings = listed(
        {"issuer": A, "secret": SECRET, "audience": "notes-a"},
        {"issuer": B, "secret": other, "tenants": ["beta"], "tenant_claim": "org"},
    )
    async with serving(make_config(**settings)) as send:
        assert accepted(await send(token(iss=A, aud="notes-a")))
        assert refused(await send(token(iss=A)))
        assert accepted(await send(token(iss=B, org="beta", key=other)), "beta")
        assert refused(await send(token(iss=B, org="acme", key=other)))
        assert refused(await send(token(iss=B, tenant_id="beta", key=other)))


# -- J9, J10, J11 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        ["acme"], 7, 7.0, None, {"id": "acme"}, True, False, "", "ACME", " acme", "acme ", "acme\n",
        "acme\x00", "ⓐcme", "ａｃｍｅ", "acme‍", "ſlack", "acme,beta", "a" * 49, "a" * 4000,
        "-acme", "ac--me", "acme/../beta", "acme%00", "\ud800", "１",
    ],
    ids=label,
)  # fmt: skip
async def test_J9_the_tenant_is_a_text_that_is_an_identifier(
    make_config: MakeConfig, value: Any
) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(tenant_id=value)))


HOSTILE_KIDS = [
    "../../etc/passwd",
    "/dev/null",
    "' OR 1=1 --",
    "http://127.0.0.1:1/keys",
    "one\x00",
    "\x00",
    "ONE",
    " one",
    "__class__",
    "",
    "k" * 256,
    "\ud800",
]


@pytest.mark.parametrize("kid", HOSTILE_KIDS, ids=label)
async def test_J10_a_kid_is_looked_up_and_nothing_else(
    make_config: MakeConfig, issuer: KeyServer, kid: str
) -> None:
    async with serving(make_config(**rs256(issuer))) as send:
        assert accepted(await send(by(rsa_key())))
        assert refused(await send(by(rsa_key(), kid)))
        assert issuer.asked == 1


@pytest.mark.parametrize(
    "kid", ["k" * 257, "k" * 10_000, None, 1, True, ["one"], {"one": 1}], ids=label
)
async def test_J10_a_kid_is_a_short_text(
    make_config: MakeConfig, issuer: KeyServer, kid: Any
) -> None:
    async with serving(make_config(**rs256(issuer))) as send:
        assert refused(await send(by(rsa_key(), None, header={"kid": kid})))
        assert issuer.asked == 0, "refused before a key is looked for"
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(header={"kid": kid})))
        assert accepted(await send(token(header={"kid": "whatever"})))


async def test_J11_keys_in_a_token_are_not_read(make_config: MakeConfig, issuer: KeyServer) -> None:
    mine = rsa_key("attacker")
    with key_server() as evil:
        evil.publish(jwk(mine, "one"))
        for offered in (
            {"jku": evil.url},
            {"x5u": evil.url},
            {"jwk": jwk(mine, "one")},
            {"x5c": ["MIIB"]},
            {"x5t": "a", "x5t#S256": "b", "jku": evil.url, "jwk": jwk(mine)},
        ):
            async with serving(make_config(**rs256(issuer))) as send:
                assert refused(await send(by(mine, header=offered)))
                # Neither is a token refused that offers some: they are not looked at.
                assert accepted(await send(by(rsa_key(), header=offered)))
            async with serving(make_config(**FLAT)) as send:
                assert refused(await send(token(key="s" * 64, header=offered)))
        assert evil.asked == 0


# -- J13, J14 ----------------------------------------------------------------------------------


async def test_J13_a_new_key_is_accepted_after_one_more_request(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    clock = FakeClock()
    async with serving(make_config(**rs256(issuer)), clock=clock) as send:
        assert issuer.asked == 0, "nothing is fetched before it is needed"
        assert accepted(await send(by(rsa_key())))
        issuer.publish(jwk(rsa_key(), "one"), jwk(rsa_key("b"), "two"))
        clock.advance(COOL_DOWN)
        assert accepted(await send(by(rsa_key("b"), "two")))
        assert issuer.asked == 2
        assert accepted(await send(by(rsa_key())))
        assert issuer.asked == 2


async def test_J13_a_removed_key_is_refused_after_its_age(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    clock = FakeClock()
    async with serving(make_config(**rs256(issuer)), clock=clock) as send:
        assert accepted(await send(by(rsa_key())))
        issuer.publish(jwk(rsa_key("b"), "two"))
        clock.advance(MAX_AGE - 1)
        assert accepted(await send(by(rsa_key())))
        assert issuer.asked == 1
        clock.advance(1)
        assert refused(await send(by(rsa_key())))
        assert accepted(await send(by(rsa_key("b"), "two")))
        assert issuer.asked == 2


async def test_J13_unknown_names_of_keys_make_one_request_per_cool_down(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    clock = FakeClock()
    async with serving(make_config(**rs256(issuer)), clock=clock) as send:
        for number in range(20):
            assert refused(await send(by(rsa_key(), f"unknown-{number}")))
        assert issuer.asked == 1
        clock.advance(COOL_DOWN)
        for number in range(20):
            assert refused(await send(by(rsa_key(), f"unknown-{number}")))
        assert issuer.asked == 2


def down(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    issuer.stop()


def slow(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("tenancy_core._resolvers.jwt.jwks.TIMEOUT", 0.2)
    issuer.gate.clear()


def dripping(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    # Each part comes in time; the whole never does.
    patch.setattr("tenancy_core._resolvers.jwt.jwks.TIMEOUT", 0.5)
    patch.setattr("tenancy_core._resolvers.jwt.jwks.MAX_BYTES", 1 << 40)
    issuer.body, issuer.endless = b" ", True


def huge(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    issuer.body = b'{"keys":[' + b" " * 5_000_000 + b"]}"


def endless(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    issuer.body, issuer.endless = b" " * 65536, True


def packed(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    issuer.headers["content-encoding"] = "gzip"


def redirecting(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
    issuer.status, issuer.headers["location"] = 302, issuer.url


def answers(body: bytes, status: int = 200) -> Callable[..., None]:
    def fault(issuer: KeyServer, patch: pytest.MonkeyPatch) -> None:
        issuer.status, issuer.body = status, body

    return fault


GOOD = json.dumps({"keys": [jwk(rsa_key(), "one")]}).encode()
FAULTS: dict[str, Callable[..., None]] = {
    "down": down,
    "slow": slow,
    "dripping": dripping,
    "5 MB": huge,
    "endless": endless,
    "packed": packed,
    "redirecting": redirecting,
    "404 with keys": answers(GOOD, 404),
    "500 with keys": answers(GOOD, 500),
    "203 with keys": answers(GOOD, 203),
    "a page": answers(b"<html><body>Sign in</body></html>"),
    "a list": answers(b"[]"),
    "an object without keys": answers(b"{}"),
    "keys that are an object": answers(b'{"keys":{}}'),
    "keys that are text": answers(b'{"keys":"one"}'),
    "keys twice": answers(GOOD[:-1] + b',"keys":[]}'),
    "keys and more": answers(GOOD + b"{}"),
    "nothing": answers(b""),
    "UTF-16": answers(GOOD.decode().encode("utf-16")),
    "101 keys": answers(json.dumps({"keys": [jwk(rsa_key(), "one")] * 101}).encode()),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_J14_without_keys_nobody_knows_and_nobody_is_told_401(
    make_config: MakeConfig, issuer: KeyServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[fault](issuer, monkeypatch)
    async with serving(make_config(**rs256(issuer)), clock=FakeClock()) as send:
        for _ in range(3):
            answer = await send(by(rsa_key()))
            assert (answer.status, answer.code) == (503, "backend_unavailable")
            assert answer.header(b"retry-after") == b"1"
            assert answer.header(b"www-authenticate") is None
        expected = 0 if fault == "down" else 1
        # Its threads may be slower than the time-out.
        await until(lambda: issuer.asked >= expected)
        assert issuer.asked == expected, "once per cool-down, never followed"


@pytest.mark.parametrize("fault", FAULTS)
async def test_J14_keys_that_were_fetched_hold_until_they_are_stale(
    make_config: MakeConfig, issuer: KeyServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    async with serving(make_config(**rs256(issuer)), clock=clock) as send:
        assert accepted(await send(by(rsa_key())))
        FAULTS[fault](issuer, monkeypatch)
        clock.advance(MAX_AGE)
        assert accepted(await send(by(rsa_key())))
        assert refused(await send(by(rsa_key("b")))), "a forged one is known to be forged"
        # The key of this one may have been published since.
        assert (await send(by(rsa_key("b"), "two"))).status == 503
        clock.advance(MAX_STALE - MAX_AGE - 1)
        assert accepted(await send(by(rsa_key())))
        clock.advance(COOL_DOWN)
        answer = await send(by(rsa_key()))
        assert (answer.status, answer.code) == (503, "backend_unavailable")


async def test_J14_an_issuer_that_is_back_is_asked_after_the_cool_down(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    clock = FakeClock()
    async with serving(make_config(**rs256(issuer)), clock=clock) as send:
        issuer.status = 500
        assert (await send(by(rsa_key()))).status == 503
        issuer.status = 200
        assert (await send(by(rsa_key()))).status == 503
        clock.advance(COOL_DOWN)
        assert accepted(await send(by(rsa_key())))
        assert issuer.asked == 2


async def test_J14_of_an_endless_answer_little_more_than_the_bound_is_read(
    make_config: MakeConfig, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge(issuer, monkeypatch)
    issuer.endless = True
    async with serving(make_config(**rs256(issuer))) as send:
        assert (await send(by(rsa_key()))).status == 503
    # What sockets hold between the two is part of it.
    assert issuer.sent < 5_000_000 + 16 * MAX_BYTES


# -- J15 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leeway", [0, 30, 300])
async def test_J15_clocks_may_differ_by_the_leeway_either_way(
    make_config: MakeConfig, leeway: int
) -> None:
    now = 1_800_000_000
    config = make_config(**FLAT, jwt_leeway=leeway)
    resolver = JwtResolver(config, now=lambda: now + 0.9)
    good = {"iat": now, "exp": now + 60}

    async def holds(**changes: Any) -> bool:
        sent = connection(bearer(token(**{**good, **changes})))
        try:
            claim = await resolver.resolve(sent)
        except InvalidCredentials:
            return False
        assert claim is not None
        return True

    assert await holds(exp=now - leeway)
    assert not await holds(exp=now - leeway - 1)
    assert await holds(nbf=now + leeway)
    assert not await holds(nbf=now + leeway + 1)
    assert await holds(iat=now + leeway)
    assert not await holds(iat=now + leeway + 1)


async def test_J15_the_default_is_thirty_seconds(make_config: MakeConfig) -> None:
    async with serving(make_config(**FLAT)) as send:
        now = int(time.time())
        assert accepted(await send(token(iat=now - 600, exp=now - 20)))
        assert accepted(await send(token(nbf=now + 30, iat=now + 30)))
        assert refused(await send(token(iat=now - 600, exp=now - 61)))
        assert refused(await send(token(nbf=now + 61)))
        assert refused(await send(token(iat=now + 61)))


# -- J16, J17 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extension",
    [
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"crit": None},
        {"crit": "exp"},
        {"crit": ["http://example.com/UNDEFINED"], "http://example.com/UNDEFINED": True},
        {"b64": False},
        {"b64": True},
    ],
    ids=label,
)
async def test_J16_no_extension_is_understood(make_config: MakeConfig, extension: Any) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(header=extension)))


@pytest.mark.parametrize("detached", [b"", b"e30"])
async def test_J16_a_payload_that_is_not_encoded_or_elsewhere_is_refused(
    make_config: MakeConfig, detached: bytes
) -> None:
    head = segment({"alg": "HS256", "b64": False, "crit": ["b64"]})
    whole = json.dumps(claims()).encode()
    signature = segment(sign(head + b"." + whole, SECRET, "HS256"))
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(head + b"." + detached + b"." + signature))
        assert refused(await send(head + b"." + whole + b"." + signature))


@pytest.mark.parametrize(
    "name",
    ["logout+jwt", "refresh+jwt", "id+jwt", "dpop+jwt", "JOSE", "jwe", "at+jwt2", "", None, 1, [],
     ["JWT"], "application/logout+jwt", "text/jwt", "JWT "],
    ids=label,
)  # fmt: skip
async def test_J16_a_token_of_another_kind_is_refused(make_config: MakeConfig, name: Any) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert refused(await send(token(header={"typ": name})))


@pytest.mark.parametrize(
    "name", [..., "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"], ids=label
)
async def test_J16_access_tokens_and_those_of_no_special_kind_are_accepted(
    make_config: MakeConfig, name: Any
) -> None:
    async with serving(make_config(**FLAT)) as send:
        assert accepted(await send(token(header={"typ": name})))


async def test_J16_where_types_are_set_a_token_has_one_of_them(make_config: MakeConfig) -> None:
    async with serving(make_config(**FLAT, jwt_types="at+jwt,Example/Own")) as send:
        assert accepted(await send(token(header={"typ": "application/at+jwt"})))
        assert accepted(await send(token(header={"typ": "example/own"})))
        assert refused(await send(token(header={"typ": "JWT"})))
        assert refused(await send(token(header={"typ": ...})))


@pytest.mark.parametrize(("algorithm", "size"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_J17_a_secret_is_as_long_as_its_hash(
    make_config: MakeConfig, algorithm: str, size: int
) -> None:
    settings = {**FLAT, "jwt_algorithms": ("HS256", algorithm)}
    make_config(**{**settings, "jwt_secret": "s" * size})
    with pytest.raises(ConfigurationError) as caught:
        make_config(**{**settings, "jwt_secret": "s" * (size - 1)})
    assert str(caught.value).startswith(
        f"TENANCY_JWT_SECRET is shorter than {size} characters, the least for {algorithm}"
    )
    with pytest.raises(ConfigurationError, match=r"entry 1: secret is shorter than"):
        make_config(**listed({"secret": "é" * (size - 1), "algorithms": algorithm}))


def test_J17_a_public_key_is_strong_and_fits_its_algorithms(make_config: MakeConfig) -> None:
    def refusal(private: Any, *algorithms: str) -> str:
        settings = listed({"public_key": pem(private), "algorithms": algorithms})
        with pytest.raises(ConfigurationError) as caught:
            Tenancy(make_config(**settings))
        return str(caught.value)

    start = "TENANCY_JWT_ISSUERS, entry 1: public_key"
    assert refusal(rsa_key("weak", 1024), "RS256").startswith(f"{start} is an RSA key of 1024 bits")
    assert refusal(ec_key(), "ES384").startswith(f"{start} does not fit ES384: it is for ES256")
    assert refusal(ec_key("c", ec.SECP384R1), "ES256").startswith(f"{start} does not fit ES256")
    assert refusal(ec_key("k", ec.SECP256K1), "ES256").startswith(f"{start} does not fit ES256")
    assert refusal(rsa_key(), "RS256", "ES256").startswith(f"{start} does not fit ES256")
    assert refusal(ec_key(), "EdDSA").startswith(f"{start} does not fit EdDSA")


async def test_J17_weak_and_unfit_keys_of_a_set_verify_nothing(
    make_config: MakeConfig, issuer: KeyServer
) -> None:
    weak, curve = rsa_key("weak", 1024), ec_key("c", ec.SECP384R1)
    issuer.publish(
        jwk(weak, "weak"),
        jwk(rsa_key(), "for encryption", use="enc"),
        jwk(rsa_key(), "for signing", key_ops=["sign"]),
        jwk(rsa_key(), "for another algorithm", alg="RS512"),
        jwk(rsa_key(), "private", d="AQAB"),
        {"kty": "oct", "kid": "shared", "k": segment(SECRET.encode()).decode()},
        jwk(curve, "curve"),
        jwk(rsa_key(), "good", use="sig", key_ops=["verify"], alg="RS256"),
    )
    settings = rs256(issuer, jwt_algorithms="RS256,ES256")
    async with serving(make_config(**settings)) as send:
        assert accepted(await send(by(rsa_key(), "good")))
        assert refused(await send(by(weak, "weak")))
        for name in ("for encryption", "for signing", "for another algorithm", "private"):
            assert refused(await send(by(rsa_key(), name)))
        assert refused(await send(token(header={"kid": "shared"})))
        for algorithm in ("ES256", "ES384"):
            forged = segment({"alg": algorithm, "kid": "curve"}) + b"." + segment(claims())
            signature = segment(sign(forged, curve, "ES384"))
            assert refused(await send(forged + b"." + signature))


# -- J18 ---------------------------------------------------------------------------------------


async def test_J18_two_authorization_headers_are_ambiguous(make_config: MakeConfig) -> None:
    async with serving(make_config(**FLAT)) as send:
        for second in (bearer(token()), (b"authorization", b"Basic YTpi"), (b"authorization", b"")):
            answer = await send(token(), second)
            assert (answer.status, answer.code) == (400, "tenant_invalid")
            assert answer.header(b"www-authenticate") is None


async def header_outcome(config: TenancyConfig, value: bytes) -> Any:
    resolver = JwtResolver(config)
    try:
        claim = await resolver.resolve(connection((b"authorization", value)))
    except (InvalidCredentials, InvalidIdentifier) as error:
        return type(error)
    return claim and claim.identifier


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"], ids=label)
async def test_J18_the_scheme_is_in_any_case(make_config: MakeConfig, scheme: bytes) -> None:
    config = make_config(**FLAT)
    assert await header_outcome(config, scheme + b" " + token()) == "acme"
    assert await header_outcome(config, scheme + b"  " + token()) == "acme"


@pytest.mark.parametrize(
    "form",
    [
        b"Bearer %s ", b"Bearer %s\t", b"Bearer %s\n", b"Bearer %s\r\n", b"Bearer %s\x00",
        b"Bearer %s %s", b"Bearer %s, Bearer %s", b"Bearer %s,%s", b"Bearer\t%s", b"Bearer \t%s",
        b"Bearer,%s", b"Bearer:%s", b"Bearer=%s;", b"Bearer\xa0%s", b"Bearer \xa0%s", b" Bearer %s",
        b"\tBearer %s", b"\x00Bearer %s", b'Bearer "%s"', b"Bearer token=%s", b"Bearer %s; a=b",
        b"Bearer", b"Bearer ", b"Bearer   ", b"", b" ", b"Bearer %s=", b"Bearer =%s",
        b"Bearer Bearer %s",
    ],
    ids=label,
)  # fmt: skip
async def test_J18_anything_but_one_token_is_refused(make_config: MakeConfig, form: bytes) -> None:
    value = form.replace(b"%s", token())
    assert await header_outcome(make_config(**FLAT), value) is InvalidCredentials


@pytest.mark.parametrize(
    "value",
    [b"Basic YTpi", b"Digest a=b", b"bearerx a", b"Token a", b"Bearer.a", b"DPoP a", b"abc"],
    ids=label,
)
async def test_J18_another_scheme_is_no_token(make_config: MakeConfig, value: bytes) -> None:
    assert await header_outcome(make_config(**FLAT), value) is None


# -- J20 ---------------------------------------------------------------------------------------


async def test_J20_a_token_outlives_neither_its_tenant_nor_its_membership(
    make_config: MakeConfig,
) -> None:
    members = {"acme", "beta"}

    async def is_member(_: object, tenant: Tenant, claim: object, /) -> bool:
        return tenant.identifier in members

    good = token()
    async with opened(make_config(**FLAT), membership=is_member) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)

        async def send(value: bytes) -> Answer:
            return await ask(app, http_scope(b"/", bearer(value)))

        assert accepted(await send(good))
        await tenancy.tenants.suspend("acme", reason="unpaid")
        answer = await send(good)
        assert (answer.status, answer.code) == (403, "tenant_suspended")
        await tenancy.tenants.resume("acme")
        assert accepted(await send(good))
        members.discard("acme")
        answer = await send(good)
        assert (answer.status, answer.code) == (404, "tenant_not_found")


async def test_J20_who_has_a_token_is_told_of_a_suspension_and_nobody_else(
    make_config: MakeConfig,
) -> None:
    tenants = [record("acme", TenantStatus.SUSPENDED), record("beta", TenantStatus.ARCHIVED)]
    async with serving(make_config(**FLAT), *tenants) as send:
        answer = await send(token())
        assert (answer.status, answer.code) == (403, "tenant_suspended")
        for other in ("beta", "nobody"):
            answer = await send(token(tenant_id=other))
            assert (answer.status, answer.code) == (404, "tenant_not_found")
        assert refused(await send(token(key=SECRET[::-1])))


def test_the_issuer_of_these_tests_is_the_one_that_tokens_name() -> None:
    assert claims()["iss"] == ISSUER
