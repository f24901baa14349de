"""Isolation ``hybrid`` on a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from support.databases import KeptSecrets
from support.services.databases import finished, fresh_database
from tenancy_core import TenancyConfig
from tenancy_core.providers import BuildContext
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_postgres import PostgresSettings
from tenancy_postgres._plugin import tenancy_isolation_strategies

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from sqlalchemy import MetaData

    from support.services.databases import PostgresDatabase, PostgresServer
    from tenancy_core import Tenant

PREMIUM = "gold"
"""The plan of premium tenants."""


@contextmanager
def hybrid_database(server: PostgresServer) -> Generator[PostgresDatabase]:
    """Create a database whose control role may make whatever any of the strategies makes."""
    with fresh_database(server, createrole=True, createdb=True) as database:
        finished(database.admin(f'ALTER SCHEMA public OWNER TO "{database.control}"'))
        yield database


@asynccontextmanager
async def hybrid(
    database: PostgresDatabase,
    metadata: MetaData | None,
    *,
    standard: str = "rls",
    premium: str = "schema",
    section: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncGenerator[Any]:
    """Open the strategy, without a tenant store."""
    config = TenancyConfig(
        **{
            "database_url": database.app_url,
            "control_database_url": database.control_url,
            "isolation_strategy": "hybrid",
            "standard_isolation_strategy": standard,
            "premium_isolation_strategy": premium,
            "premium_plans": (PREMIUM,),
            "database_pool_size": 4,
            "database_max_overflow": 0,
            "max_database_connections": 12,
            **settings,
        }
    )
    context = BuildContext(
        config, metadata, ConnectionBudget(config.connection_ceiling), secrets=KeptSecrets()
    )
    (provider,) = [one for one in tenancy_isolation_strategies() if one.name == "hybrid"]
    strategy: Any = provider.build(context, PostgresSettings(**(section or {})))
    async with strategy as opened:
        yield opened


def hybrid_tenant(isolation: Any, identifier: str, *, premium: bool) -> Tenant:
    """Return the record of a new tenant of one of the tiers, placed as when it is created."""
    tenant = make_tenant(
        identifier, isolation=isolation.name, plan=PREMIUM if premium else "silver"
    )
    placed: Tenant = isolation.place(tenant, server=None)
    return placed
