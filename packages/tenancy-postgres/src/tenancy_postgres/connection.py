"""A connection whose transactions begin, and end, with one message each.

The tenant rides in the BEGIN message and the cleaning behind COMMIT or ROLLBACK, both by the simple
query protocol (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT),
so neither costs a round trip. Only public hooks of asyncpg are used: ``connection_class=`` and an
override of ``transaction()``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from secrets import token_hex
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import asyncpg
from asyncpg.transaction import Transaction

from tenancy_core.errors import CommitUnknown, IsolationError
from tenancy_postgres.harmless import leaves_nothing, leaves_prepared

IsolationLevel: TypeAlias = Literal[
    "read_committed", "read_uncommitted", "serializable", "repeatable_read"
]

__all__ = ["CLEANING", "TenantConnection"]

_log = logging.getLogger("tenancy")

CLEANING: Final = (
    "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;"
    "SELECT pg_catalog.pg_advisory_unlock_all();UNLISTEN *;CLOSE ALL;DISCARD SEQUENCES;DISCARD TEMP"
)
"""What ``DISCARD ALL`` does, less prepared statements, which the driver keeps, and plans
(https://www.postgresql.org/docs/current/sql-discard.html)."""

_MARK: Final = "tenancy.committed"

# An aborted transaction refuses the SET, where a bare COMMIT would roll back and report success.
# The setting outlives the transaction only if it was committed: it tells a failed COMMIT from a
# failed cleaning. Each has a value of its own, which nobody else has set.
_COMMIT: Final = f"SET {_MARK}='%s';COMMIT;{CLEANING}"
_ROLLBACK: Final = f"ROLLBACK;{CLEANING}"
_COMMITTED: Final = f"SELECT pg_catalog.current_setting('{_MARK}', true)"

_UNSURE: Final = frozenset({"", "08", "53", "55", "57", "58", "XX"})
"""Classes of errors that the cleaning behind a COMMIT can have as well: a link, a disk, a
cancellation. With any other one, of a constraint, a conflict or a trigger, the COMMIT failed."""

_TEXTS: Final = ("query", "command", "table_name")
"""What the driver's methods call their first argument."""

F = TypeVar("F", bound=Callable[..., Any])


def _noting(method: F) -> F:
    """Let a connection take note of what goes past SQLAlchemy."""

    @wraps(method)
    def noted(self: TenantConnection, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - of the method
        self.note(args[0] if args else next(filter(None, map(options.get, _TEXTS)), None))
        return method(self, *args, **options)

    return cast("F", noted)


def _spoiling(method: F) -> F:
    """Have a connection dropped after what the driver itself remembers."""

    @wraps(method)
    def spoiled(self: TenantConnection, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - of the method
        self.spoil()
        return method(self, *args, **options)

    return cast("F", spoiled)


class TenantConnection(asyncpg.Connection):
    """Opens transactions for one tenant after the other, and leaves nothing between them.

    Attributes:
        patience: Seconds that BEGIN and ROLLBACK may take. A link whose other end vanished without
            a word would keep them for as long as the system's TCP does.
        pooled: Whether a pooler stands between: what one message leaves behind, the next one may
            not find.
        spoiled: Whether it has something that no message takes off.
    """

    __slots__ = ("_begun", "_doomed", "_ready", "_used", "patience", "pooled", "spoiled")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.patience: float | None = None
        self.pooled = False
        self._begun = False
        self._doomed = False
        self._ready = False
        self._used = False
        self.spoiled = False

    async def open_transaction(self, begin: str) -> None:
        """Begin a transaction; the driver's next :meth:`transaction` takes it over.

        Args:
            begin: ``BEGIN …;SET LOCAL …``.
        """
        # What was begun and never used was never ended either: SQLAlchemy knew of nothing to end.
        self._used = True
        message = f"ROLLBACK;{begin}" if self.is_in_transaction() else begin
        await super().execute(message, timeout=self.patience)
        self._doomed = False
        self._begun = True

    def transaction(
        self,
        *,
        isolation: IsolationLevel | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> Transaction:
        """Return the transaction that :meth:`open_transaction` began.

        Without one it is the driver's own, which has no tenant: SQLAlchemy asks for it when it
        looks at a new server.
        """
        if not self._begun:
            return super().transaction(
                isolation=isolation, readonly=readonly, deferrable=deferrable
            )
        self._begun = False
        return _OpenTransaction(self)

    async def commit_unseen(self) -> None:
        """Commit what only the driver was told of: SQLAlchemy sees no transaction in it.

        Raises:
            As :meth:`commit`.
        """
        if self._begun:
            self._begun = False
            await self.commit()

    async def commit(self) -> None:
        """Commit and clean.

        Raises:
            asyncpg.PostgresError: It was refused; nothing is committed.
            CommitUnknown: The answer was lost.
            IsolationError: It was doomed, and is rolled back.
        """
        if self._doomed:
            await self.rollback()
            raise IsolationError(
                "Nothing was committed: this transaction tried to write a row of another tenant, "
                "which going back to a savepoint does not make undone."
            )
        mark = token_hex(8)
        try:
            await super().execute(_COMMIT % mark)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if not await self._was_committed(error, mark):
                raise
            # The result stands, and the connection has something on it that cannot be taken off.
            _log.warning("a connection could not be cleaned (%s)", type(error).__name__)
            self.terminate()
        self._used = False

    async def _was_committed(self, error: Exception, mark: str) -> bool:
        code = getattr(error, "sqlstate", None) or ""
        if not self.is_closed():
            # What the driver believes is as old as the last answer, and a time-out is none.
            answered = not isinstance(error, OSError)
            if answered and self.is_in_transaction():
                return False
            if not self.pooled:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    found = await super().fetchval(_COMMITTED)
                    return bool(found == mark) and not self.is_in_transaction()
            elif answered and code[:2] not in _UNSURE:
                return False
        raise CommitUnknown(
            f"The connection was lost while a transaction was committed ({type(error).__name__}): "
            "it may have been, or not. Read what was written before you repeat it."
        ) from error

    def doom(self) -> None:
        """Let the transaction end in a rollback, whatever it is told."""
        self._doomed = True

    async def rollback(self) -> None:
        """Roll back and clean."""
        self._begun = False
        await super().execute(_ROLLBACK, timeout=self.patience)
        self._used = False

    def ready(self) -> None:
        """It is set up; from now on whatever is done to it was done by its users."""
        self._ready = True

    def use(self) -> None:
        """Have it cleaned before somebody else gets it."""
        self._used = True

    def spoil(self) -> None:
        """Have it closed before somebody else gets it."""
        self._used = self.spoiled = self._ready

    def note(self, statement: object) -> None:
        """Take note of a statement that somebody hands to the driver."""
        if not self._ready:
            return
        if not isinstance(statement, str):
            self._used = True
            return
        if not self._used and not leaves_nothing(statement):
            self._used = True
        if leaves_prepared(statement):
            self.spoiled = True

    async def clean(self) -> None:
        """Leave nothing of whoever used it; nothing is sent where the last message did so."""
        if self._used:
            await self.rollback()

    # -- what goes past SQLAlchemy -------------------------------------------------------------

    execute = _noting(asyncpg.Connection.execute)
    executemany = _noting(asyncpg.Connection.executemany)
    fetch = _noting(asyncpg.Connection.fetch)
    fetchval = _noting(asyncpg.Connection.fetchval)
    fetchrow = _noting(asyncpg.Connection.fetchrow)
    fetchmany = _noting(asyncpg.Connection.fetchmany)
    prepare = _noting(asyncpg.Connection.prepare)
    cursor = _noting(asyncpg.Connection.cursor)
    copy_from_table = _noting(asyncpg.Connection.copy_from_table)
    copy_from_query = _noting(asyncpg.Connection.copy_from_query)
    copy_to_table = _noting(asyncpg.Connection.copy_to_table)
    copy_records_to_table = _noting(asyncpg.Connection.copy_records_to_table)
    add_listener = _spoiling(asyncpg.Connection.add_listener)
    add_log_listener = _spoiling(asyncpg.Connection.add_log_listener)
    add_query_logger = _spoiling(asyncpg.Connection.add_query_logger)
    add_termination_listener = _spoiling(asyncpg.Connection.add_termination_listener)
    set_type_codec = _spoiling(asyncpg.Connection.set_type_codec)
    reset_type_codec = _spoiling(asyncpg.Connection.reset_type_codec)
    set_builtin_type_codec = _spoiling(asyncpg.Connection.set_builtin_type_codec)


class _OpenTransaction(Transaction):
    """What SQLAlchemy needs of a transaction that has begun: to start, commit and roll back."""

    __slots__ = ("_own",)

    def __init__(self, connection: TenantConnection) -> None:
        super().__init__(connection, None, readonly=False, deferrable=False)
        self._own = connection

    async def start(self) -> None:
        """It has begun."""

    async def commit(self) -> None:
        """Commit and clean."""
        await self._own.commit()

    async def rollback(self) -> None:
        """Roll back and clean."""
        await self._own.rollback()
