"""What every strategy on PostgreSQL has: an engine for all tenants, and one for their places."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import asyncpg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError

from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql import (
    SharedEngine,
    TenantConnectionContext,
    TenantSessionContext,
    close_engine,
    make_engine,
    require_own,
)
from tenancy_core.sql.postgres import WITHOUT_PREPARED, code_of, connect_args, replace_closed
from tenancy_core.sql.scoped import SETTING
from tenancy_postgres.engine import Link, Target, make_tenant_engine
from tenancy_postgres.failures import unavailable
from tenancy_postgres.quoting import quote_literal
from tenancy_postgres.scope import SCOPE, Scope
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.providers import BuildContext
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.server import ServerFacts
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["PostgresIsolation"]

_log = logging.getLogger("tenancy")

_NOBODY: Final = Scope(settings="")
"""Of the one transaction that looks at the server before there are tenants."""


class PostgresIsolation:
    """Base of the strategies that keep all tenants in one database.

    Attributes:
        name: Under which the strategy is registered.
        tenants: What the role of the tenants' sessions sees; set while it is open.
        admin: What the role sees that makes and removes tenants' places; set while it is open.
    """

    name: ClassVar[str]
    _search_path: ClassVar[str | None] = None
    _is_affine = False
    tenants: ServerFacts
    admin: ServerFacts

    def __init__(
        self,
        config: TenancyConfig,
        connections: ConnectionBudget,
        settings: PostgresSettings,
        metadata: MetaData | None = None,
    ) -> None:
        self._config = config
        self._connections = connections
        self._settings = settings
        self._metadata = metadata
        self._link = Link(config.database_pool_timeout)
        self._plans = {name: self._time_outs(name) for name in config.plans}
        self._url, self._arguments = self._arguments_of(
            config.database_url.get_secret_value(), "TENANCY_DATABASE_URL"
        )
        self._admin_setting, admin_url = self._admin_place()
        self._admin_url, self._admin_arguments = self._arguments_of(admin_url, self._admin_setting)
        self._closed = False
        self._make_engines()

    @classmethod
    def from_context(cls, context: BuildContext, settings: PostgresSettings) -> Self:
        """Make the strategy from the settings.

        Raises:
            ConfigurationError: They do not fit together.
        """
        return cls(context.config, context.connections, settings, context.metadata)

    # -- engines -------------------------------------------------------------------------------

    def _make_engines(self) -> None:
        self._target = Target(
            url=self._url,
            connect_args=self._arguments,
            config=self._config,
            budget=self._connections,
            link=self._link,
            is_missing=self._is_missing,
            differs=self._differs,
        )
        self._engine = make_tenant_engine(self._target, search_path=self._search_path)
        self._shared = SharedEngine(self._engine, affine=self._is_affine)
        self._admin_engine = make_engine(
            self._admin_url,
            self._config,
            self._connections,
            control=True,
            connect_args={**WITHOUT_PREPARED, **self._admin_arguments},
            pool_pre_ping=False,
        )
        replace_closed(self._admin_engine)
        # Read by the server default of the tenant's column.
        setattr(self._admin_engine.sync_engine.dialect, SETTING, self._config.rls_setting)

    async def _is_missing(self, place: str) -> bool:  # noqa: ARG002 - for those that have places
        return False

    def _differs(self, place: str) -> None:
        """Take note of a tenant whose types are not those of others."""

    def _arguments_of(self, url: str, setting: str) -> tuple[URL, dict[str, Any]]:
        return connect_args(make_url(url), setting, timeout=self._config.database_pool_timeout)

    def _admin_place(self) -> tuple[str, str]:
        if self._settings.admin_url is not None:
            return "TENANCY_POSTGRES_ADMIN_URL", self._settings.admin_url.get_secret_value()
        if self._config.control_dialect == "postgresql":
            return self._config.control_setting, self._config.control_url
        return "TENANCY_DATABASE_URL", self._config.database_url.get_secret_value()

    async def __aenter__(self) -> Self:
        if self._closed:
            self._closed = False
            self._make_engines()
        try:
            await self._look()
            await self._verify()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._closed = True
        await self._let_go(self._engine)
        await self._let_go(self._admin_engine)

    async def _let_go(self, engine: AsyncEngine) -> None:
        try:
            await close_engine(engine)
        except BackendUnavailable:
            _log.warning("a connection to the tenants' database was not closed in time")

    async def _look(self) -> None:
        async with self._engine.connect() as connection:
            await connection.execution_options(**{SCOPE: _NOBODY})
            self.tenants = await facts_of(connection)
            # It was opened before it was known what is there.
            await connection.invalidate()
        self._link.pooled = self.tenants.pooled
        choice = self._settings.prepared_statements
        self._link.prepared = choice == "on" or (choice == "auto" and not self.tenants.pooled)
        async with self._administering() as connection:
            self.admin = await facts_of(connection)
        if self.admin.place != self.tenants.place:
            raise ConfigurationError(
                f"{self._admin_setting} and TENANCY_DATABASE_URL lead to different databases "
                f"({self.admin.database!r} and {self.tenants.database!r}), and tenants' places are "
                "made in the second. Set TENANCY_POSTGRES_ADMIN_URL to that database, with a role "
                "that may create in it."
            )

    async def _verify(self) -> None:
        """Refuse to serve where the isolation would not hold."""

    @asynccontextmanager
    async def _administering(self) -> AsyncGenerator[AsyncConnection, None]:
        """Open a transaction of the role that makes places.

        Raises:
            BackendUnavailable: The database cannot be used now.
        """
        try:
            async with self._admin_engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            cause = getattr(error.orig, "__cause__", None) or error
            if (
                code_of(cause) is None
                and not error.connection_invalidated
                and not isinstance(cause, asyncpg.ClientConfigurationError)
            ):
                raise
            raise unavailable(cause) from error
        except (asyncpg.InterfaceError, OSError) as error:
            raise unavailable(error) from error
        except asyncpg.PostgresError as error:
            if code_of(error) is None:
                raise
            raise unavailable(error) from error

    # -- sessions ------------------------------------------------------------------------------

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantSessionContext:
        """See the contract."""
        require_own(tenant, self.name)
        options = self._options(tenant, read_only=read_only)
        return TenantSessionContext(
            self._source(tenant, read_only=read_only), tenant, options=options
        )

    def connection(self, tenant: Tenant, /, *, read_only: bool = False) -> TenantConnectionContext:
        """See the contract."""
        require_own(tenant, self.name)
        options = self._options(tenant, read_only=read_only)
        source = self._source(tenant, read_only=read_only)
        return TenantConnectionContext(source, tenant, options=options)

    def _source(self, tenant: Tenant, *, read_only: bool) -> SharedEngine:  # noqa: ARG002 - for those with two
        return self._shared

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        raise NotImplementedError

    def _ride_along(self, tenant: Tenant) -> str:
        """Return what every transaction of a tenant sets besides the tenant itself."""
        settings = self._plan_settings(tenant)
        if self._settings.application_name:
            name = f"{self._settings.application_name}/{tenant.identifier}"
            settings += f";SET LOCAL application_name={quote_literal(name)}"
        return settings

    def _plan_settings(self, tenant: Tenant) -> str:
        return "" if tenant.plan is None else self._plans.get(tenant.plan, "")

    def _time_outs(self, plan: str) -> str:
        given = self._config.plans[plan]
        return "".join(
            f";SET LOCAL {setting}={round(seconds * 1000)}"
            for setting, seconds in (
                ("statement_timeout", given.statement_timeout),
                ("lock_timeout", given.lock_timeout),
                ("idle_in_transaction_session_timeout", given.idle_timeout),
            )
            if seconds is not None
        )
