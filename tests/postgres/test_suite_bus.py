"""The bus on PostgreSQL passes the published suite."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from support.services.databases import fresh_database
from tenancy_core import TenancyConfig
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import InvalidationBusSuite
from tenancy_postgres import PostgresSettings
from tenancy_postgres.invalidation.bus import PostgresBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core.contract import InvalidationBus


class TestPostgresBus(InvalidationBusSuite):
    capabilities = frozenset({"shared"})

    @pytest.fixture
    def database(self, postgres_server: Postgres) -> Iterator[PostgresDatabase]:
        with fresh_database(postgres_server) as database:
            self.config = TenancyConfig(
                database_url=database.control_url, max_database_connections=8
            )
            yield database

    @pytest.fixture
    async def bus(self, database: PostgresDatabase) -> AsyncIterator[InvalidationBus]:
        async with self.another() as bus:
            yield bus

    def another(self) -> AbstractAsyncContextManager[InvalidationBus]:
        return self.opened()

    async def test_a_connection_that_listens_is_nobody_elses(self, bus: PostgresBus) -> None:
        """One that came back to the pool would go on hearing, and its next user with it."""
        for _ in range(3):
            async with bus.subscribe():
                assert bus.listening().pool.open == 1  # type: ignore[attr-defined]
            assert bus.listening().pool.open == 0  # type: ignore[attr-defined]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[InvalidationBus]:
        budget = ConnectionBudget(self.config.connection_ceiling)
        async with SqlTenantStore(self.config, budget) as store:
            bus = PostgresBus(self.config, budget, PostgresSettings(), store)
            async with bus:
                yield bus
