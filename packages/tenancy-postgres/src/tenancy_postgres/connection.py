"""A connection whose transactions begin, and end, with one message each.

The tenant rides in the BEGIN message and the cleaning behind COMMIT or ROLLBACK, both by the simple
query protocol (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT),
so neither costs a round trip. Only public hooks of asyncpg are used: ``connection_class=`` and an
override of ``transaction()``.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import asyncpg
from asyncpg.transaction import Transaction

from tenancy_core.errors import CommitUnknown, IsolationError

IsolationLevel: TypeAlias = Literal[
    "read_committed", "read_uncommitted", "serializable", "repeatable_read"
]

__all__ = ["CLEANING", "TenantConnection"]

_log = logging.getLogger("tenancy")

CLEANING: Final = (
    "RESET ROLE;RESET ALL;SELECT pg_catalog.pg_advisory_unlock_all();UNLISTEN *;CLOSE ALL;"
    "DISCARD TEMP"
)
"""What ``DISCARD ALL`` does, less prepared statements, which the driver keeps, and plans."""

_MARK: Final = "tenancy.committed"

# An aborted transaction refuses the SET, where a bare COMMIT would roll back and report success.
# The setting outlives the transaction only if it was committed: it tells a failed COMMIT from a
# failed cleaning.
_COMMIT: Final = f"SET {_MARK}='on';COMMIT;{CLEANING}"
_ROLLBACK: Final = f"ROLLBACK;{CLEANING}"
_WAS_COMMITTED: Final = f"SELECT pg_catalog.current_setting('{_MARK}', true)='on'"

_NOT_COMMITTED: Final = frozenset({"23", "40"})
"""Classes of errors with which a COMMIT fails for sure: a deferred constraint, a conflict."""


class TenantConnection(asyncpg.Connection):
    """Opens transactions for one tenant after the other, and leaves nothing between them.

    Attributes:
        pooled: Whether a pooler stands between: what one message leaves behind, the next one may
            not find.
    """

    __slots__ = ("_begun", "_doomed", "_used", "pooled")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pooled = False
        self._begun = False
        self._doomed = False
        self._used = False

    async def open_transaction(self, begin: str) -> None:
        """Begin a transaction; the driver's next :meth:`transaction` takes it over.

        Args:
            begin: ``BEGIN …;SET LOCAL …``.
        """
        # What was begun and never used was never ended either: SQLAlchemy knew of nothing to end.
        self._used = True
        await self.execute(f"ROLLBACK;{begin}" if self.is_in_transaction() else begin)
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
        try:
            await self.execute(_COMMIT)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if not await self._was_committed(error):
                raise
            # The result stands, and the connection has something on it that cannot be taken off.
            _log.warning("a connection could not be cleaned (%s)", type(error).__name__)
            self.terminate()
        self._used = False

    async def _was_committed(self, error: Exception) -> bool:
        code = getattr(error, "sqlstate", None) or ""
        if code[:2] in _NOT_COMMITTED:
            return False
        if not self.is_closed():
            if self.is_in_transaction():
                return False
            if not self.pooled:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    return bool(await self.fetchval(_WAS_COMMITTED))
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
        await self.execute(_ROLLBACK)
        self._used = False

    def use(self) -> None:
        """Have it cleaned before somebody else gets it."""
        self._used = True

    async def clean(self) -> None:
        """Leave nothing of whoever used it; nothing is sent where the last message did so."""
        if self._used:
            await self.rollback()


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
