"""What a type checker accepts as a resolver, a strategy or a limiter, and what it refuses.

Every refusal is marked for mypy and for pyright. Both are told to report a mark that refuses
nothing, so a line that one of them begins to accept fails the test just as one that it begins to
refuse.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, assert_type

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tenancy_core import (
    CacheBackend,
    Connection,
    IsolationStrategy,
    RateLimit,
    RateLimiter,
    Resolver,
    Tenancy,
    TenancyConfig,
    Tenant,
    TenantClaim,
    current_tenant,
    require_tenant,
)
from tenancy_core.contract import AuditEvent, AuditSink, Observer, RateLimitDecision

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

# -- resolvers ---------------------------------------------------------------------------------


class GoodResolver:
    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        key = connection.header(b"x-api-key")
        return None if key is None else TenantClaim(key, "api-key", verified=True)


class NarrowerResolver:
    """Says more than it has to, which is allowed."""

    async def resolve(self, connection: Connection) -> TenantClaim:
        return TenantClaim(connection.kind, "kind")


class SyncResolver:
    def resolve(self, connection: Connection, /) -> TenantClaim | None:
        return None


class StringResolver:
    async def resolve(self, connection: Connection, /) -> str | None:
        return connection.header(b"x-tenant-id")


class ScopeResolver:
    async def resolve(self, connection: dict[str, object], /) -> TenantClaim | None:
        return None


good: Resolver = GoodResolver()
narrower: Resolver = NarrowerResolver()
sync: Resolver = SyncResolver()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
string: Resolver = StringResolver()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
scope: Resolver = ScopeResolver()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# -- isolation strategies ----------------------------------------------------------------------


class GoodIsolation:
    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        raise NotImplementedError

    def connection(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        raise NotImplementedError

    async def provision(self, tenant: Tenant, /) -> None: ...

    async def exists(self, tenant: Tenant, /) -> bool:
        return True

    async def destroy(self, tenant: Tenant, /) -> None: ...


class DecoratedIsolation(GoodIsolation):
    """A generator with the decorator is as good as a class."""

    @asynccontextmanager
    async def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AsyncGenerator[AsyncSession, None]:
        raise NotImplementedError
        yield


class AsyncSessionMethod:
    """``async def session`` is the mistake that everybody makes once."""

    async def session(self, tenant: Tenant, /, *, read_only: bool = False) -> AsyncSession:
        raise NotImplementedError

    connection = GoodIsolation.connection
    provision = GoodIsolation.provision
    exists = GoodIsolation.exists
    destroy = GoodIsolation.destroy


class WithoutReadOnly(GoodIsolation):
    def session(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tenant: Tenant, /
    ) -> AbstractAsyncContextManager[AsyncSession]:
        raise NotImplementedError


class WithoutDestroy:
    session = GoodIsolation.session
    connection = GoodIsolation.connection
    provision = GoodIsolation.provision
    exists = GoodIsolation.exists


isolation: IsolationStrategy = GoodIsolation()
decorated: IsolationStrategy = DecoratedIsolation()
awaited: IsolationStrategy = AsyncSessionMethod()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
incomplete: IsolationStrategy = WithoutDestroy()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# -- limiters, caches, listeners ---------------------------------------------------------------


class GoodLimiter:
    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        return RateLimitDecision(
            allowed=True, limit=limit, remaining=limit.burst - cost, retry_after=0, reset_after=0
        )


class BooleanLimiter:
    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> bool:
        return True


class WithoutCost:
    async def hit(self, key: str, limit: RateLimit, /) -> RateLimitDecision:
        raise NotImplementedError


limiter: RateLimiter = GoodLimiter()
boolean: RateLimiter = BooleanLimiter()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
costless: RateLimiter = WithoutCost()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class GoodCache:
    async def get(self, key: str, /) -> bytes | None: ...

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None: ...

    async def delete(self, key: str, /) -> None: ...

    async def generation(self, *, bump: bool = False) -> int:
        return int(bump)

    async def publish(self, message: str, /) -> None: ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        raise NotImplementedError


class TextCache(GoodCache):
    async def get(self, key: str, /) -> str | None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


cache: CacheBackend = GoodCache()
text: CacheBackend = TextCache()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class GoodListener:
    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None: ...

    def changed(self, tenant: Tenant, action: str, /) -> None: ...

    async def write(self, event: AuditEvent, /) -> None: ...


class AsyncListener(GoodListener):
    async def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class AssumesATenant(GoodListener):
    def refused(self, code: str, status: int, tenant: Tenant, /) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


observer: Observer = GoodListener()
sink: AuditSink = GoodListener()
coroutine: Observer = AsyncListener()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
assuming: Observer = AssumesATenant()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# -- the object that an application holds ------------------------------------------------------


async def is_member(connection: Connection, tenant: Tenant, claim: TenantClaim, /) -> bool:
    return claim.verified and connection.client_address is not None and tenant.active


async def says_yes(connection: Connection, tenant: Tenant, claim: TenantClaim, /) -> str:
    return "yes"


def not_awaited(connection: Connection, tenant: Tenant, claim: TenantClaim, /) -> bool:
    return True


config = TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db", cache_ttl=60)
tenancy = Tenancy(config, resolver=good, membership=is_member, observers=[observer])
Tenancy(config, membership=says_yes)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tenancy(config, membership=not_awaited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tenancy(config, resolver=SyncResolver())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tenancy(config, isolation=AsyncSessionMethod())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tenancy(config, tenancy_resolver=good)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Tenancy("sqlite+aiosqlite:///./data/control.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def use(tenant_id: UUID) -> None:
    async with tenancy as opened:
        assert_type(opened, Tenancy)
        tenant = await opened.tenants.create("acme", plan="pro")
        assert_type(tenant, Tenant)
        async with opened.scope("acme") as by_name, opened.scope(tenant_id) as by_id:
            assert_type((by_name, by_id), tuple[Tenant, Tenant])
        async with opened.scope(tenant), opened.session(read_only=True) as session:
            assert_type(session, AsyncSession)
        async with opened.connection() as connection:
            assert_type(connection, AsyncConnection)
        assert_type(current_tenant(), Tenant | None)
        assert_type(require_tenant(), Tenant)
        assert_type(await opened.run_in_executor(divmod, 7, 2), tuple[int, int])
        opened.scope(42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        opened.session()()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
        async with opened.session(tenant="acme"):  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
            tenant.name = "Other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
            _ = current_tenant().name  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
