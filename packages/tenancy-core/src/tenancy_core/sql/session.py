"""One session, one tenant: the context managers that isolation strategies hand out."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tenancy_core._background import leave_behind, settle
from tenancy_core.errors import IsolationError
from tenancy_core.sql.pool import BudgetedPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tenancy_core.sql.engines import EngineSource, Lease
    from tenancy_core.tenant import Tenant

__all__ = ["TENANT", "TenantConnectionContext", "TenantSessionContext", "expect", "require_own"]

TENANT: Final = "tenancy_tenant"
"""Execution option: the :class:`~tenancy_core.tenant.Tenant` of everything in a block."""

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


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


class _TenantSession(Session):
    """Says whose the connection is that it takes."""

    def get_bind(self, *args: Any, **options: Any) -> Engine | Connection:
        """Return the engine; SQLAlchemy then takes a connection from it, if it has none yet."""
        bind = super().get_bind(*args, **options)
        expect(bind.engine, self.info["tenant"])
        return bind


def expect(engine: Engine, tenant: Tenant) -> None:
    """Say whose the next checkout from an engine is; nothing may be awaited before it."""
    pool = engine.pool
    if isinstance(pool, BudgetedPool):
        pool.expect(tenant.placement.name, tenant.plan)


class _Leased:
    """An engine in use, and the gate that is held meanwhile.

    A block whose task was cancelled without leaving it is left from outside. Frameworks do that:
    when a client goes away, Starlette cancels the task that iterates over a streamed body, and
    does not close the generator. Until the garbage collector finds it, a session in it would keep
    its connection, and a writing one its tenant.
    """

    __slots__ = (
        "__weakref__",
        "_engines",
        "_gate",
        "_lease",
        "_options",
        "_task",
        "_tenant",
        "_when_done",
    )

    def __init__(
        self,
        engines: EngineSource,
        tenant: Tenant,
        *,
        options: Mapping[str, Any] = _NONE,
        gate: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Prepare; nothing is taken before the block is entered.

        Args:
            engines: Where the tenant's engine is.
            tenant: Whose session it is.
            options: Execution options for everything that runs in the block.
            gate: Held for as long as the block runs.
        """
        self._engines = engines
        self._tenant = tenant
        self._options = options
        self._gate = gate
        self._lease: Lease | None = None
        self._task: asyncio.Task[Any] | None = None
        self._when_done: Callable[[asyncio.Task[Any]], None] | None = None

    def _enter(self) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        # Weakly: a context that everybody else has forgotten gives back what it holds.
        this = ref(self)

        def when_done(task: asyncio.Task[Any]) -> None:
            context = this()
            if context is not None and task.cancelled() and context._leave(asyncio.CancelledError):  # noqa: SLF001 - itself
                leave_behind(context._finish())  # noqa: SLF001 - as above

        self._task, self._when_done = task, when_done
        task.add_done_callback(when_done)

    def _leave(self, kind: type[BaseException] | None) -> bool:
        """Return whether the block is left now, and was not before.

        Raises:
            IsolationError: It was, and its caller believes that it commits.
        """
        task, when_done, self._task, self._when_done = self._task, self._when_done, None, None
        if task is None or when_done is None:
            if kind is None:
                raise IsolationError(
                    "Nothing was committed: this session was closed when the task that opened it "
                    "was cancelled."
                )
            return False
        task.remove_done_callback(when_done)
        return True

    async def _finish(self) -> None:
        raise NotImplementedError

    async def _take(self) -> AsyncEngine:
        if self._gate is not None:
            await self._gate.__aenter__()
        try:
            self._lease = self._engines.lease(self._tenant)
        except BaseException:
            if self._gate is not None:
                await self._gate.__aexit__(None, None, None)
            raise
        return self._lease.engine

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

    __slots__ = ("_session",)

    def __init__(self, engines: EngineSource, tenant: Tenant, **how: Any) -> None:
        super().__init__(engines, tenant, **how)
        self._session: AsyncSession | None = None

    async def __aenter__(self) -> AsyncSession:
        engine = await self._take()
        self._session = AsyncSession(
            engine,
            sync_session_class=_TenantSession,
            close_resets_only=False,
            expire_on_commit=False,
            execution_options={**self._options, TENANT: self._tenant},
            info={"tenant": self._tenant},
        )
        self._enter()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self._session
        assert session is not None  # noqa: S101 - set by __aenter__
        if not self._leave(kind):
            return
        try:
            if kind is None:
                await session.commit()
        finally:
            await settle(self._finish())

    async def _finish(self) -> None:
        assert self._session is not None  # noqa: S101 - as above
        try:
            # Rolls back whatever was not committed.
            await self._session.close()
        finally:
            await self._give_back()


class TenantConnectionContext(_Leased):
    """Opens an ``AsyncConnection`` in a transaction of one tenant: commit, or roll back."""

    __slots__ = ("_connection",)

    def __init__(self, engines: EngineSource, tenant: Tenant, **how: Any) -> None:
        super().__init__(engines, tenant, **how)
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> AsyncConnection:
        engine = await self._take()
        try:
            expect(engine.sync_engine, self._tenant)
            connection: AsyncConnection = await engine.connect()
            self._connection = connection
            if self._options:
                await connection.execution_options(**{**self._options, TENANT: self._tenant})
            else:
                inner = connection.sync_connection
                assert inner is not None  # noqa: S101 - it was opened above
                # Nothing is awaited here, and the line above switches stacks for it: 2 µs, not 18.
                inner.execution_options(**{TENANT: self._tenant})
            await connection.begin()
        except BaseException:
            await settle(self._finish())
            raise
        self._enter()
        return connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - set by __aenter__
        if not self._leave(kind):
            return
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
