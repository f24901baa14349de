"""The tenant store on a PostgreSQL of the tests."""

from __future__ import annotations

from typing import Any

from tenancy_core import TenancyConfig
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.sql import ConnectionBudget

TABLES = """
    SELECT schemaname::text, count(*) FROM pg_tables
     WHERE tablename LIKE 'tenancy\\_%' GROUP BY 1
"""
"""Where the control tables are, and how many."""


def store_on(url: str, **settings: Any) -> SqlTenantStore:
    """Make a store with four connections; it is not open yet."""
    config = TenancyConfig(
        **{
            "database_url": url,
            "database_pool_size": 4,
            "database_max_overflow": 0,
            "max_database_connections": 4,
            **settings,
        }
    )
    return SqlTenantStore(config, ConnectionBudget(config.connection_ceiling))
