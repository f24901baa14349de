"""How a request is refused: one table, one format, and nothing that tells tenants apart."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import (
    Answer,
    CountingStore,
    WhoAmI,
    ask,
    http_scope,
    opened,
    record,
    websocket_scope,
)
from tenancy_core import TenancyMiddleware, TenantClaim, TenantStatus
from tenancy_core._ratelimit.misses import MISSES
from tenancy_core.asgi import Refusal
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    InvalidIdentifier,
    NoCurrentTenant,
    RateLimitExceeded,
    RequestRefused,
    ResolverError,
    TenancyError,
    TenantInactive,
    TenantMismatch,
    TenantNotFound,
    TenantNotIdentified,
    TenantUnready,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import Connection, TenancyConfig, Tenant

pytestmark = pytest.mark.anyio

ALWAYS = {b"content-type": b"application/problem+json", b"cache-control": b"no-store"}
BEARER = {b"www-authenticate": b'Bearer error="invalid_token"'}
LATER = {b"retry-after": b"1"}
DOWN = "The service cannot answer right now."
CANARY = "canary-5f1c"

TABLE: list[tuple[TenancyError, int, str, str, dict[bytes, bytes]]] = [
    (TenantNotIdentified(CANARY), 400, "tenant_missing", TenantNotIdentified.title, {}),
    (InvalidIdentifier(CANARY), 400, "tenant_invalid", InvalidIdentifier.title, {}),
    (RequestRefused(CANARY), 400, "request_refused", RequestRefused.title, {}),
    (InvalidCredentials(CANARY), 401, "token_invalid", InvalidCredentials.title, BEARER),
    (TenantMismatch(CANARY), 403, "tenant_mismatch", TenantMismatch.title, {}),
    (TenantInactive(CANARY), 403, "tenant_suspended", TenantInactive.title, {}),
    (TenantNotFound(CANARY), 404, "tenant_not_found", TenantNotFound.title, {}),
    (RateLimitExceeded(CANARY), 429, "rate_limited", RateLimitExceeded.title, LATER),
    (
        RateLimitExceeded(CANARY, retry_after=0.2),
        429,
        "rate_limited",
        RateLimitExceeded.title,
        LATER,
    ),
    (
        RateLimitExceeded(CANARY, retry_after=7.1, limit=100, window=60.0),
        429,
        "rate_limited",
        RateLimitExceeded.title,
        {
            b"retry-after": b"8",
            b"ratelimit-policy": b'"tenant";q=100;w=60',
            b"ratelimit": b'"tenant";r=0;t=8',
        },
    ),
    (TenantUnready(CANARY), 503, "tenant_provisioning", TenantUnready.title, LATER),
    (
        TenantUnready(CANARY, retry_after=30),
        503,
        "tenant_provisioning",
        TenantUnready.title,
        {b"retry-after": b"30"},
    ),
    (ResolverError(CANARY), 503, "resolver_failed", DOWN, LATER),
    (BackendUnavailable(CANARY), 503, "backend_unavailable", DOWN, LATER),
]


class Raises:
    """A resolver of the application that raises what the table says."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        raise self._error


class Notes:
    """An observer that notes refusals."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, int, Tenant | None]] = []

    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
        self.refusals.append((code, status, tenant))

    def changed(self, tenant: Tenant, action: str, /) -> None:
        raise AssertionError("nothing changes here")


async def shake_hands(app: Any, scope: Any) -> list[Any]:
    """Ask for a WebSocket and return what the server is told."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


# -- the table -------------------------------------------------------------------------------------

table = pytest.mark.parametrize(
    ("error", "status", "code", "title", "extra"),
    TABLE,
    ids=[f"{row[2]}-{number}" for number, row in enumerate(TABLE)],
)


@table
async def test_a_refusal_has_its_status_code_body_and_headers(
    make_config: Callable[..., TenancyConfig],
    error: TenancyError,
    status: int,
    code: str,
    title: str,
    extra: dict[bytes, bytes],
) -> None:
    inner, notes = WhoAmI(), Notes()
    async with opened(make_config(), resolver=Raises(error), observers=[notes]) as tenancy:
        app = TenancyMiddleware(inner, tenancy)
        answer = await ask(app, http_scope())
        head = await ask(app, http_scope(method="HEAD"))
        socket = await shake_hands(app, websocket_scope())
        old_socket = await shake_hands(app, websocket_scope(can_answer=False))
    assert inner.calls == 0
    assert answer.status == status
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
    }
    assert dict(answer.headers) == {
        **ALWAYS,
        **extra,
        b"content-length": str(len(answer.body)).encode(),
    }
    assert len(dict(answer.headers)) == len(answer.headers)
    assert CANARY.encode() not in answer.body
    # HEAD is GET without the body, and says how long it would have been.
    assert (head.status, head.headers, head.body) == (status, answer.headers, b"")
    # A WebSocket gets the same answer where the server can send it, and else none.
    start, body = socket
    assert start == {
        "type": "websocket.http.response.start",
        "status": status,
        "headers": list(answer.headers),
    }
    assert body == {"type": "websocket.http.response.body", "body": answer.body}
    assert old_socket == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    assert notes.refusals == [(code, status, None)] * 4


