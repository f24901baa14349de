"""Isolation ``schema`` passes the published suite, in each of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from sqlalchemy import column, literal_column, select, table, update

from support.leavings import LEAVINGS
from support.services.databases import fresh_database
from tenancy_core import TenancyConfig
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import IsolationSuite
from tenancy_postgres import PostgresSettings, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from tenancy_core import IsolationStrategy, Tenant

TABLE = "tenancy_suite_notes"


class SchemaSuite(IsolationSuite):
    capabilities = frozenset(
        {
            "cleans_connections",
            "concurrent_sessions",
            "concurrent_writers",
            "own_place",
            "refuses_autocommit",
        }
    )
    isolation_name = "schema"
    settings: ClassVar[dict[str, Any]] = {}
    one_role = False
    pooler: ClassVar[dict[str, Any] | None] = None

    @pytest.fixture
    def database(self, postgres_server: Postgres) -> Iterator[PostgresDatabase]:
        with fresh_database(postgres_server, createrole=True) as database:
            yield database

    @pytest.fixture
    async def isolation(
        self, database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
    ) -> AsyncIterator[IsolationStrategy]:
        # One of the things that a handler can leave behind.
        await database.admin(f'GRANT TEMPORARY ON DATABASE "{database.name}" TO PUBLIC')
        config = TenancyConfig(
            database_url=self.url_of(database, pgbouncer),
            control_database_url=None if self.one_role else database.control_url,
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

    def url_of(self, database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]) -> str:
        """Return the URL of the sessions' role."""
        if self.pooler is None:
            return database.owner_url if self.one_role else database.app_url
        bouncer = pgbouncer(pool_mode="transaction", default_pool_size=1, **self.pooler)
        return database.url(database.app, via=bouncer)

    def leavings(self) -> Sequence[tuple[str, str]]:
        return LEAVINGS

    def attacks(self, victim: Tenant) -> Sequence[Sequence[str]]:
        notes = table(TABLE, column("text"), schema=victim.placement.name)
        return (
            (str(select(notes.c.text)),),
            (str(update(notes).values(text=literal_column("'taken'"))),),
            (f'SET LOCAL search_path = "{victim.placement.name}"', f"TABLE {TABLE}"),
        )


class TestSchema(SchemaSuite):
    pass


class TestQualified(SchemaSuite):
    settings: ClassVar = {"schema_mode": "qualified"}

    def table_of(self, tenant: Tenant) -> str:
        return f'"{tenant.placement.name}".{TABLE}'


class TestRoles(SchemaSuite):
    settings: ClassVar = {"schema_roles": True}
    capabilities = SchemaSuite.capabilities | {"server_enforced"}


class TestQualifiedRoles(TestQualified):
    settings: ClassVar = {"schema_mode": "qualified", "schema_roles": True}
    capabilities = SchemaSuite.capabilities | {"server_enforced"}


class TestOneRole(SchemaSuite):
    """Without a role for the control plane: the tables belong to the sessions' own."""

    capabilities = SchemaSuite.capabilities | {"transactional_ddl"}
    one_role = True


# One server connection for all: whoever has a session open has it.
ALONE = frozenset({"concurrent_sessions"})


class TestSchemaPooled(SchemaSuite):
    capabilities = SchemaSuite.capabilities - ALONE
    pooler: ClassVar = {"max_prepared_statements": 0}


class TestQualifiedPooled(TestQualified):
    capabilities = TestQualified.capabilities - ALONE
    pooler: ClassVar = {"max_prepared_statements": 0}


class TestRolesPooled(TestRoles):
    capabilities = TestRoles.capabilities - ALONE
    pooler: ClassVar = {"max_prepared_statements": 0}


# A pooler that gives each client its prepared statements on whatever server it has.
PREPARED: dict[str, Any] = {"prepared_statements": "on"}
PREPARES: dict[str, Any] = {"max_prepared_statements": 100}


class TestSchemaPooledPrepared(TestSchemaPooled):
    settings: ClassVar = {**TestSchemaPooled.settings, **PREPARED}
    pooler: ClassVar = PREPARES


class TestQualifiedPooledPrepared(TestQualifiedPooled):
    settings: ClassVar = {**TestQualifiedPooled.settings, **PREPARED}
    pooler: ClassVar = PREPARES


class TestRolesPooledPrepared(TestRolesPooled):
    settings: ClassVar = {**TestRolesPooled.settings, **PREPARED}
    pooler: ClassVar = PREPARES
