"""Isolation ``database`` on SQLite: what belongs to a tenant is in a file of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio.to_thread
from sqlalchemy import make_url

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import (
    EngineCache,
    TenantConnectionContext,
    TenantSessionContext,
    close_engine,
    make_engine,
    require_own,
)
from tenancy_core.sql.sqlite import (
    READ_ONLY,
    begin_transactions,
    connect_args,
    file_url,
    report_unavailable,
)
from tenancy_sqlite.files import APPLICATION_ID, TenantFiles
from tenancy_sqlite.gate import WriteGates

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.providers import BuildContext
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.tenant import Tenant
    from tenancy_sqlite.settings import SqliteSettings

__all__ = ["SqliteDatabaseIsolation"]

_READS: Final = {READ_ONLY: True}


class SqliteDatabaseIsolation:
    """Implements :class:`~tenancy_core.contract.IsolationStrategy`.

    A session that may write holds the tenant's write gate: it sees what was committed before it,
    and nobody else writes until it ends. Readers (``read_only=True``) never wait.

    Attributes:
        name: ``database``.
    """

    name = "database"

    def __init__(
        self,
        config: TenancyConfig,
        connections: ConnectionBudget,
        *,
        root: Path,
        synchronous: str = "full",
        metadata: MetaData | None = None,
    ) -> None:
        self._config = config
        self._connections = connections
        self._files = TenantFiles(root)
        self._synchronous = synchronous
        self._metadata = metadata
        self._engines = EngineCache(self._engine_of, config.max_cached_engines)
        self._gates = WriteGates(config.database_pool_timeout)

    @classmethod
    def from_context(cls, context: BuildContext, settings: SqliteSettings) -> Self:
        """Make the strategy from the settings.

        Raises:
            ConfigurationError: The URL names no file.
        """
        database = make_url(context.config.database_url.get_secret_value()).database
        if not database or database == ":memory:" or database.startswith("file:"):
            raise ConfigurationError(
                "TENANCY_DATABASE_URL names no file. Tenants need files that outlive a connection: "
                "write for instance sqlite+aiosqlite:///./data/control.db."
            )
        return cls(
            context.config,
            context.connections,
            root=settings.root or Path(database).parent / "tenants",
            synchronous=settings.synchronous,
            metadata=context.metadata,
        )

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._files.prepare)
        await self._engines.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._engines.__aexit__(kind, error, trace)

    # -- sessions ------------------------------------------------------------------------------

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantSessionContext:
        """See the contract."""
        how = self._how(tenant, read_only=read_only)
        return TenantSessionContext(self._engines, tenant, **how)

    def connection(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantConnectionContext:
        """See the contract."""
        require_own(tenant, self.name)
        return TenantConnectionContext(
            self._engines, tenant, **self._how(tenant, read_only=read_only)
        )

    def _how(self, tenant: Tenant, *, read_only: bool) -> dict[str, Any]:
        require_own(tenant, self.name)
        if read_only:
            return {"options": _READS}
        return {"gate": self._gates.of(tenant.placement.name)}

    def _engine_of(self, tenant: Tenant) -> AsyncEngine:
        return self._engine(tenant.placement.name)

    def _engine(self, name: str, *, complete: bool = True) -> AsyncEngine:
        factory = self._files.connection_class(synchronous=self._synchronous, complete=complete)
        engine = make_engine(
            file_url(self._files.path(name)),
            self._config,
            self._connections,
            connect_args={
                **connect_args(self._config.database_pool_timeout),
                "factory": factory,
            },
        )
        begin_transactions(engine)
        report_unavailable(engine)
        return engine

    # -- the place -----------------------------------------------------------------------------

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract. The file counts as there once its tables are."""
        require_own(tenant, self.name)
        name = tenant.placement.name
        await anyio.to_thread.run_sync(self._files.create, name)
        engine = self._engine(name, complete=False)
        try:
            async with self._gates.of(name), engine.begin() as connection:
                if self._metadata is not None:
                    await connection.run_sync(self._metadata.create_all)
                await connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        finally:
            await close_engine(engine)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        require_own(tenant, self.name)
        name = tenant.placement.name
        if not await anyio.to_thread.run_sync(self._files.is_there, name):
            return False
        engine = self._engine(name, complete=False)
        try:
            async with engine.execution_options(**_READS).connect() as connection:
                found = await connection.exec_driver_sql("PRAGMA application_id")
                return bool(found.scalar() == APPLICATION_ID)
        finally:
            await close_engine(engine)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract."""
        require_own(tenant, self.name)
        name = tenant.placement.name
        timeout = self._config.database_pool_timeout
        async with self._gates.of(name), self._engines.barred(name, timeout):
            await anyio.to_thread.run_sync(partial(self._files.remove, name, patience=timeout))