def test_the_table_has_every_refusal_that_there_is() -> None:
    def kinds(kind: type[TenancyError]) -> set[type[TenancyError]]:
        return {kind}.union(*(kinds(part) for part in kind.__subclasses__()))

    own = {kind for kind in kinds(RequestRefused) if kind.__module__ == "tenancy_core.errors"}
    assert own <= {type(row[0]) for row in TABLE}


@pytest.mark.parametrize(
    "error",
    [ValueError(CANARY), NoCurrentTenant(CANARY), ConfigurationError(CANARY), TimeoutError(CANARY)],
    ids=lambda error: type(error).__name__,
)
async def test_R22_a_resolver_that_raises_anything_else_is_answered_with_503_and_named_in_the_log(
    make_config: Callable[..., TenancyConfig],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    async with opened(make_config(), resolver=Raises(error)) as tenancy:
        answer = await ask(TenancyMiddleware(WhoAmI(), tenancy), http_scope())
    assert (answer.status, answer.code) == (503, "resolver_failed")
    assert answer.header(b"retry-after") == b"1"
    assert CANARY.encode() not in answer.body
    (line,) = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert "'Raises'" in line.getMessage()
    assert CANARY not in line.getMessage()


async def test_R22_a_resolver_of_the_application_that_finds_nothing_is_a_missing_tenant(
    make_config: Callable[..., TenancyConfig],
) -> None:
    class Nothing:
        async def resolve(self, connection: Connection, /) -> TenantClaim | None:
            return None

    async with opened(make_config(), resolver=Nothing()) as tenancy:
        answer = await ask(TenancyMiddleware(WhoAmI(), tenancy), http_scope())
    assert (answer.status, answer.code) == (400, "tenant_missing")


async def test_R20_a_chain_whose_first_resolver_fails_answers_503_although_a_header_is_there(
    make_config: Callable[..., TenancyConfig],
) -> None:
    for conflict in ("reject", "first"):
        config = make_config(resolution_strategy="custom,header", on_resolver_conflict=conflict)
        async with opened(config, resolver=Raises(OSError("down"))) as tenancy:
            scope = http_scope(b"/me", (b"x-tenant-id", b"acme"))
            answer = await ask(TenancyMiddleware(WhoAmI(), tenancy), scope)
        assert (answer.status, answer.code) == (503, "resolver_failed")


@pytest.mark.parametrize("error", [OSError(CANARY), BackendUnavailable(CANARY), KeyError(CANARY)])
async def test_R20_a_store_that_is_down_is_answered_with_503_and_nothing_is_remembered(
    make_config: Callable[..., TenancyConfig], error: Exception
) -> None:
    class Down(CountingStore):
        down = True

        async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
            found = await super().get_by_identifier(identifier)
            if self.down:
                raise error
            return found

    store, notes = Down(), Notes()
    async with opened(make_config(), store=store, observers=[notes]) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        scope = http_scope(b"/me", (b"x-tenant-id", b"acme"))
        answer = await ask(app, dict(scope))
        assert (answer.status, answer.code) == (503, "backend_unavailable")
        assert CANARY.encode() not in answer.body
        assert notes.refusals == [("backend_unavailable", 503, None)]
        store.down = False
        assert (await ask(app, dict(scope))).body == b"acme"
        store.down = True
        assert (await ask(app, dict(scope))).body == b"acme"


async def test_an_application_may_answer_in_a_format_of_its_own(
    make_config: Callable[..., TenancyConfig],
) -> None:
    def plain(error: TenancyError) -> Refusal:
        return Refusal(418, ((b"x-code", error.code.encode()),), error.code.encode())

    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy, render=plain)
        answer = await ask(app, http_scope())
        start, body = await shake_hands(app, websocket_scope())
    headers = ((b"x-code", b"tenant_missing"), (b"content-length", b"14"))
    assert (answer.status, answer.headers, answer.body) == (418, headers, b"tenant_missing")
    assert (start["status"], body["body"]) == (418, b"tenant_missing")


