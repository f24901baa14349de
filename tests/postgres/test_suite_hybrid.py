"""Isolation ``hybrid`` passes the published suite, for tenants of either tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from sqlalchemy import Identity
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.hybrid import hybrid, hybrid_database
from support.leavings import LEAVINGS
from tenancy_core.sql import TenantScoped, tenant_unique
from tenancy_core.testing import IsolationSuite, make_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import IsolationStrategy, Tenant

TABLE = "tenancy_suite_notes"
OF_A_TENANT = (
    "SET app.tenant_id = 'f0000000-0000-4000-8000-00000000000f'",
    "SELECT pg_catalog.current_setting('app.tenant_id')",
)


class Base(DeclarativeBase):
    pass


class ScopedNote(TenantScoped, Base):
    __tablename__ = TABLE
    __table_args__ = (tenant_unique("text"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    text: Mapped[str]


class StandardSuite(IsolationSuite):
    """What is tested is a standard tenant, ``acme``; ``beta`` and half of the crowd are premium."""

    capabilities = frozenset(
        {"cleans_connections", "concurrent_sessions", "concurrent_writers", "refuses_autocommit"}
    )
    isolation_name = "hybrid"
    model = ScopedNote
    tiers: ClassVar[tuple[str, str]]
    section: ClassVar[dict[str, Any]] = {}

    def is_premium(self, identifier: str) -> bool:
        """Whether the suite's tenant of this name is a premium one."""
        _, _, number = identifier.partition("-")
        # In pairs: the suite does something else with each second one.
        return identifier == "beta" or (number != "" and int(number) // 2 % 2 == 1)

    def tenant_for(self, identifier: str) -> Tenant:
        return make_tenant(identifier, isolation=self.tiers[self.is_premium(identifier)])

    def key(self, tenant: Tenant, number: int) -> dict[str, Any]:
        return {"tenant_id": tenant.id, "id": number}

    @pytest.fixture
    def database(self, postgres_server: Postgres) -> Iterator[PostgresDatabase]:
        with hybrid_database(postgres_server) as database:
            yield database

    @pytest.fixture
    async def isolation(self, database: PostgresDatabase) -> AsyncIterator[IsolationStrategy]:
        # One of the things that a handler can leave behind.
        await database.admin(f'GRANT TEMPORARY ON DATABASE "{database.name}" TO PUBLIC')
        standard, premium = self.tiers
        async with hybrid(
            database, self.metadata, standard=standard, premium=premium, section=self.section
        ) as opened:
            yield opened

    def leavings(self) -> Sequence[tuple[str, str]]:
        return (*LEAVINGS, OF_A_TENANT)

    def attacks(self, victim: Tenant) -> Sequence[Sequence[str]]:
        name = victim.placement.name
        return (
            (f'TABLE "{name}".{TABLE}',),
            (f"UPDATE \"{name}\".{TABLE} SET text = 'taken'",),  # noqa: S608 - ours
            (f'TABLE "{name}".public.{TABLE}',),
            (f'SET LOCAL search_path = "{name}"', f"TABLE {TABLE}"),
            (f'SET SESSION AUTHORIZATION "{name}"', f"TABLE {TABLE}"),
            (f"SET LOCAL app.tenant_id = '{victim.id}'", f"TABLE public.{TABLE}"),
        )


class PremiumSuite(StandardSuite):
    """What is tested is a premium tenant, as all but ``beta`` are."""

    capabilities = StandardSuite.capabilities | {"own_place"}

    def is_premium(self, identifier: str) -> bool:
        return identifier != "beta"


ENFORCED = frozenset({"server_enforced"})


class TestRowsAndSchemasStandard(StandardSuite):
    tiers = ("rls", "schema")


class TestRowsAndSchemasPremium(PremiumSuite):
    tiers = ("rls", "schema")


class TestRowsAndSchemasWithRolesStandard(StandardSuite):
    """The policies hold although the sessions' role is a member of each premium tenant's."""

    tiers = ("rls", "schema")
    capabilities = StandardSuite.capabilities | ENFORCED
    section: ClassVar = {"schema_roles": True}


class TestRowsAndDatabasesStandard(StandardSuite):
    tiers = ("rls", "database")
    capabilities = StandardSuite.capabilities | ENFORCED


class TestRowsAndDatabasesPremium(PremiumSuite):
    tiers = ("rls", "database")
    capabilities = PremiumSuite.capabilities | ENFORCED


class TestSchemasAndDatabasesStandard(StandardSuite):
    tiers = ("schema", "database")
    capabilities = StandardSuite.capabilities | ENFORCED | {"own_place"}


class TestSchemasAndDatabasesPremium(PremiumSuite):
    tiers = ("schema", "database")
    capabilities = PremiumSuite.capabilities | ENFORCED
