"""Isolation ``schema`` passes the published suite, in each of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tenancy_core import TenancyConfig
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import IsolationSuite
from tenancy_postgres import PostgresSettings, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from support.services.databases import PostgresDatabase
    from tenancy_core import IsolationStrategy

LEAVINGS = (
    ("SET search_path = public", "SELECT pg_catalog.current_setting('search_path')"),
    ("SET statement_timeout = 12345", "SELECT pg_catalog.current_setting('statement_timeout')"),
    ("SET app.remains = 'behind'", "SELECT nullif(pg_catalog.current_setting('app.remains', true), '')"),
    ("CREATE TEMPORARY TABLE left_behind (id integer)", "SELECT id FROM left_behind"),
    (
        "SELECT pg_catalog.pg_advisory_lock(815)",
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks"
        " WHERE locktype = 'advisory' AND objid = 815",
    ),
    ("LISTEN left_behind", "SELECT * FROM pg_catalog.pg_listening_channels()"),
    (
        "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
        "SELECT name FROM pg_catalog.pg_cursors WHERE name = 'left_behind'",
    ),
)


class SchemaSuite(IsolationSuite):
    capabilities = frozenset(
        {
            "cleans_connections",
            "concurrent_writers",
            "own_place",
            "refuses_autocommit",
        }
    )
    isolation_name = "schema"
    settings: dict[str, Any] = {}

    @pytest.fixture
    async def isolation(
        self, postgres_database: PostgresDatabase
    ) -> AsyncIterator[IsolationStrategy]:
        # One of the things that a handler can leave behind.
        await postgres_database.admin(
            f'GRANT TEMPORARY ON DATABASE "{postgres_database.name}" TO "{postgres_database.app}"'
        )
        config = TenancyConfig(
            database_url=postgres_database.app_url,
            control_database_url=postgres_database.control_url,
            database_pool_size=4,
            database_max_overflow=0,
            max_database_connections=6,
        )
        async with SchemaIsolation(
            config,
            ConnectionBudget(config.connection_ceiling),
            PostgresSettings(**self.settings),
            self.metadata,
        ) as opened:
            yield opened

    def leavings(self) -> Sequence[tuple[str, str]]:
        return LEAVINGS


class TestSchema(SchemaSuite):
    pass
