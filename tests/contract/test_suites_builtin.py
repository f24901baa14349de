"""Everything that the core ships passes the suite of its Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import pytest

from support.tokens import FLAT, token
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._ratelimit import MemoryRateLimiter
from tenancy_core._resolvers.header import HeaderResolver
from tenancy_core._resolvers.jwt.resolver import JwtResolver
from tenancy_core._resolvers.path import PathResolver
from tenancy_core._resolvers.subdomain import SubdomainResolver
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import (
    CacheBackendSuite,
    FakeClock,
    InvalidationBusSuite,
    IsolationSuite,
    RateLimiterSuite,
    ResolverSuite,
    TenantStoreSuite,
    make_connection,
)
from tenancy_sqlite import SqliteDatabaseIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tenancy_core import (
        CacheBackend,
        Connection,
        IsolationStrategy,
        RateLimiter,
        Resolver,
        TenancyConfig,
        Tenant,
        TenantStore,
    )
    from tenancy_core.contract import InvalidationBus

BOTH = ("asyncio", "trio")


# -- resolvers -------------------------------------------------------------------------------------


class TestHeaderResolver(ResolverSuite):
    capabilities = frozenset({"carries_identifier", "in_header"})
    backends = BOTH

    @pytest.fixture
    def resolver(self) -> Resolver:
        return HeaderResolver("X-Tenant-ID")

    def connection_for(self, identifier: str) -> Connection:
        return make_connection(headers={"X-Tenant-ID": identifier})


class TestSubdomainResolver(ResolverSuite):
    capabilities = frozenset({"carries_identifier", "case_insensitive", "in_header"})
    backends = BOTH

    @pytest.fixture
    def resolver(self) -> Resolver:
        return SubdomainResolver("example.com")

    def connection_for(self, identifier: str) -> Connection | None:
        if "." in identifier:
            return None  # a name of several labels: another host, and nobody's
        return make_connection(host=f"{identifier}.example.com")


class TestPathResolver(ResolverSuite):
    capabilities = frozenset({"carries_identifier"})
    backends = BOTH

    @pytest.fixture
    def resolver(self) -> Resolver:
        return PathResolver("/tenants")

    def connection_for(self, identifier: str) -> Connection:
        segment = quote_from_bytes(identifier.encode("utf-8", "surrogateescape"), safe="")
        return make_connection(f"/tenants/{segment}/notes")


class TestJwtResolver(ResolverSuite):
    capabilities = frozenset({"carries_identifier", "in_header", "verified"})
    backends = BOTH

    @pytest.fixture
    def resolver(self, make_config: Callable[..., TenancyConfig]) -> Resolver:
        return JwtResolver(make_config(**FLAT))

    def connection_for(self, identifier: str) -> Connection:
        return self.sends(token(tenant_id=identifier))

    def forged_connection_for(self, identifier: str) -> Connection:
        return self.sends(token(tenant_id=identifier, key="another secret, and as long" * 3))

    def sends(self, value: bytes) -> Connection:
        return make_connection(headers=[("Authorization", b"Bearer " + value)])


# -- caches ----------------------------------------------------------------------------------------


class TestMemoryCacheBackend(CacheBackendSuite):
    capabilities = frozenset({"bus"})
    backends = BOTH

    @pytest.fixture
    def cache(self) -> CacheBackend:
        self.clock = FakeClock()
        return MemoryCacheBackend(clock=self.clock)


# -- limiters --------------------------------------------------------------------------------------


class TestMemoryInvalidationBus(InvalidationBusSuite):
    backends = BOTH

    @pytest.fixture
    def bus(self) -> InvalidationBus:
        return MemoryCacheBackend()


class TestMemoryRateLimiter(RateLimiterSuite):
    capabilities = frozenset({"exact"})
    backends = BOTH

    @pytest.fixture
    def limiter(self) -> RateLimiter:
        self.clock = FakeClock()
        return MemoryRateLimiter(self.clock)


class TestMemoryRateLimiterByTheMachinesClock(RateLimiterSuite):
    capabilities = frozenset({"exact"})

    @pytest.fixture
    def limiter(self) -> RateLimiter:
        return MemoryRateLimiter()


# -- isolation -------------------------------------------------------------------------------------


class TestSqliteDatabaseIsolation(IsolationSuite):
    capabilities = frozenset(
        {"concurrent_sessions", "own_place", "server_enforced", "transactional_ddl"}
    )

    @pytest.fixture
    async def isolation(
        self, make_config: Callable[..., TenancyConfig], tmp_path: Path
    ) -> AsyncIterator[IsolationStrategy]:
        self.root = tmp_path / "tenants"
        config = make_config(max_cached_engines=3)
        async with SqliteDatabaseIsolation(
            config, ConnectionBudget(4), root=self.root, metadata=self.metadata
        ) as opened:
            yield opened

    def attacks(self, victim: Tenant) -> list[tuple[str, ...]]:
        path = self.root / f"{victim.placement.name}.db"
        read = "SELECT text FROM victim.tenancy_suite_notes"
        return [
            ("COMMIT", f"ATTACH DATABASE '{path}' AS victim", read),
            ("COMMIT", f"ATTACH DATABASE 'file:{path}' AS victim", read),
            ("COMMIT", f"VACUUM INTO '{path}'"),
            (f"SELECT text FROM {victim.placement.name}.tenancy_suite_notes",),  # noqa: S608 - ours
        ]


# -- stores ----------------------------------------------------------------------------------------


class TestMemoryTenantStore(TenantStoreSuite):
    backends = BOTH

    @pytest.fixture
    def store(self) -> TenantStore:
        return MemoryTenantStore()


class TestSqlTenantStoreOnSqlite(TenantStoreSuite):
    capabilities = frozenset({"shared"})

    @pytest.fixture
    async def store(self, make_config: Callable[..., TenancyConfig]) -> AsyncIterator[TenantStore]:
        self.config = make_config()
        async with self.another() as opened:
            yield opened

    def another(self) -> SqlTenantStore:
        return SqlTenantStore(self.config, ConnectionBudget(10))
