"""Who may act for a tenant, and what the others are told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import Answer, WhoAmI, ask, http_scope, opened, record
from tenancy_core import TenancyMiddleware, TenantClaim, TenantStatus
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    NoCurrentTenant,
    RateLimitExceeded,
    ResolverError,
    TenantMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import Connection, TenancyConfig, Tenant

pytestmark = pytest.mark.anyio

MEMBER = (b"x-member", b"yes")
ALL = [status for status in TenantStatus if status is not TenantStatus.ERASED]


async def is_member(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
    return connection.header(b"x-member") == "yes"


class Proves:
    """Takes the tenant from a header and says that it is proven, as a token would be."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        value = connection.header(b"x-token")
        return None if value is None else TenantClaim(value, "token", verified=True)


def outcome(answer: Answer) -> tuple[int, str | bytes]:
    return answer.status, answer.code or answer.body


TOLD: dict[TenantStatus, tuple[int, str | bytes]] = {
    TenantStatus.ACTIVE: (200, b"acme"),
    TenantStatus.SUSPENDED: (403, "tenant_suspended"),
    TenantStatus.PROVISIONING: (503, "tenant_provisioning"),
}
NOT_FOUND: tuple[int, str | bytes] = (404, "tenant_not_found")


@pytest.mark.parametrize("status", ALL)
async def test_R24_a_member_is_told_why_and_a_stranger_is_told_nothing(
    make_config: Callable[..., TenancyConfig], status: TenantStatus
) -> None:
    inner = WhoAmI()
    async with opened(make_config(), record("acme", status), membership=is_member) as tenancy:
        app = TenancyMiddleware(inner, tenancy)
        for _ in range(2):
            member = await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme"), MEMBER))
            stranger = await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))
            nobody = await ask(app, http_scope(b"/", (b"x-tenant-id", b"nobody"), MEMBER))
            assert outcome(member) == TOLD.get(status, NOT_FOUND)
            assert outcome(stranger) == outcome(nobody) == NOT_FOUND
            assert stranger == nobody
    assert inner.calls == (2 if status is TenantStatus.ACTIVE else 0)


@pytest.mark.parametrize("status", ALL)
async def test_R24_without_a_hook_who_proves_the_tenant_is_a_member(
    make_config: Callable[..., TenancyConfig], status: TenantStatus
) -> None:
    config = make_config(resolution_strategy="custom,header")
    async with opened(config, record("acme", status), resolver=Proves()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        proven = await ask(app, http_scope(b"/", (b"x-token", b"acme")))
        said = await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))
    assert outcome(proven) == TOLD.get(status, NOT_FOUND)
    assert outcome(said) == ((200, b"acme") if status is TenantStatus.ACTIVE else NOT_FOUND)


async def test_the_hook_is_asked_again_for_every_request(
    make_config: Callable[..., TenancyConfig],
) -> None:
    members = {"acme"}

    async def hook(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        assert (tenant.identifier, claim.identifier, claim.source) == ("acme", "acme", "header")
        assert connection.raw_path == b"/x"
        return tenant.identifier in members

    async with opened(make_config(), membership=hook) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        scope = http_scope(b"/x", (b"x-tenant-id", b"acme"))
        assert outcome(await ask(app, dict(scope))) == (200, b"acme")
        members.clear()
        assert outcome(await ask(app, dict(scope))) == NOT_FOUND
        members.add("acme")
        assert outcome(await ask(app, dict(scope))) == (200, b"acme")
        assert tenancy.parts.directory.l1.aliases == {}


@pytest.mark.parametrize(
    "answer", [None, False, 0, 1, "yes", "false", [], object()], ids=lambda value: repr(value)[:8]
)
async def test_only_true_is_yes(make_config: Callable[..., TenancyConfig], answer: object) -> None:
    async def hook(connection: Connection, tenant: Tenant, claim: TenantClaim) -> Any:
        return answer

    async with opened(make_config(), membership=hook) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert outcome(await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))) == NOT_FOUND


@pytest.mark.parametrize(
    "error",
    [
        ValueError("canary"),
        OSError("canary"),
        LookupError("canary"),
        TimeoutError("canary"),
        ConfigurationError("canary"),
        NoCurrentTenant("canary"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("status", [TenantStatus.ACTIVE, TenantStatus.SUSPENDED])
async def test_R22_a_hook_that_raises_is_answered_with_503(
    make_config: Callable[..., TenancyConfig],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: TenantStatus,
) -> None:
    async def hook(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        raise error

    inner = WhoAmI()
    async with opened(make_config(), record("acme", status), membership=hook) as tenancy:
        answer = await ask(
            TenancyMiddleware(inner, tenancy), http_scope(b"/", (b"x-tenant-id", b"acme"))
        )
    assert outcome(answer) == (503, "resolver_failed")
    assert answer.header(b"retry-after") == b"1"
    assert b"canary" not in answer.body
    assert inner.calls == 0
    (line,) = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert "membership" in line.getMessage()
    assert "canary" not in line.getMessage()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidCredentials(), (401, "token_invalid")),
        (TenantMismatch(), (403, "tenant_mismatch")),
        (RateLimitExceeded(), (429, "rate_limited")),
        (BackendUnavailable("down"), (503, "backend_unavailable")),
        (ResolverError("its own words"), (503, "resolver_failed")),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_hook_may_refuse_in_its_own_way(
    make_config: Callable[..., TenancyConfig],
    error: Exception,
    expected: tuple[int, str],
) -> None:
    async def hook(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        raise error

    async with opened(make_config(), membership=hook) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert outcome(await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))) == expected


async def test_a_hook_that_is_no_coroutine_is_answered_with_503_and_not_taken_for_a_yes(
    make_config: Callable[..., TenancyConfig],
) -> None:
    # Of a lambda nobody can tell before it is called; a plain def is refused at the start.
    async with opened(make_config(), membership=lambda *_: True) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        answer = await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))
    assert outcome(answer) == (503, "resolver_failed")


async def test_a_request_that_is_cancelled_in_the_hook_is_cancelled(
    make_config: Callable[..., TenancyConfig],
) -> None:
    asked = asyncio.Event()

    async def hook(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    async with opened(make_config(), membership=hook) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        task = asyncio.create_task(ask(app, http_scope(b"/", (b"x-tenant-id", b"acme"))))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- proof -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"acme", b"suspended", b"nobody"])
async def test_where_proof_is_required_a_tenant_that_is_only_said_is_refused_and_not_looked_up(
    make_config: Callable[..., TenancyConfig], name: bytes
) -> None:
    config = make_config(require_verified_tenant=True, resolution_strategy="header,custom")
    tenants = [record("acme"), record("suspended", TenantStatus.SUSPENDED)]
    async with opened(config, *tenants, resolver=Proves()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        answer = await ask(app, http_scope(b"/", (b"x-tenant-id", name)))
        assert outcome(answer) == (401, "token_invalid")
        assert answer.header(b"www-authenticate") == b"Bearer"  # none was sent
        assert tenancy.parts.store.asked == []
        proven = await ask(app, http_scope(b"/", (b"x-token", b"acme")))
        both = await ask(app, http_scope(b"/", (b"x-token", b"acme"), (b"x-tenant-id", b"acme")))
        said = await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))
    assert outcome(proven) == outcome(both) == (200, b"acme")
    assert outcome(said) == (401, "token_invalid")  # also now that it is cached
