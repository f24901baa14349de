"""The engine of declared reads in ``qualified`` mode: one message for one statement.

A statement that names its tables in full needs nothing from a transaction, so there is none: no
BEGIN and no COMMIT. The statements of one session have no common snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.util import await_only

from tenancy_core.errors import IsolationError
from tenancy_postgres.engine import make_shared_engine
from tenancy_postgres.harmless import leaves_nothing

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_postgres.engine import Target

__all__ = ["make_reading_engine"]

_SETTINGS: Final = {"search_path": "", "default_transaction_read_only": "on"}


def make_reading_engine(target: Target) -> AsyncEngine:
    """Make an engine without transactions, on which the server refuses writes."""
    engine = make_shared_engine(target, server_settings=_SETTINGS, isolation_level="AUTOCOMMIT")
    _refuse_transactions(engine)
    _notice(engine)
    return engine


def _refuse_transactions(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "begin")
    def _check(connection: Connection) -> None:
        adapter: Any = connection.connection.dbapi_connection
        if not adapter.autocommit:
            raise IsolationError(
                "A declared read has no transaction, and so no isolation level. For a common "
                "snapshot open the session without read_only=True."
            )


def _notice(engine: AsyncEngine) -> None:
    """Have a connection cleaned after a statement that may have left something on it."""

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _look(
        connection: Connection,
        _cursor: object,
        statement: str,
        _parameters: object,
        context: Any,  # noqa: ANN401 - ExecutionContext, or nothing
        _many: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        driver: Any = connection.connection.driver_connection
        compiled = None if context is None else context.compiled
        # Without the names of tenants' schemas, of which there are many.
        if not leaves_nothing(statement if compiled is None else compiled.string):
            driver.use()
        if context is not None and context.execution_options.get("stream_results"):
            _begin(driver)

    @event.listens_for(engine.sync_engine, "savepoint")
    def _savepoint(connection: Connection, _name: str) -> None:
        _begin(connection.connection.driver_connection)


def _begin(driver: Any) -> None:  # noqa: ANN401 - TenantConnection, or nothing
    """Begin a transaction for what PostgreSQL does in one only: a cursor, a savepoint."""
    if not driver.is_in_transaction():
        await_only(driver.open_transaction("BEGIN READ ONLY"))
