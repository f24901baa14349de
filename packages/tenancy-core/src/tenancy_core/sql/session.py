"""One session, one tenant: the context managers that isolation strategies hand out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from tenancy_core._background import settle
from tenancy_core.errors import IsolationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.sql.engines import EngineCache, EngineLease
    from tenancy_core.tenant import Tenant

__all__ = ["TenantConnectionContext", "TenantSessionContext", "require_own"]


def require_own(tenant: Tenant, isolation: str) -> None:
    """Refuse a tenant whose data another strategy holds, or that has no place yet.

    Raises:
        IsolationError: Its record says so; serving it here would read an empty or foreign place.
    """
    if tenant.isolation != isolation:
        raise IsolationError(
            f"Tenant {tenant.identifier} is isolated by {tenant.isolation!r}, "
            f"and this strategy is {isolation!r}."
        )
    if not tenant.placement.name:
        raise IsolationError(f"Tenant {tenant.identifier} has no place for its data.")


class _Leased:
    """An engine in use, and the gate that is held meanwhile."""

    __slots__ = ("_engines", "_gate", "_key", "_lease", "_options")

    def __init__(
        self,
        engines: EngineCache,
        key: str,
        *,
        options: Mapping[str, Any] | None = None,
        gate: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Prepare; nothing is taken before the block is entered.

        Args:
            engines: Where the tenant's engine is.
            key: Of the engine.
            options: Execution options for everything that runs in the block.
            gate: Held for as long as the block runs.
        """
        self._engines = engines
        self._key = key
        self._options = options
        self._gate = gate
        self._lease: EngineLease | None = None

    async def _take(self) -> Any:  # noqa: ANN401 - AsyncEngine, or its option view
        if self._gate is not None:
            await self._gate.__aenter__()
        try:
            self._lease = self._engines.lease(self._key)
        except BaseException:
            if self._gate is not None:
                await self._gate.__aexit__(None, None, None)
            raise
        engine = self._lease.engine
        return engine.execution_options(**self._options) if self._options else engine

    async def _give_back(self) -> None:
        try:
            if self._lease is not None:
                await self._lease.release()
        finally:
            if self._gate is not None:
                await self._gate.__aexit__(None, None, None)


class TenantSessionContext(_Leased):
    """Opens an ``AsyncSession`` that reaches one tenant.

    Leaving the block commits; an exception rolls back. The session is closed for good afterwards:
    it raises when it is used, instead of silently opening another transaction.
    """

    __slots__ = ("_session", "_tenant")

    def __init__(self, engines: EngineCache, tenant: Tenant, **how: Any) -> None:
        super().__init__(engines, tenant.placement.name, **how)
        self._tenant = tenant
        self._session: AsyncSession | None = None

    async def __aenter__(self) -> AsyncSession:
        engine = await self._take()
        self._session = AsyncSession(
            engine,
            close_resets_only=False,
            expire_on_commit=False,
            info={"tenant": self._tenant},
        )
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self._session
        assert session is not None  # noqa: S101 - set by __aenter__
        try:
            if kind is None:
                await session.commit()
        finally:
            await settle(self._finish(session))

    async def _finish(self, session: AsyncSession) -> None:
        try:
            # Rolls back whatever was not committed.
            await session.close()
        finally:
            await self._give_back()


class TenantConnectionContext(_Leased):
    """Opens an ``AsyncConnection`` in a transaction of one tenant: commit, or roll back."""

    __slots__ = ("_connection",)

    def __init__(self, engines: EngineCache, tenant: Tenant, **how: Any) -> None:
        super().__init__(engines, tenant.placement.name, **how)
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> AsyncConnection:
        engine = await self._take()
        try:
            connection: AsyncConnection = await engine.connect()
            self._connection = connection
            await connection.begin()
        except BaseException:
            await settle(self._finish())
            raise
        return connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - set by __aenter__
        try:
            if kind is None:
                await connection.commit()
        finally:
            await settle(self._finish())

    async def _finish(self) -> None:
        try:
            if self._connection is not None:
                await self._connection.close()
        finally:
            await self._give_back()
