"""Isolation ``database`` passes the published suite, in each of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from support.databases import database_isolation, template_url
from support.leavings import LEAVINGS
from support.services.databases import fresh_database
from tenancy_core.testing import IsolationSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from tenancy_core import IsolationStrategy, Tenant


TABLE = "tenancy_suite_notes"


class DatabaseSuite(IsolationSuite):
    capabilities = frozenset(
        {
            "cleans_connections",
            "concurrent_sessions",
            "concurrent_writers",
            "own_place",
            "refuses_autocommit",
            "server_enforced",
        }
    )
    isolation_name = "database"
    settings: ClassVar[dict[str, Any]] = {}
    pooler: ClassVar[dict[str, Any] | None] = None

    @pytest.fixture
    def database(self, postgres_server: Postgres) -> Iterator[PostgresDatabase]:
        with fresh_database(postgres_server, createrole=True, createdb=True) as database:
            yield database

    @pytest.fixture
    async def isolation(
        self, database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
    ) -> AsyncIterator[IsolationStrategy]:
        settings = dict(self.settings)
        if self.pooler is not None:
            # Whoever makes databases goes to the server itself.
            bouncer = pgbouncer(default_pool_size=1, auth_database="postgres", **self.pooler)
            settings["database_url_template"] = template_url(database, via=bouncer)
        async with database_isolation(database, self.metadata, **settings) as opened:
            yield opened

    def leavings(self) -> Sequence[tuple[str, str]]:
        return LEAVINGS

    def attacks(self, victim: Tenant) -> Sequence[Sequence[str]]:
        name = victim.placement.name
        return (
            (f'TABLE "{name}".public.{TABLE}',),
            (f'SET LOCAL ROLE "{name}"', f"TABLE {TABLE}"),
            (f'SET SESSION AUTHORIZATION "{name}"', f"TABLE {TABLE}"),
        )


class TestDatabase(DatabaseSuite):
    pass


class TestOneRoleForAll(DatabaseSuite):
    settings: ClassVar = {"one_role": True}


class TestDatabasePooled(DatabaseSuite):
    """One server connection for each tenant: whoever has a session open has it."""

    capabilities = DatabaseSuite.capabilities - {"concurrent_sessions"}
    pooler: ClassVar = {"max_prepared_statements": 0}


class TestDatabasePooledPrepared(TestDatabasePooled):
    """A pooler that gives each client its prepared statements on whatever server it has."""

    settings: ClassVar = {"settings": {"prepared_statements": "on"}}
    pooler: ClassVar = {"max_prepared_statements": 100}
