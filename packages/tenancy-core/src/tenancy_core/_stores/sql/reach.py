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
            code = sqlite.code_of(error.orig) or postgres.code_of(error.orig)
            flaw = postgres.flaw_of(error.orig)
            if flaw is not None:
                raise flaw from error
        if (
            code is not None
            or isinstance(error, (OperationalError, OSError, PoolTimeoutError))
            or (isinstance(error, DBAPIError) and error.connection_invalidated)
        ):
            raise BackendUnavailable(
                f"The tenant store cannot be reached ({code or type(error).__name__})."
            ) from error


reach: Final = _Reach()
