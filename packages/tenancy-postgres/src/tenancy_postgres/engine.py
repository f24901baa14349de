"""The engine that all tenants share: every transaction on it is one tenant's, or does not begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from tenancy_core.errors import IsolationError
from tenancy_core.sql import TENANT, expect, make_engine
from tenancy_core.sql.postgres import WITHOUT_PREPARED, ends_when_silent, replace_closed, tell_flaws
from tenancy_postgres.connection import TenantConnection
from tenancy_postgres.failures import report_failures, unavailable, without_place
from tenancy_postgres.scope import scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import URL, Connection, Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolResetState

    from tenancy_core.config import TenancyConfig
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.sql.breaker import Breaker

__all__ = [
    "Link",
    "Target",
    "make_shared_engine",
    "make_tenant_engine",
    "open_connection",
    "tag_statements",
]

_NO_ROLE: Final = (asyncpg.InvalidParameterValueError, asyncpg.UndefinedObjectError)
"""SET LOCAL ROLE names one that is not there."""

_LEVELS: Final[dict[str | None, str]] = {
    None: "BEGIN",
    "read_committed": "BEGIN ISOLATION LEVEL READ COMMITTED",
    "repeatable_read": "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "serializable": "BEGIN ISOLATION LEVEL SERIALIZABLE",
}


class Link:
    """What is between this process and the server. It is known once somebody has looked.

    Attributes:
        pooled: Whether a pooler is there; True until it is known, which is the careful guess.
        patience: Seconds to wait for the other end to say anything.
        prepared: Whether statements can be prepared and kept.
    """

    __slots__ = ("patience", "pooled", "prepared")

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.pooled = True
        self.prepared = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where the tenants' sessions go.

    Attributes:
        url: Of the database, with their role.
        connect_args: For asyncpg.
        config: Gives the settings of the pool.
        budget: The ceiling on connections.
        link: Read for each new connection.
        is_missing: Awaited with the name of a tenant's schema where a table was not found.
        lacks_role: Awaited with the same where the tenant's transaction could not begin.
        differs: Told of a schema whose types are not those of a statement that was prepared.
        setting: The variable that the URL comes from.
        breakers: Of what has to answer when a connection is opened.
    """

    url: URL
    connect_args: dict[str, Any]
    config: TenancyConfig
    budget: ConnectionBudget
    link: Link
    is_missing: Callable[[str], Awaitable[bool]]
    lacks_role: Callable[[str], Awaitable[bool]]
    differs: Callable[[str], None]
    setting: str = "TENANCY_DATABASE_URL"
    breakers: tuple[Breaker, ...] = ()

    def options(self) -> dict[str, Any]:
        """Return what the driver is given besides the URL."""
        return {"connection_class": TenantConnection, **self.connect_args}


def make_shared_engine(
    target: Target, *, server_settings: dict[str, str] | None = None, **options: Any
) -> AsyncEngine:
    """Make an engine whose connections come back to the pool as they left it.

    Args:
        target: Where to.
        server_settings: Of each connection, where no pooler stands between.
        **options: For ``create_async_engine``.
    """
    engine = make_engine(
        target.url,
        target.config,
        target.budget,
        breakers=target.breakers,
        connect_args=target.options(),
        pool_pre_ping=False,
        # Whatever ends a transaction cleans the connection in the same message.
        pool_reset_on_return=None,
        **options,
    )
    if target.config.database_pool_pre_ping:
        replace_closed(engine)
    # Before the failures, which do not know where the URL comes from.
    tell_flaws(engine, target.setting)
    report_failures(engine, is_missing=target.is_missing, differs=target.differs)
    _connect(engine, target.link, server_settings or {})
    _reset(engine)
    return engine


def make_tenant_engine(target: Target, *, search_path: str | None) -> AsyncEngine:
    """Make an engine on which nothing runs outside of a tenant's transaction.

    Args:
        target: Where to.
        search_path: What holds outside of one, where no pooler stands between; None leaves the
            role's own.
    """
    engine = make_shared_engine(
        target, server_settings=None if search_path is None else {"search_path": search_path}
    )
    _begin(engine, target)
    _commit(engine)
    return engine


def open_connection(
    dialect: Dialect,
    link: Link,
    args: Any,  # noqa: ANN401 - DBAPI
    options: dict[str, Any],
    server_settings: dict[str, str],
) -> Any:  # noqa: ANN401 - DBAPI
    """Open a connection of tenants, in a greenlet.

    Args:
        dialect: Of the engine.
        link: What is between.
        args: For the driver; so are the options, which are changed.
        options: Those that are named.
        server_settings: Of the connection, where no pooler stands between.

    Raises:
        BackendUnavailable: The server cannot be reached.
    """
    if not link.prepared:
        options.update(WITHOUT_PREPARED)
    # Poolers refuse parameters that they do not track.
    if not link.pooled:
        options["server_settings"] = {**options.get("server_settings", {}), **server_settings}
    try:
        connection: Any = dialect.connect(*args, **options)
    except OSError as error:  # which SQLAlchemy hands on as it is; a time-out is one
        raise unavailable(error) from error
    connection.driver_connection.pooled = link.pooled
    connection.driver_connection.patience = link.patience
    ends_when_silent(connection.driver_connection)
    return connection


