"""Isolation ``rls`` passes the published suite, directly and through a pooler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from sqlalchemy import Identity, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.scoped import rls
from tenancy_core.sql import TenantScoped, tenant_column, tenant_unique
from tenancy_core.testing import IsolationSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from support.services.databases import PostgresDatabase
    from tenancy_core import IsolationStrategy
    from tenancy_core.tenant import Tenant

LEAVINGS = (
    (
        "SET app.tenant_id = 'f0000000-0000-4000-8000-00000000000f'",
        "SELECT pg_catalog.current_setting('app.tenant_id')",
    ),
    ("SET search_path = pg_catalog", "SELECT pg_catalog.current_setting('search_path')"),
    ("SET statement_timeout = 12345", "SELECT pg_catalog.current_setting('statement_timeout')"),
    (
        "SET app.remains = 'behind'",
        "SELECT nullif(pg_catalog.current_setting('app.remains', true), '')",
    ),
    ("CREATE TEMPORARY TABLE left_behind (id integer)", "SELECT id FROM left_behind"),
    (
        "SELECT pg_catalog.pg_advisory_lock(815)",
        (
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks "
            "WHERE locktype = 'advisory' AND objid = 815"
        ),
    ),
    ("LISTEN left_behind", "SELECT * FROM pg_catalog.pg_listening_channels()"),
    (
        "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
        "SELECT name FROM pg_catalog.pg_cursors WHERE name = 'left_behind'",
    ),
)


class Base(DeclarativeBase):
    pass


class TextBase(DeclarativeBase):
    pass


class ScopedNote(TenantScoped, Base):
    __tablename__ = "tenancy_suite_notes"
    __table_args__ = (tenant_unique("text"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    text: Mapped[str]


class TextNote(TextBase):
    __tablename__ = "tenancy_suite_notes"
    __table_args__ = (tenant_unique("text"),)

    tenant_id = tenant_column("text")
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class RlsSuite(IsolationSuite):
    capabilities = frozenset({"cleans_connections", "concurrent_writers", "refuses_autocommit"})
    isolation_name = "rls"
    model = ScopedNote
    settings: ClassVar[dict[str, Any]] = {}
    section: ClassVar[dict[str, Any]] = {}

    def key(self, tenant: Tenant, number: int) -> dict[str, Any]:
        return {"tenant_id": tenant.id, "id": number}

    def leavings(self) -> Sequence[tuple[str, str]]:
        return LEAVINGS

    @pytest.fixture
    async def isolation(
        self, postgres_database: PostgresDatabase, url: str
    ) -> AsyncIterator[IsolationStrategy]:
        # One of the things that a handler can leave behind.
        await postgres_database.admin(
            f'GRANT TEMPORARY ON DATABASE "{postgres_database.name}" TO "{postgres_database.app}"'
        )
        async with rls(
            postgres_database,
            self.metadata,
            section=self.section,
            database_url=url,
            **self.settings,
        ) as opened:
            yield opened


class TestRls(RlsSuite):
    capabilities = RlsSuite.capabilities | {"concurrent_sessions"}

    @pytest.fixture
    def url(self, postgres_database: PostgresDatabase) -> str:
        return postgres_database.app_url


class TestRlsOnOneConnection(TestRls):
    """Whatever a session leaves behind, the next one would meet."""

    capabilities = RlsSuite.capabilities
    settings: ClassVar = {"database_pool_size": 1, "max_database_connections": 3}


class TestRlsWithTextKeys(TestRls):
    model = TextNote

    def key(self, tenant: Tenant, number: int) -> dict[str, Any]:
        return {"tenant_id": str(tenant.id), "id": number}


class TestRlsThroughPgBouncer(RlsSuite):
    """One server connection for all: each transaction meets what the last one left."""

    pooler: ClassVar[dict[str, Any]] = {"max_prepared_statements": 0}

    @pytest.fixture
    def url(self, postgres_database: PostgresDatabase, pgbouncer: Callable[..., Any]) -> str:
        pooler = pgbouncer(pool_mode="transaction", default_pool_size=1, **self.pooler)
        return postgres_database.url(postgres_database.app, via=pooler)


class TestRlsThroughPgBouncerPrepared(TestRlsThroughPgBouncer):
    """All tenants' statements are the same, and so are the plans that the server keeps of them."""

    section: ClassVar = {"prepared_statements": "on"}
    pooler: ClassVar = {"max_prepared_statements": 100}