async def test_what_the_application_raises_is_not_answered_by_the_middleware(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """A framework inside has handlers of its own; an answer from here could be a second one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise TenantNotFound

    async with opened(make_config()) as tenancy:
        for _ in range(2):  # by the slow way and by the fast one
            with pytest.raises(TenantNotFound):
                await ask(
                    TenancyMiddleware(app, tenancy), http_scope(b"/", (b"x-tenant-id", b"acme"))
                )


async def test_a_broken_observer_changes_no_answer(
    make_config: Callable[..., TenancyConfig],
) -> None:
    class Broken:
        def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
            raise ValueError(CANARY)

        def changed(self, tenant: Tenant, action: str, /) -> None: ...

    notes = Notes()
    async with opened(make_config(), observers=[Broken(), notes]) as tenancy:
        answers = [await ask(TenancyMiddleware(WhoAmI(), tenancy), http_scope()) for _ in range(3)]
        assert tenancy.parts.observers.failures == {"Broken": 3}
    assert [answer.status for answer in answers] == [400] * 3
    assert notes.refusals == [("tenant_missing", 400, None)] * 3


# -- malformed input, before anything sees it ------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"a" * 64, b"a" * 70_000, b"a" * 1_000_000, b"acme, beta", b"\x00", b"acme\n", b"ACME", b""],
    ids=["64", "70k", "1M", "list", "nul", "newline", "upper", "empty"],
)
async def test_R18_malformed_input_reaches_no_store_no_cache_and_no_log(
    make_config: Callable[..., TenancyConfig],
    caplog: pytest.LogCaptureFixture,
    value: bytes,
) -> None:
    caplog.set_level(logging.DEBUG)
    store, notes = CountingStore(), Notes()
    async with opened(make_config(), store=store, observers=[notes]) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(2):
            answer = await ask(app, http_scope(b"/me", (b"x-tenant-id", value)))
            assert (answer.status, answer.code) == (400, "tenant_invalid")
        l1 = tenancy.parts.directory.l1
        assert (len(l1), l1.negative_entries, l1.aliases) == (0, 0, {})
    assert store.asked == []
    assert notes.refusals == [("tenant_invalid", 400, None)] * 2
    if value:
        assert value.decode() not in caplog.text
    assert len(caplog.text) < 5_000


# -- what strangers can tell -----------------------------------------------------------------------

HIDDEN = [
    TenantStatus.PROVISIONING,
    TenantStatus.SUSPENDED,
    TenantStatus.ARCHIVED,
    TenantStatus.FAILED,
]


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
async def test_R24_strangers_cannot_tell_what_is_not_served_from_what_does_not_exist(
    make_config: Callable[..., TenancyConfig], method: str, *, hook: bool
) -> None:
    async def nobody(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        return False

    store = CountingStore()
    tenants = [record(status.value, status) for status in HIDDEN]
    names = ["unknown", *(tenant.identifier for tenant in tenants)]
    config = make_config()
    membership = nobody if hook else None
    async with opened(config, *tenants, store=store, membership=membership) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)

        async def probe(name: str) -> tuple[Answer, list[Any], int]:
            headers = [(b"x-tenant-id", name.encode())]
            before = len(store.asked)
            answer = await ask(app, http_scope(b"/me", *headers, method=method))
            socket = await shake_hands(app, websocket_scope(b"/me", *headers))
            return answer, socket, store.asked[before:].count(name)

        cold = [await probe(name) for name in names]
        warm = [await probe(name) for name in names]
    assert (cold[0][0].status, cold[0][2]) == (404, 1)
    assert warm[0][2] == 0
    assert cold == [cold[0]] * len(names)
    assert warm == [warm[0]] * len(names)


async def test_R24_an_active_tenant_is_no_different_for_strangers_where_there_is_a_hook(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async def nobody(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        return False

    async with opened(make_config(), record("acme"), membership=nobody) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        answers = [
            await ask(app, http_scope(b"/me", (b"x-tenant-id", name)))
            for name in (b"unknown", b"acme", b"unknown", b"acme")
        ]
    assert answers[0].status == 404
    assert answers == [answers[0]] * 4


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("shared", [False, True], ids=["one process", "shared cache"])
async def test_R24_what_is_not_served_is_remembered_for_as_long_as_what_does_not_exist(
    make_config: Callable[..., TenancyConfig], *, shared: bool
) -> None:
    """Else a stranger sees by the time of an answer, seconds later, which of them is cached."""
    clock, store = Clock(), CountingStore()
    config = make_config(l1_cache_ttl_seconds=60, cache_enabled=shared)
    tenants = [record(status.value, status) for status in HIDDEN]
    names = ["unknown", *(tenant.identifier for tenant in tenants)]
    async with opened(config, *tenants, store=store, clock=clock) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for seconds in [0.0, 1.0, 3.5, 1.0, 0.5, 4.0, 2.0, 30.0, 100.0]:
            clock.now += seconds
            store.asked.clear()
            for name in names:
                await ask(app, http_scope(b"/me", (b"x-tenant-id", name.encode())))
            assert store.asked in ([], names)
        assert store.asked == names


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
async def test_R24_a_flood_of_misses_tells_nothing_about_what_is_not_served(
    make_config: Callable[..., TenancyConfig], *, hook: bool
) -> None:
    """Were only unknown tenants counted, the 429 would name those that exist."""

    async def nobody(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        return False

    statuses = [*HIDDEN, *([TenantStatus.ACTIVE] if hook else [])]
    tenants = [record(status.value, status) for status in statuses]
    membership = nobody if hook else None
    for name in ("unknown", *(tenant.identifier for tenant in tenants)):
        config = make_config()
        async with opened(config, *tenants, clock=Clock(), membership=membership) as tenancy:
            app = TenancyMiddleware(WhoAmI(), tenancy)
            scope = http_scope(b"/me", (b"x-tenant-id", name.encode()))
            answers = [(await ask(app, dict(scope))).status for _ in range(MISSES.burst + 2)]
        assert answers == [404] * MISSES.burst + [429] * 2, name