def _connect(engine: AsyncEngine, link: Link, server_settings: dict[str, str]) -> None:
    @event.listens_for(engine.sync_engine, "do_connect")
    def _open(dialect: Dialect, _record: object, args: Any, options: dict[str, Any]) -> Any:  # noqa: ANN401 - DBAPI
        return open_connection(dialect, link, args, options, server_settings)

    @event.listens_for(engine.sync_engine, "connect")
    def _ready(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI
        connection.driver_connection.ready()


def _commit(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "commit")
    def _commit_unseen(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        try:
            await_only(driver.commit_unseen())
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise DBAPIError("COMMIT", None, error) from error


def _begin(engine: AsyncEngine, target: Target) -> None:
    @event.listens_for(engine.sync_engine, "begin")
    def _begin_as_tenant(connection: Connection) -> None:
        scope = scope_of(connection)
        if scope is None:
            raise IsolationError("A tenants' connection was used without a tenant.")
        adapter: Any = connection.connection.dbapi_connection
        if adapter.autocommit:
            raise IsolationError(
                "A tenant's session cannot be switched to AUTOCOMMIT: what makes it the tenant's "
                "lasts for one transaction. Run such statements with a role of their own."
            )
        begin = _LEVELS[adapter.isolation_level]
        if scope.read_only or adapter.readonly:
            begin += " READ ONLY"
        if adapter.deferrable:
            begin += " DEFERRABLE"
        begin = f"{begin};{scope.settings}"
        try:
            await_only(adapter.driver_connection.open_transaction(begin))
        except _NO_ROLE as error:
            await_only(adapter.driver_connection.rollback())
            if scope.place is not None:
                _look_for_place(target, scope.place, error)
            raise unavailable(error) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            _begin_again(connection, begin, error)
        except BaseException as error:
            # Nobody waits for the answer, which may never come.
            connection.invalidate(error)
            raise


def _look_for_place(target: Target, place: str, error: Exception) -> None:
    """Say what a tenant lacks that could not begin a transaction.

    Raises:
        IsolationError: It has no schema, or no role of its own.
    """
    if await_only(target.is_missing(place)):
        raise without_place() from error
    if await_only(target.lacks_role(place)):
        raise IsolationError(
            "The tenant has no role of its own: it was made before TENANCY_POSTGRES_SCHEMA_ROLES "
            "was switched on, or somebody removed the role. Provision the tenant again, which "
            "makes the role (await tenancy.parts.isolation.provision(tenant)), or switch the "
            "setting off."
        ) from error


def _begin_again(connection: Connection, begin: str, error: Exception) -> None:
    """Send the BEGIN once more, on a new connection, where the link was found dead.

    A connection whose other end vanished without a word is noticed by the first message over it,
    and nothing was done before that.

    Raises:
        BackendUnavailable: There is no new connection either, or the server refuses the BEGIN.
    """
    adapter: Any = connection.connection.dbapi_connection
    if not adapter.driver_connection.is_closed():
        connection.invalidate(error)
        raise unavailable(error) from error
    connection.invalidate(error)
    tenant = connection.get_execution_options().get(TENANT)
    if tenant is not None:
        expect(connection.engine, tenant)
    try:
        renewed: Any = connection.connection.dbapi_connection
        await_only(renewed.driver_connection.open_transaction(begin))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as again:
        connection.invalidate(again)
        raise unavailable(again) from again


def _reset(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "reset")
    def _clean(dbapi_connection: Any, record: Any, state: PoolResetState) -> None:  # noqa: ANN401 - DBAPI
        # Without a greenlet nothing can be awaited; SQLAlchemy then closes the connection.
        if state.asyncio_safe:
            driver: TenantConnection = dbapi_connection.driver_connection
            if driver.spoiled:
                record.invalidate()
            elif not driver.is_closed():
                await_only(driver.clean())


def tag_statements(engine: AsyncEngine) -> None:
    """Write the tag of their scope into the text of statements."""

    @event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
    def _add_tag(
        connection: Connection,
        _cursor: object,
        statement: str,
        parameters: Any,  # noqa: ANN401 - DBAPI
        _context: object,
        _many: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> tuple[str, Any]:
        scope = scope_of(connection)
        return (statement + scope.tag if scope is not None else statement), parameters
