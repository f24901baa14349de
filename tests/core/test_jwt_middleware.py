"""Tokens beside other sources, on the way of a request: who is believed, told what, and limited."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import WhoAmI, ask, http_scope, opened, websocket_scope
from support.tokens import FLAT, SECRET, bearer, listed, token
from tenancy_core import TenancyMiddleware
from tenancy_core._ratelimit.misses import MISSES
from tenancy_core.asgi.openapi import describe_tenant
from tenancy_core.errors import InvalidCredentials
from tenancy_core.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.scopes import Answer
    from tenancy_core import Connection, TenancyConfig, TenantClaim

    MakeConfig = Callable[..., TenancyConfig]

pytestmark = pytest.mark.anyio

BAD = token(key=SECRET[::-1])
CHALLENGE = b"www-authenticate"


def says(tenant: bytes) -> tuple[bytes, bytes]:
    return (b"x-tenant-id", tenant)


async def get(app: Any, *headers: tuple[bytes, bytes], **scope: Any) -> Answer:
    return await ask(app, http_scope(b"/", *headers, **scope))


def chain(strategy: str, **settings: Any) -> dict[str, Any]:
    return {**FLAT, "resolution_strategy": strategy, **settings}


def outcome(answer: Answer) -> tuple[int, str | None]:
    return (answer.status, answer.code or answer.body.decode())


# -- alone -------------------------------------------------------------------------------------


async def test_without_a_token_a_client_is_asked_for_one_and_not_told_that_one_is_wrong(
    make_config: MakeConfig,
) -> None:
    async with opened(make_config(**FLAT)) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        absent = await get(app)
        basic = await get(app, (b"authorization", b"Basic YTpi"))
        bad = await get(app, bearer(BAD))
        said = await get(app, says(b"acme"))
    assert absent == basic == said
    assert outcome(absent) == outcome(bad) == (401, "token_invalid")
    assert absent.body == bad.body
    assert absent.header(CHALLENGE) == b"Bearer"
    assert bad.header(CHALLENGE) == b'Bearer error="invalid_token"'


@pytest.mark.parametrize("can_answer", [True, False])
async def test_a_handshake_is_refused_alike(make_config: MakeConfig, *, can_answer: bool) -> None:
    async with opened(make_config(**FLAT)) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for headers, challenge in (
            ([], b"Bearer"),
            ([bearer(BAD)], b'Bearer error="invalid_token"'),
        ):
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            await app(websocket_scope(b"/", *headers, can_answer=can_answer), receive, send)
            if can_answer:
                assert sent[0]["status"] == 401
                assert dict(sent[0]["headers"])[CHALLENGE] == challenge
            else:
                assert [message["type"] for message in sent] == ["websocket.close"]


async def test_the_reason_is_in_the_log_and_the_token_is_not(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    sent = {
        "it has expired": token(exp=1, tenant_id="canary-9d1f"),
        "it is for another audience": token(aud="canary-9d1f"),
        "its issuer is not trusted": token(iss="canary-9d1f"),
        "no key of its issuer verifies its signature": token(key="canary-9d1f"),
        "it is a token of another type": token(header={"typ": "canary-9d1f"}),
        "the tenant in it is no identifier": token(tenant_id="CANARY-9d1f"),
    }
    with caplog.at_level(logging.DEBUG):
        async with opened(make_config(**FLAT)) as tenancy:
            app = TenancyMiddleware(WhoAmI(), tenancy)
            for value in sent.values():
                assert (await get(app, bearer(value))).status == 401
    messages = [entry.getMessage() for entry in caplog.records if entry.name == "tenancy"]
    assert messages == [f"a token was refused: {reason}" for reason in sent]
    assert "canary" not in caplog.text.lower()
    for value in sent.values():
        assert value.rpartition(b".")[2].decode() not in caplog.text


async def test_a_rotated_secret_is_accepted_beside_the_new_one(make_config: MakeConfig) -> None:
    config = make_config(**listed({"secret": "n" * 64}, {"secret": SECRET, "audience": "old"}))
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert outcome(await get(app, bearer(token(key="n" * 64)))) == (200, "acme")
        assert outcome(await get(app, bearer(token(aud="old")))) == (200, "acme")
        # Each secret comes with its own audience.
        assert (await get(app, bearer(token()))).status == 401
        assert (await get(app, bearer(token(key="n" * 64, aud="old")))).status == 401


# -- beside others -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["jwt,header", "header,jwt"])
@pytest.mark.parametrize("verified", [True, False])
async def test_R19_a_token_and_a_header_have_to_agree(
    make_config: MakeConfig, strategy: str, *, verified: bool
) -> None:
    config = make_config(**chain(strategy, require_verified_tenant=verified))
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        good = bearer(token())
        assert outcome(await get(app, good, says(b"acme"))) == (200, "acme")
        assert outcome(await get(app, good, says(b"beta"))) == (403, "tenant_mismatch")
        assert outcome(await get(app, good)) == (200, "acme")
        alone = await get(app, says(b"acme"))
        if verified:
            assert outcome(alone) == (401, "token_invalid")
            assert alone.header(CHALLENGE) == b"Bearer"
        else:
            assert outcome(alone) == (200, "acme")
        nothing = (401, "token_invalid") if verified else (400, "tenant_missing")
        assert outcome(await get(app)) == nothing


async def test_R19_a_token_and_a_host_have_to_agree(make_config: MakeConfig) -> None:
    config = make_config(**chain("subdomain,jwt", domain_suffix="example.com"))
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        good = bearer(token())
        for host, expected in (
            (b"acme.example.com", (200, "acme")),
            (b"beta.example.com", (403, "tenant_mismatch")),
            (b"example.com", (200, "acme")),
        ):
            assert outcome(await get(app, good, (b"host", host))) == expected


@pytest.mark.parametrize("strategy", ["jwt,header", "header,jwt"])
@pytest.mark.parametrize("rule", ["reject", "first"])
async def test_R20_R21_a_bad_token_never_falls_through_to_a_header(
    make_config: MakeConfig, strategy: str, rule: str
) -> None:
    config = make_config(**chain(strategy, on_resolver_conflict=rule))
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for bad, expected in (
            (bearer(BAD), 401),
            (bearer(token(exp=1)), 401),
            ((b"authorization", b"Bearer"), 401),
            (bearer(b"a" * 20_000), 400),
        ):
            answer = await get(app, bad, says(b"acme"))
            if (strategy, rule) == ("header,jwt", "first"):
                # The first claim wins: that is what was asked for. No token is looked at.
                assert outcome(answer) == (200, "acme")
            else:
                assert answer.status == expected


async def test_R20_keys_that_cannot_be_had_are_503_and_never_passed_over(
    make_config: MakeConfig,
) -> None:
    settings = chain("jwt,header", jwt_jwks_url="http://127.0.0.1:1/keys", jwt_algorithms="RS256")
    del settings["jwt_secret"]
    async with opened(make_config(**settings)) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        rs256 = token(header={"alg": "RS256", "kid": "one"})
        answer = await get(app, bearer(rs256), says(b"acme"))
        assert outcome(answer) == (503, "backend_unavailable")
        assert outcome(await get(app, says(b"acme"))) == (200, "acme")


# -- floods ------------------------------------------------------------------------------------


async def test_bad_tokens_are_limited_by_address_and_good_ones_never(
    make_config: MakeConfig,
) -> None:
    clock = FakeClock()
    async with opened(make_config(**FLAT), clock=clock) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        good, other = bearer(token()), ("198.51.100.7", 1)
        for _ in range(MISSES.burst):
            assert (await get(app, bearer(BAD))).status == 401
        limited = await get(app, bearer(BAD))
        assert outcome(limited) == (429, "rate_limited")
        assert limited.header(b"retry-after") == b"1"
        assert outcome(await get(app, good)) == (200, "acme")
        assert (await get(app, bearer(BAD), client=other)).status == 401
        clock.advance(MISSES.interval)
        assert (await get(app, bearer(BAD))).status == 401
        assert (await get(app, bearer(BAD))).status == 429


async def test_who_sends_no_token_is_not_counted(make_config: MakeConfig) -> None:
    config = make_config(**chain("header,jwt", require_verified_tenant=True))
    async with opened(config, clock=FakeClock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(MISSES.burst + 1):
            assert (await get(app, says(b"acme"))).status == 401
        assert (await get(app, bearer(BAD))).status == 401
    async with opened(make_config(**FLAT), clock=FakeClock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(MISSES.burst + 1):
            assert (await get(app)).status == 401
        assert (await get(app, bearer(BAD))).status == 401


@pytest.mark.parametrize(("presented", "status"), [(False, 401), (True, 429)])
async def test_a_resolver_says_whether_there_was_anything_to_guess_with(
    make_config: MakeConfig, *, presented: bool, status: int
) -> None:
    class Sessions:
        """A resolver of the application."""

        async def resolve(self, connection: Connection, /) -> TenantClaim | None:
            error = InvalidCredentials()
            error.presented = presented
            raise error

    async with opened(make_config(), resolver=Sessions(), clock=FakeClock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(MISSES.burst):
            answer = await get(app)
            assert answer.status == 401
            assert (answer.header(CHALLENGE) == b"Bearer") is not presented
        assert (await get(app)).status == status


async def test_guesses_of_tokens_and_of_tenants_are_counted_together(
    make_config: MakeConfig,
) -> None:
    class Keys:
        """A resolver of the application."""

        async def resolve(self, connection: Connection, /) -> TenantClaim | None:
            if connection.header(b"x-key"):
                raise InvalidCredentials
            return None

    config = make_config(**chain("custom,jwt,header"))
    async with opened(config, resolver=Keys(), clock=FakeClock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(MISSES.burst // 3):
            assert (await get(app, bearer(BAD))).status == 401
            assert (await get(app, (b"x-key", b"guess"))).status == 401
            assert (await get(app, says(b"nobody"))).status == 404
        for flood in (bearer(BAD), (b"x-key", b"guess"), says(b"nobody")):
            assert (await get(app, flood)).status == 429


# -- documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "security"),
    [("jwt", [{"tenantToken": []}]), ("jwt,header", [{"tenantToken": []}, {}])],
)
async def test_the_document_shows_a_bearer_token(
    make_config: MakeConfig, strategy: str, security: Any
) -> None:
    document: dict[str, Any] = {"paths": {"/notes": {"get": {}}, "/health": {"get": {}}}}
    async with opened(make_config(**chain(strategy))) as tenancy:
        describe_tenant(document, tenancy, lambda path: path == "/health")
    scheme = document["components"]["securitySchemes"]["tenantToken"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert document["paths"]["/notes"]["get"]["security"] == security
    assert "security" not in document["paths"]["/health"]["get"]
