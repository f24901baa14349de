"""The strategy."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError
from tenancy_core.sql import (
    EngineCache,
    TenantConnectionContext,
    TenantSessionContext,
    require_own,
)
from tenancy_core.sql.scoped import has_scoped_tables
from tenancy_core.tenant import Placement
from tenancy_postgres.database.addresses import DEFAULT, addresses_of
from tenancy_postgres.database.credentials import Credentials
from tenancy_postgres.database.places import TenantDatabases
from tenancy_postgres.database.server import Server
from tenancy_postgres.quoting import quote_literal, quote_setting
from tenancy_postgres.riding import RideAlong
from tenancy_postgres.scope import SCOPE, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from types import TracebackType

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.crypto import TenantSecrets
    from tenancy_core.providers import BuildContext
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["DatabaseIsolation"]

_log = logging.getLogger("tenancy")

_OF_THE_CEILING: Final = 4
"""Connections for each database that is being made at a time: two, and as many for the others."""

_TOO_FEW: Final = (
    "Of {} database connections no tenant's database can be made beside the tenant store's own. "
    f"Set TENANCY_MAX_DATABASE_CONNECTIONS to {_OF_THE_CEILING} or more."
)

_NO_KEYS: Final = (
    "Tenants' databases have a login of each tenant's own, which is kept encrypted. Set "
    "TENANCY_ENABLE_ENCRYPTION=true and TENANCY_ENCRYPTION_KEYS; or name one role for all tenants: "
    "TENANCY_DATABASE_URL_TEMPLATE=postgresql+asyncpg://role:password@host/{database}."
)


class DatabaseIsolation:
    """Implements :class:`~tenancy_core.contract.IsolationStrategy`.

    Each tenant has a database, and a role that can log in to it and to no other tenant's. The
    databases are copies of a template that has the application's tables.

    Attributes:
        name: ``database``.
    """

    name = "database"

    def __init__(
        self,
        config: TenancyConfig,
        connections: ConnectionBudget,
        settings: PostgresSettings,
        metadata: MetaData | None = None,
        secrets: TenantSecrets | None = None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._config = config
        self._riding = RideAlong(config, settings)
        self._sets_tenant = metadata is not None and has_scoped_tables(metadata)
        credentials = None if secrets is None else Credentials(secrets)
        addresses = addresses_of(config, settings)
        if credentials is None and any(address.own for address in addresses.values()):
            raise ConfigurationError(_NO_KEYS)
        self._servers = {
            alias: Server(address, config, settings, connections, credentials, clock=clock)
            for alias, address in addresses.items()
        }
        self._databases = {
            alias: TenantDatabases(server, config, settings, metadata, credentials)
            for alias, server in self._servers.items()
        }
        self._engines = EngineCache(self._engine, config.max_cached_engines, renews=True)
        if connections.ceiling < _OF_THE_CEILING:
            raise ConfigurationError(_TOO_FEW.format(connections.ceiling))
        # A server that hangs leaves a place for the others.
        several = len(self._servers) > 1
        most = max(1 + several, connections.ceiling // _OF_THE_CEILING)
        of_each = most - several
        self._makers = asyncio.Semaphore(most)
        self._makers_of = {alias: asyncio.Semaphore(of_each) for alias in self._servers}

    @classmethod
    def from_context(cls, context: BuildContext, settings: PostgresSettings) -> Self:
        """Make the strategy from the settings.

        Raises:
            ConfigurationError: They do not fit together.
        """
        return cls(
            context.config,
            context.connections,
            settings,
            context.metadata,
            context.secrets,
            clock=context.clock,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._servers[DEFAULT].facts()
            for alias, server in self._servers.items():
                if alias != DEFAULT:
                    await self._look(alias, server)
        except BaseException:
            await self._close()
            raise
        await self._engines.__aenter__()
        return self

    async def _look(self, alias: str, server: Server) -> None:
        try:
            await server.facts()
        except BackendUnavailable as error:
            # Tenants of the others are served.
            _log.warning("the database server %r cannot be used now: %s", alias, error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._engines.__aexit__(kind, error, trace)
        finally:
            await self._close()

    async def _close(self) -> None:
        for alias, server in self._servers.items():
            try:
                await server.close()
            except BackendUnavailable:
                _log.warning("a connection to the database server %r was not closed in time", alias)

    @property
    def servers(self) -> Mapping[str, Server]:
        """Where tenants' databases are, by alias."""
        return MappingProxyType(self._servers)

    # -- sessions ------------------------------------------------------------------------------

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantSessionContext:
        """See the contract."""
        require_own(tenant, self.name)
        options = self._options(tenant, read_only=read_only)
        return TenantSessionContext(self._engines, tenant, options=options)

    def connection(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantConnectionContext:
        """See the contract."""
        require_own(tenant, self.name)
        options = self._options(tenant, read_only=read_only)
        return TenantConnectionContext(self._engines, tenant, options=options)

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        settings = self._riding.of(tenant)
        if self._sets_tenant:
            value = quote_literal(str(tenant.id))
            settings += f";SET LOCAL {quote_setting(self._config.rls_setting)}={value}"
        return MappingProxyType({SCOPE: Scope(settings.removeprefix(";"), read_only)})

    def _engine(self, tenant: Tenant) -> AsyncEngine:
        return self._server(tenant).engine(tenant)

    def _server(self, tenant: Tenant) -> Server:
        server = self._servers.get(tenant.placement.server)
        if server is None:
            raise IsolationError(
                f"Tenant {tenant.identifier} is on the server {tenant.placement.server!r}, which "
                f"is not among TENANCY_POSTGRES_SERVERS: there is {', '.join(self._servers)}."
            )
        return server

    # -- the place -----------------------------------------------------------------------------

    def place(self, tenant: Tenant, /, *, server: str | None) -> Tenant:
        """See :class:`~tenancy_core.contract.PlacesTenants`.

        Raises:
            ValueError: There is no such server.
        """
        alias = DEFAULT if server is None else server
        if alias not in self._servers:
            raise ValueError(
                f"There is no database server {alias!r}; there is {', '.join(self._servers)} "
                "(TENANCY_POSTGRES_SERVERS)."
            )
        placement = Placement(server=alias, name=tenant.placement.name)
        return replace(tenant, isolation=self.name, placement=placement)

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract.

        Raises:
            IdentifierCollision: A database or a role of its name is there, and is not this
                tenant's.
            ConfigurationError: The role that makes databases may not.
        """
        databases = self._databases_of(tenant)
        async with self._making(tenant):
            await databases.provision(tenant)
        # What failed without a database says nothing of the new one.
        await self._engines.renew(tenant.placement.name)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        return await self._databases_of(tenant).exists(tenant)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract. Sessions of other processes are ended.

        Raises:
            BackendUnavailable: A session of the tenant was open here for longer than the pool's
                time-out; nothing was removed.
        """
        databases = self._databases_of(tenant)
        name, patience = tenant.placement.name, self._config.database_pool_timeout
        async with self._making(tenant), self._engines.barred(name, patience):
            await databases.destroy(tenant)

    async def rotate_credentials(self, tenant: Tenant, /) -> None:
        """See :class:`~tenancy_core.contract.RotatesCredentials`."""
        await self._databases_of(tenant).rotate(tenant)

    @asynccontextmanager
    async def _making(self, tenant: Tenant) -> AsyncGenerator[None, None]:
        """Be one of those who make or remove a database, of which there are not too many.

        Raises:
            BackendUnavailable: Others were at it for longer than ``database_pool_timeout``.
        """
        turns = (self._makers_of[tenant.placement.server], self._makers)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._config.database_pool_timeout):
                    for turn in turns:
                        await stack.enter_async_context(turn)
            except TimeoutError:
                raise BackendUnavailable(
                    "Other databases are being made or removed, and take long. Try again."
                ) from None
            yield

    def _databases_of(self, tenant: Tenant) -> TenantDatabases:
        require_own(tenant, self.name)
        return self._databases[self._server(tenant).address.alias]
