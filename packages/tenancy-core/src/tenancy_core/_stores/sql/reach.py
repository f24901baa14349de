"""The driver's way of saying "not now", as ``BackendUnavailable``."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import postgres, sqlite

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["reach"]

_NOT_NOW: Final = frozenset(
    {
        "25006",  # read_only_sql_transaction: a standby that is not promoted yet
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected: nothing is left of the transaction, as after a lost link
    }
)


class _Reach(AbstractAsyncContextManager[None]):
    __slots__ = ()

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = None
        if isinstance(error, DBAPIError):
            code = _code_of(error.orig)
            flaw = postgres.flaw_of(error.orig)
            if flaw is not None:
                raise flaw from error
        if (
            code is not None
            or isinstance(error, (OperationalError, OSError, PoolTimeoutError))
            or (isinstance(error, DBAPIError) and error.connection_invalidated)
        ):
            why = postgres.in_words(code) if code else type(error).__name__
            raise BackendUnavailable(f"The tenant store cannot be reached ({why}).") from error


def _code_of(error: BaseException | None) -> str | None:
    code = sqlite.code_of(error) or postgres.code_of(error)
    if code is None and (state := getattr(error, "sqlstate", None)) in _NOT_NOW:
        return str(state)
    return code


reach: Final = _Reach()
