"""One server of tenants' databases: what its engines share, and the role that makes databases."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg
from sqlalchemy.util import await_only

from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError
from tenancy_core.sql import close_engine, make_engine
from tenancy_core.sql.breaker import Breaker
from tenancy_core.sql.pool import PoolShare
from tenancy_core.sql.postgres import (
    WITHOUT_PREPARED,
    connect_args,
    end_silent,
    replace_closed,
    tell_flaws,
)
from tenancy_core.sql.scoped import SETTING
from tenancy_core.sql.siblings import Acquaintance, make_sibling
from tenancy_postgres.administering import unavailable_in_words
from tenancy_postgres.engine import Link, Target, make_tenant_engine, open_connection
from tenancy_postgres.failures import unavailable
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.config import TenancyConfig
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.database.addresses import Address
    from tenancy_postgres.database.credentials import Credentials, Login
    from tenancy_postgres.server import ServerFacts
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["Server", "Work"]

_WRONG_PASSWORD: tuple[type[Exception], ...] = (
    asyncpg.InvalidPasswordError,
    # PgBouncer says this of whatever it refuses.
    asyncpg.ProtocolViolationError,
)
_REFUSED: tuple[type[Exception], ...] = (
    *_WRONG_PASSWORD,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
"""A role, a password, a database or a right to connect is not what it was."""
_GONE: Final = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)
"""A connection has broken, or does not answer in time."""


class Server:
    """Engines on one server.

    Args:
        address: Where it is.
        config: Gives the settings of pools.
        settings: Says what is prepared.
        budget: The ceiling on connections.
        credentials: Tenants' logins; None where all have one role.
        clock: Seconds, never going back.

    Attributes:
        address: Where it is.
        link: What is between this process and the server.
    """

    def __init__(
        self,
        address: Address,
        config: TenancyConfig,
        settings: PostgresSettings,
        budget: ConnectionBudget,
        credentials: Credentials | None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.address = address
        self.link = Link(config.connect_timeout)
        self._config = config
        self._settings = settings
        self._budget = budget
        self._credentials = credentials
        self._clock = clock
        self._facts: ServerFacts | None = None
        self._is_met = False
        # One tenant whose database does not answer says nothing of the others.
        self._breaker = Breaker(f"the database server {address.alias!r}", sources=2, clock=clock)
        self._acquaintance = Acquaintance(self._learn)
        url, self._arguments = connect_args(
            address.url, address.setting, timeout=config.connect_timeout
        )
        target = Target(
            url=url,
            connect_args=self._arguments,
            config=config,
            budget=budget,
            link=self.link,
            is_missing=_never,
            lacks_role=_never,
            differs=_ignore,
            setting=address.setting,
        )
        self._prototype = make_tenant_engine(target, search_path=None)
        dialect: Any = self._prototype.sync_engine.dialect
        setattr(dialect, SETTING, config.rls_setting)
        self._dialect = dialect
        self._positional, options = dialect.create_connect_args(url)
        self._options = {**options, **target.options()}
        self._share = PoolShare(
            budget,
            size=config.database_pool_size,
            most=config.database_pool_size + config.database_max_overflow,
            timeout=config.database_pool_timeout,
        )
        self._admin_url, self._admin_arguments = connect_args(
            address.admin_url, address.admin_setting, timeout=config.connect_timeout
        )
        # A lock is waited for on the server, and its answer then comes over the link.
        self._admin_arguments["command_timeout"] = (
            config.database_pool_timeout + config.connect_timeout
        )
        self._admin = self.admin_engine()

    async def close(self) -> None:
        """Close what the role that makes databases has open.

        Raises:
            BackendUnavailable: The driver did not close a connection in time.
        """
        await close_engine(self._admin)

    # -- tenants' connections ------------------------------------------------------------------

    def engine(self, tenant: Tenant) -> AsyncEngine:
        """Make the engine of one tenant's database; nothing is opened yet."""
        name = tenant.placement.name
        own = Breaker(f"the database {name!r}", clock=self._clock)
        share = replace(self._share, breakers=(self._breaker, own), source=name)
        connect = _Opener(self, name, tenant.id)
        return make_sibling(self._prototype, connect, share, self._acquaintance)

    def open(self, database: str, password: str | None) -> Any:  # noqa: ANN401 - DBAPI
        """Open a connection, in a greenlet, as the tenant whose database it is.

        Args:
            database: Its name, which is that of the tenant's role as well.
            password: Of that role; None opens it with the role of the URL.

        Raises:
            asyncpg.PostgresError: The server refuses it.
        """
        options = {**self._options, "database": database}
        if not self._is_met:
            # The others wait for what is asked of the first one, which is closed behind that.
            options["command_timeout"] = self._config.connect_timeout
        if password is not None:
            options.update(user=database, password=password)
        try:
            return open_connection(self._dialect, self.link, [*self._positional], options, {})
        except self._dialect.loaded_dbapi.Error as error:
            # What the driver says, below SQLAlchemy's translation of it.
            if isinstance(error.__cause__, asyncpg.PostgresError):
                raise error.__cause__ from None
            raise

    async def login(self, tenant_id: UUID) -> Login:
        """Return the credential of a tenant.

        Raises:
            IsolationError: It has none.
            BackendUnavailable: The tenant store cannot be reached.
        """
        assert self._credentials is not None  # noqa: S101 - asked only where tenants have their own
        try:
            login = await self._credentials.get(tenant_id)
        except BackendUnavailable as error:
            # Without its cause, by which the breakers would take it for this server's.
            raise BackendUnavailable(f"The tenant's login cannot be read. {error}") from None
        if login is None:
            raise without_database()
        return login

    def _learn(self, record: ConnectionPoolEntry) -> bool:
        driver: Any = record.driver_connection
        backend = await_only(driver.fetchval("SELECT pg_catalog.pg_backend_pid()"))
        self.link.pooled = driver.get_server_pid() != backend
        choice = self._settings.prepared_statements
        self.link.prepared = choice == "on" or (choice == "auto" and not self.link.pooled)
        _forget_role(self._dialect)
        self._is_met = True
        # It was opened with the more careful guess.
        return True

    # -- making databases ----------------------------------------------------------------------

    def admin_engine(self, database: str | None = None) -> AsyncEngine:
        """Make an engine of the role that makes databases; close it after use.

        Args:
            database: By default that of its URL.
        """
        url = self._admin_url if database is None else self._admin_url.set(database=database)
        # Whoever makes a database asks the store meanwhile, for which the place is that is kept for
        # the control plane: holding that one, they would wait for themselves.
        engine = make_engine(
            url,
            self._config,
            self._budget,
            connect_args={**WITHOUT_PREPARED, **self._admin_arguments},
            pool_pre_ping=False,
        )
        replace_closed(engine)
        end_silent(engine)
        tell_flaws(engine, self.address.admin_setting)
        setattr(engine.sync_engine.dialect, SETTING, self._config.rls_setting)
        return engine

    async def facts(self) -> ServerFacts:
        """Return what the role that makes databases sees.

        Raises:
            BackendUnavailable: The server cannot be reached.
            ConfigurationError: A pooler stands between.
        """
        if self._facts is None:
            with unavailable_in_words():
                async with self._admin.connect() as connection:
                    facts = await facts_of(connection)
            if facts.pooled:
                raise ConfigurationError(
                    f"{self.address.admin_setting} leads to a pooler, and databases are made under "
                    "a lock that lasts for longer than a transaction. Name the server itself."
                )
            self._facts = facts
        return self._facts

    @asynccontextmanager
    async def administering(self) -> AsyncGenerator[AsyncConnection, None]:
        """Open a connection of that role, outside of any transaction.

        Raises:
            BackendUnavailable: The server cannot be used now.
        """
        async with self._unmet() as connection:
            try:
                await self._meet(connection, "SELECT 1")
            except BaseException:
                await connection.invalidate()
                raise
            yield connection

    @asynccontextmanager
    async def _unmet(self) -> AsyncGenerator[AsyncConnection, None]:
        with unavailable_in_words():
            async with self._admin.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection

    async def _meet(self, connection: AsyncConnection, words: str) -> asyncpg.Connection[Any]:
        """Say something to the server, over another link if this one is dead.

        It may have been idle for hours, and its other end be gone without a word: whatever is done
        with it first would not end before the system's TCP gives up.
        """
        try:
            return await self._say(connection, words)
        except _GONE:
            await connection.invalidate()
        return await self._say(connection, words)

    async def _say(self, connection: AsyncConnection, words: str) -> asyncpg.Connection[Any]:
        raw = await connection.get_raw_connection()
        driver = cast("asyncpg.Connection[Any]", raw.driver_connection)
        await driver.execute(words, timeout=self._config.connect_timeout)
        return driver

    @asynccontextmanager
    async def locked(self, key: tuple[int, int]) -> AsyncGenerator[Work, None]:
        """As :meth:`administering`, while nobody else is at work on the same thing.

        Args:
            key: Of an advisory lock.

        Raises:
            BackendUnavailable: Somebody was for longer than ``database_pool_timeout``.
        """
        async with self._unmet() as connection:
            try:
                work = Work(await self._lock(connection, key), key)
                yield work
                await work.end()
            except BaseException:
                # The lock belongs to the connection.
                await connection.invalidate()
                raise

    async def _lock(
        self, connection: AsyncConnection, key: tuple[int, int]
    ) -> asyncpg.Connection[Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.database_pool_timeout
        while True:
            # The server says in time that it is there, and that somebody is at work.
            left = min(self._config.connect_timeout / 2, max(deadline - loop.time(), 0.001))
            try:
                return await self._meet(
                    connection,
                    f"SET LOCAL lock_timeout={max(round(left * 1000), 1)};"
                    f"SELECT pg_catalog.pg_advisory_lock({key[0]},{key[1]})",
                )
            except asyncpg.LockNotAvailableError:
                if loop.time() >= deadline:
                    raise


class Work:
    """Something that one process at a time does, on a connection that has the lock for it.

    Args:
        driver: The connection.
        key: Of the lock.

    Attributes:
        driver: The connection, outside of any transaction.
    """

    __slots__ = ("_is_done", "_unlock", "driver")

    def __init__(self, driver: asyncpg.Connection[Any], key: tuple[int, int]) -> None:
        self.driver = driver
        self._unlock = f"SELECT pg_catalog.pg_advisory_unlock({key[0]},{key[1]})"
        self._is_done = False

    async def end(self, script: str | None = None) -> None:
        """Let others in, after a last transaction: in one message. A second call does nothing.

        Args:
            script: What the transaction does.

        Raises:
            asyncpg.PostgresError: The server refused it. Nobody was let in.
        """
        if self._is_done:
            return
        last = "" if script is None else f"BEGIN;{script};COMMIT;"
        await self.driver.execute(last + self._unlock)
        self._is_done = True


class _Opener:
    """Opens connections to one database, with whatever its tenant's credential is by then."""

    __slots__ = ("_database", "_login", "_server", "_tenant_id")

    def __init__(self, server: Server, database: str, tenant_id: UUID) -> None:
        self._server = server
        self._database = database
        self._tenant_id = tenant_id
        self._login: Login | None = None

    def __call__(self, _record: ConnectionPoolEntry) -> Any:  # noqa: ANN401 - DBAPI
        try:
            if not self._server.address.own:
                return self._server.open(self._database, None)
            return self._open_with_login()
        except asyncpg.InvalidCatalogNameError as error:
            raise without_database() from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise unavailable(error) from error

    def _open_with_login(self) -> Any:  # noqa: ANN401 - DBAPI
        login, refusal = self._login, None
        while True:
            if login is not None:
                try:
                    return self._open_as(login)
                except _REFUSED as error:
                    refusal = error
            self._login = None
            kept = await_only(self._server.login(self._tenant_id))
            if refusal is not None and kept == login:
                raise refusal
            # It was replaced, perhaps by another process, and perhaps just now.
            login = kept

    def _open_as(self, login: Login) -> Any:  # noqa: ANN401 - DBAPI
        open_ = partial(self._server.open, self._database)
        try:
            connection = open_(login.password)
        except _WRONG_PASSWORD:
            if login.previous is None:
                raise
        else:
            self._login = login
            return connection
        # Whoever replaces it has not told the server yet.
        try:
            return open_(login.previous)
        except _WRONG_PASSWORD:
            # Now they have.
            return open_(login.password)


def _forget_role(dialect: Any) -> None:  # noqa: ANN401 - SQLAlchemy's, of any kind
    """Forget what SQLAlchemy has asked of the first connection that is not the server's to say.

    It was one tenant's, whose role may set what it likes for itself (``ALTER ROLE CURRENT_USER SET
    standard_conforming_strings = off``), and the dialect writes all tenants' statements.
    """
    dialect._backslash_escapes = False  # noqa: SLF001 - it has no public name
    dialect.default_schema_name = "public"
    dialect.reset_isolation_level = _reset_isolation_level


def _reset_isolation_level(adapter: Any) -> None:  # noqa: ANN401 - DBAPI
    # As it was opened: each transaction has what the server, or the tenant's role, says.
    adapter.set_isolation_level(None)


def without_database() -> IsolationError:
    """Return the error for a tenant that has no database."""
    return IsolationError(
        "The tenant has no database on its server: it was not provisioned, or removed."
    )


async def _never(_place: str) -> bool:
    return False


def _ignore(_place: str) -> None:
    """Tenants' types are in databases of their own."""
