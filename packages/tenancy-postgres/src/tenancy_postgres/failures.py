"""PostgreSQL's way of saying "not now" and "not yours", in tenancy's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.util import await_only

from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    CrossTenantWrite,
    IsolationError,
    TenancyError,
)
from tenancy_core.sql.postgres import code_of, flaw_of, in_words
from tenancy_postgres.scope import scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_postgres.scope import Scope

__all__ = ["report_failures", "unavailable", "without_place"]

_WITH_CHECK: Final = "ExecWithCheckOptions"
"""The function of the server that refuses a row which no policy allows. The SQLSTATE is that of
every missing right, and texts are translated; this is not
(https://www.postgresql.org/docs/current/protocol-error-fields.html)."""

_DENIED: Final = "42501"
_READ_ONLY: Final = "25006"
_NO_WAIT: Final = "55P03"
_INTERRUPTED: Final = "ProcessInterrupts"
"""The function of the server that ends what waited too long."""
_CASTS: Final = frozenset({"42846", "42804"})
_UNPREPARED: Final = "26000"
_MISSING: Final = frozenset({"42P01", "3F000"})
_TIMEOUTS: Final = {
    "57014": "a statement took longer than its time-out, or was cancelled",
    "55P03": "a lock was held for longer than its time-out",
    "25P03": "the transaction was idle for longer than its time-out",
}


def unavailable(error: BaseException) -> BackendUnavailable | ConfigurationError:
    """Return the error for a database that cannot be used now; it does not repeat the driver's."""
    flaw = flaw_of(error)
    if flaw is not None:
        return flaw
    code = getattr(error, "sqlstate", None)
    why = _TIMEOUTS.get(code) or in_words(code) if code else type(error).__name__
    return BackendUnavailable(f"The tenant's database cannot be used now ({why}).")


def report_failures(
    engine: AsyncEngine,
    *,
    is_missing: Callable[[str], Awaitable[bool]],
    differs: Callable[[str], None],
) -> None:
    """Turn what the driver raises into tenancy's errors, where it is about the tenant's place.

    Args:
        engine: Of the tenants.
        is_missing: Tells whether a schema is not there.
        differs: Told of a schema whose types are not those of a statement that was prepared.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def _translate(context: ExceptionContext) -> None:
        error: Any = context.original_exception
        # Who was cancelled has its connection dropped by SQLAlchemy; what is told is told.
        if not isinstance(error, Exception) or isinstance(error, TenancyError):
            return
        # asyncpg's own error, below SQLAlchemy's translation of it.
        error = getattr(error, "__cause__", None) or error
        scope = None if context.connection is None else scope_of(context.connection)
        code = getattr(error, "sqlstate", None)
        _refuse_foreign_rows(context, error)
        _note_types(error, scope, differs)
        if _is_unavailable(context, error, scope):
            raise unavailable(error) from error
        if (
            code in _MISSING
            and scope is not None
            and scope.place is not None
            and await_only(is_missing(scope.place))
        ):
            raise without_place() from error


def _refuse_foreign_rows(context: ExceptionContext, error: Any) -> None:  # noqa: ANN401 - of the driver
    denied = getattr(error, "sqlstate", None) == _DENIED
    if denied and getattr(error, "server_source_function", None) == _WITH_CHECK:
        if context.connection is not None:
            driver: Any = context.connection.connection.driver_connection
            driver.doom()
        raise CrossTenantWrite(
            "A row of another tenant was to be written; nothing of this transaction is."
        ) from error


def without_place() -> IsolationError:
    """Return the error for a tenant that has nothing in this database."""
    return IsolationError(
        "The tenant has no schema in this database: it was not provisioned, or removed."
    )


def _note_types(error: Any, scope: Scope | None, differs: Callable[[str], None]) -> None:  # noqa: ANN401 - of the driver
    stale = isinstance(error, asyncpg.InvalidCachedStatementError)
    # A type of another tenant, in a statement that was prepared for it; or somebody's mistake.
    foreign = getattr(error, "sqlstate", None) in _CASTS
    if (stale or foreign) and scope is not None and scope.place is not None:
        differs(scope.place)
    if stale:
        raise BackendUnavailable(
            "The tenant's tables are not what they were when this statement was prepared: "
            "somebody migrates them. Try again."
        ) from error


def _is_unavailable(context: ExceptionContext, error: Any, scope: Scope | None) -> bool:  # noqa: ANN401 - of the driver
    code = getattr(error, "sqlstate", None)
    if code == _NO_WAIT and getattr(error, "server_source_function", None) != _INTERRUPTED:
        return False  # FOR UPDATE NOWAIT: asked for, and no time-out
    if code == _READ_ONLY:
        # A standby that took over from the server, or has not been promoted yet.
        return not _only_reads(context, scope)
    if code == _UNPREPARED:
        # Somebody dropped it past the driver, which would go on asking for it.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    return code_of(error) is not None or context.is_disconnect or _is_link(error)


def _only_reads(context: ExceptionContext, scope: Scope | None) -> bool:
    if scope is not None and scope.read_only:
        return True
    adapter: Any = None if context.connection is None else context.connection.connection
    return adapter is not None and bool(adapter.dbapi_connection.readonly)


def _is_link(error: BaseException) -> bool:
    return isinstance(
        error, (OSError, asyncpg.PostgresConnectionError, asyncpg.ClientConfigurationError)
    )
