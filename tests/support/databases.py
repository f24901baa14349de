"""Isolation ``database`` on a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from sqlalchemy import make_url

from tenancy_core import TenancyConfig
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import TenantCipher, TenantSecrets
from tenancy_core.crypto.secrets import DATA_KEY
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_postgres import DatabaseIsolation, PostgresSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from sqlalchemy import MetaData

    from support.services.databases import PostgresDatabase, PostgresServer

KEY = "k" * 32


class KeptSecrets(TenantSecrets):
    """Secrets of tenants that no control plane has recorded."""

    __slots__ = ("_keeper",)

    def __init__(self) -> None:
        store = MemoryTenantStore()
        cipher = TenantCipher((SecretStr(KEY),))
        super().__init__(store, cipher)
        self._keeper = cipher

    async def keep(self, tenant_id: UUID, name: str, value: Any, *, expected: Any) -> None:
        """Make a record and a data key on the way."""
        if await self._store.get_secret(tenant_id, DATA_KEY) is None:
            await self.record(tenant_id)
        await super().keep(tenant_id, name, value, expected=expected)

    async def record(self, tenant_id: UUID) -> None:
        """Do what the control plane does before a tenant's place is made."""
        async with self._store.transaction() as transaction:
            await transaction.create(make_tenant(tenant_id.hex, id=tenant_id))
            await transaction.put_secret(tenant_id, DATA_KEY, self._keeper.new_data_key(tenant_id))


def template_url(
    database: PostgresDatabase, *, one_role: bool = False, via: PostgresServer | None = None
) -> str:
    """Return ``database_url_template`` for a server, by way of another one if given."""
    url = make_url(database.url(database.app, via=via))
    user = f"{database.app}:{url.password}" if one_role else "{user}:{password}"
    if one_role:
        text = url.set(database="PLACE").render_as_string(hide_password=False)
        return text.replace("/PLACE", "/{database}")
    return f"postgresql+asyncpg://{user}@{url.host}:{url.port}/{{database}}"


@asynccontextmanager
async def database_isolation(
    database: PostgresDatabase,
    metadata: MetaData | None,
    *,
    one_role: bool = False,
    secrets: TenantSecrets | None = None,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[DatabaseIsolation]:
    """Open the strategy, without a tenant store."""
    values: dict[str, Any] = {
        "database_url": database.app_url,
        "control_database_url": database.control_url,
        "isolation_strategy": "database",
        "database_pool_size": 4,
        "database_max_overflow": 0,
        "max_database_connections": 12,
        **config,
    }
    if one_role:
        values["database_url_template"] = template_url(database, one_role=True)
    made = TenancyConfig(**values)
    async with DatabaseIsolation(
        made,
        ConnectionBudget(made.connection_ceiling),
        PostgresSettings(**(settings or {})),
        metadata,
        secrets or KeptSecrets(),
    ) as opened:
        yield opened
