"""Strategies on a fresh database of the shared server, and a table to use them on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenancy_core import TenancyConfig
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_postgres import PostgresSettings, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import MetaData

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant
    from tenancy_postgres.isolation import PostgresIsolation


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@contextlib.asynccontextmanager
async def opened(
    database: PostgresDatabase,
    *,
    kind: type[PostgresIsolation] = SchemaIsolation,
    metadata: MetaData | None = Base.metadata,
    url: str | None = None,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Any]:
    """Open a strategy as the app role, by way of ``url`` where one is given.

    One connection, unless the settings say otherwise: what one session leaves on it, the next one
    finds.
    """
    given = TenancyConfig(
        **{
            "database_url": url or database.app_url,
            "control_database_url": database.control_url,
            "database_pool_size": 1,
            "database_max_overflow": 0,
            "max_database_connections": 3,
            **config,
        }
    )
    budget = ConnectionBudget(given.connection_ceiling)
    async with kind(given, budget, PostgresSettings(**(settings or {})), metadata) as isolation:
        yield isolation


async def provisioned(isolation: Any, *identifiers: str, plan: str | None = None) -> list[Tenant]:
    """Make tenants with their places."""
    tenants = [
        make_tenant(identifier, isolation=isolation.name, plan=plan) for identifier in identifiers
    ]
    for tenant in tenants:
        await isolation.provision(tenant)
    return tenants
