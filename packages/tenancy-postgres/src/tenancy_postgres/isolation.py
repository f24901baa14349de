"""What every strategy on PostgreSQL has: an engine for all tenants, and one for their places."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql import (
    Breaker,
    SharedEngine,
    TenantConnectionContext,
    TenantSessionContext,
    close_engine,
    make_engine,
    require_own,
)
from tenancy_core.sql.postgres import (
    WITHOUT_PREPARED,
    connect_args,
    end_silent,
    replace_closed,
    tell_flaws,
    url_of,
)
from tenancy_core.sql.scoped import SETTING
from tenancy_postgres.administering import admin_place, unavailable_in_words
from tenancy_postgres.engine import Link, Target, make_tenant_engine
from tenancy_postgres.failures import unavailable
from tenancy_postgres.riding import RideAlong
from tenancy_postgres.scope import SCOPE, Scope
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    import asyncpg
    from sqlalchemy import URL, MetaData
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
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        self._connections = connections
        self._settings = settings
        self._metadata = metadata
        self._link = Link(config.connect_timeout)
        self._riding = RideAlong(config, settings)
        self._url, self._arguments = self._arguments_of(
            config.database_url.get_secret_value(), "TENANCY_DATABASE_URL"
        )
        self._admin_setting, admin_url = admin_place(config, settings)
        self._admin_url, self._admin_arguments = self._arguments_of(admin_url, self._admin_setting)
        # What takes longer says so: LONGEST.
        self._admin_arguments["command_timeout"] = (
            config.database_pool_timeout + config.connect_timeout
        )
        self._closed = False
        self._make_engines()

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
            clock=context.clock,
        )

    # -- engines -------------------------------------------------------------------------------

    def _make_engines(self) -> None:
        self._target = Target(
            url=self._url,
            connect_args=self._arguments,
            config=self._config,
            budget=self._connections,
            link=self._link,
            is_missing=self._is_missing,
            lacks_role=self._lacks_role,
            differs=self._differs,
            breakers=(Breaker("the tenants' database server", clock=self._clock),),
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
        end_silent(self._admin_engine)
        tell_flaws(self._admin_engine, self._admin_setting)
        # Read by the server default of the tenant's column.
        setattr(self._admin_engine.sync_engine.dialect, SETTING, self._config.rls_setting)

    async def _is_missing(self, place: str) -> bool:  # noqa: ARG002 - for those that have places
        return False

    async def _lacks_role(self, place: str) -> bool:  # noqa: ARG002 - for those that have roles
        return False

    def _differs(self, place: str) -> None:
        """Take note of a tenant whose types are not those of others."""

    def _arguments_of(self, url: str, setting: str) -> tuple[URL, dict[str, Any]]:
        return connect_args(url_of(url, setting), setting, timeout=self._config.connect_timeout)

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
        try:
            async with asyncio.timeout(2 * self._config.connect_timeout):
                self.tenants = await self._meet()
        except TimeoutError as error:
            raise unavailable(error) from error
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

    async def _meet(self) -> ServerFacts:
        async with self._engine.connect() as connection:
            await connection.execution_options(**{SCOPE: _NOBODY})
            facts = await facts_of(connection)
            # It was opened before it was known what is there.
            await connection.invalidate()
            return facts

    async def _verify(self) -> None:
        """Refuse to serve where the isolation would not hold."""

    @asynccontextmanager
    async def _administering(self) -> AsyncGenerator[AsyncConnection, None]:
        """Open a transaction of the role that makes places.

        Raises:
            BackendUnavailable: The database cannot be used now.
        """
        with unavailable_in_words():
            async with self._admin_engine.begin() as connection:
                yield connection

    # -- for the production checklist ----------------------------------------------------------

    def administering(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction of the role that makes places, to look.

        Raises:
            BackendUnavailable: On entering: the database cannot be used now.
        """
        return self._administering()

    @asynccontextmanager
    async def nobodys(self) -> AsyncGenerator[AsyncConnection, None]:
        """Open a connection as tenants' sessions have it, in a transaction that is nobody's.

        Raises:
            BackendUnavailable: The database cannot be used now.
        """
        with unavailable_in_words():
            async with self._engine.connect() as connection:
                await connection.execution_options(**{SCOPE: _NOBODY})
                try:
                    yield connection
                finally:
                    # What was tried on it is nobody's to find.
                    await connection.invalidate()

    @asynccontextmanager
    async def unbegun(self) -> AsyncGenerator[asyncpg.Connection[Any], None]:
        """Open a connection as tenants' sessions have it, outside of any transaction.

        Raises:
            BackendUnavailable: The database cannot be used now.
        """
        with unavailable_in_words():
            async with self._engine.connect() as connection:
                raw = await connection.get_raw_connection()
                driver: Any = raw.driver_connection
                try:
                    yield driver
                finally:
                    await connection.invalidate()

    @property
    def admin_setting(self) -> str:
        """The variable that names the role which makes places."""
        return self._admin_setting

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
