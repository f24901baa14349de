"""The tenant store passes the published suite on PostgreSQL, directly and behind a pooler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from support.postgres_store import store_on
from tenancy_core.testing import TenantStoreSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from tenancy_core import TenantStore
    from tenancy_core._stores.sql import SqlTenantStore


class StoreSuite(TenantStoreSuite):
    capabilities = frozenset({"shared"})

    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[TenantStore]:
        self.url = url
        async with self.another() as opened:
            yield opened

    def another(self) -> SqlTenantStore:
        return store_on(self.url)


class TestStore(StoreSuite):
    @pytest.fixture
    def url(self, postgres_database: PostgresDatabase) -> str:
        return postgres_database.control_url


class TestStorePooled(StoreSuite):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def url(self, postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]) -> str:
        # Two server connections for eight clients: the suite reads while it writes, so that one
        # would wait for itself.
        bouncer = pgbouncer(pool_mode="transaction", default_pool_size=2, **self.options)
        return postgres_database.url(postgres_database.control, via=bouncer)


class TestStorePooledPrepared(TestStorePooled):
    # Which the store does not make use of, and must not be hurt by.
    options: ClassVar = {"max_prepared_statements": 100}
