"""An application whose tables belong to tenants by a column, and roles for it on PostgreSQL."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import Identity
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenancy_core import TenancyConfig
from tenancy_core.sql import (
    GLOBAL,
    ConnectionBudget,
    TenantScoped,
    tenant_foreign_key,
    tenant_unique,
)
from tenancy_core.testing import make_tenant
from tenancy_postgres import PostgresSettings, RlsIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import MetaData

    from support.services.databases import PostgresDatabase
    from tenancy_core.tenant import Tenant


class Base(AsyncAttrs, DeclarativeBase):
    """Tables that all tenants are in."""


class Note(TenantScoped, Base):
    """A line of text."""

    __tablename__ = "notes"
    __table_args__ = (tenant_unique("text"),)

    id: Mapped[int] = mapped_column(Identity(start=100), primary_key=True, insert_sentinel=True)
    text: Mapped[str]
    lines: Mapped[list[Line]] = relationship(back_populates="note", passive_deletes="all")


class Line(TenantScoped, Base):
    """A part of a note."""

    __tablename__ = "lines"
    __table_args__ = (tenant_foreign_key(["note_id"], Note, ondelete="CASCADE"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    note_id: Mapped[int]
    text: Mapped[str]
    note: Mapped[Note] = relationship(back_populates="lines")


class Currency(Base):
    """What all tenants share."""

    __tablename__ = "currencies"
    __table_args__ = {"info": GLOBAL}  # noqa: RUF012 - SQLAlchemy's way

    code: Mapped[str] = mapped_column(primary_key=True)


def tenant(identifier: str, **more: Any) -> Tenant:
    """Return a tenant of ``rls``."""
    return make_tenant(identifier, isolation="rls", **more)


def settings_for(database: PostgresDatabase, **settings: Any) -> TenancyConfig:
    """Return settings with the three roles of a database: sessions, the store, the owner."""
    given: dict[str, Any] = {
        "database_url": database.app_url,
        "control_database_url": database.control_url,
        "database_pool_size": 4,
        "database_max_overflow": 0,
        "max_database_connections": 6,
    }
    return TenancyConfig(**{**given, **settings})


def rls(
    database: PostgresDatabase,
    metadata: MetaData = Base.metadata,
    *,
    section: dict[str, Any] | None = None,
    **settings: Any,
) -> RlsIsolation:
    """Return the strategy, not open yet. Its tables are made by the owner of the database."""
    config = settings_for(database, **settings)
    return RlsIsolation(
        config,
        ConnectionBudget(config.connection_ceiling),
        PostgresSettings(**{"admin_url": database.owner_url, **(section or {})}),
        metadata,
    )


@asynccontextmanager
async def two_tenants(
    database: PostgresDatabase, **options: Any
) -> AsyncIterator[tuple[RlsIsolation, Tenant, Tenant]]:
    """Open the strategy with two tenants that have a note each."""
    acme, beta = tenant("acme"), tenant("beta")
    async with rls(database, **options) as isolation:
        for one in (acme, beta):
            await isolation.provision(one)
            async with isolation.session(one) as session:
                session.add(Note(id=1, text=f"{one.identifier}'s"))
        yield isolation, acme, beta
