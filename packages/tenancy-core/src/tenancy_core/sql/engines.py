"""Engines: how one is made, and the bounded set of those that tenants use."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from sqlalchemy.ext.asyncio import create_async_engine

from tenancy_core._background import settle
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql.pool import BudgetedPool, PoolShare

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.sql.budget import ConnectionBudget

__all__ = [
    "EngineCache",
    "EngineLease",
    "EngineSource",
    "Lease",
    "SharedEngine",
    "close_engine",
    "make_engine",
]

_log = logging.getLogger("tenancy")

_HIDDEN: Final = True


def make_engine(
    url: URL | str,
    config: TenancyConfig,
    budget: ConnectionBudget,
    *,
    control: bool = False,
    **options: Any,
) -> AsyncEngine:
    """Make an engine whose connections count towards the process's ceiling.

    Args:
        url: Of the database.
        config: Gives the pool settings and ``database_echo``.
        budget: The ceiling.
        control: Whether it serves the control plane.
        **options: Passed on to ``create_async_engine``, where they win over the settings.
    """
    settings: dict[str, Any] = {
        "pool_recycle": config.database_pool_recycle,
        "pool_pre_ping": config.database_pool_pre_ping,
        "echo": config.database_echo,
        **options,
    }
    return create_async_engine(
        url,
        poolclass=BudgetedPool,
        share=PoolShare(
            budget,
            size=config.database_pool_size,
            most=config.database_pool_size + config.database_max_overflow,
            timeout=config.database_pool_timeout,
            control=control,
        ),
        hide_parameters=_HIDDEN,
        **settings,
    )


async def close_engine(engine: AsyncEngine) -> None:
    """Dispose of an engine that nobody uses, and wait until its last connection is closed.

    Raises:
        BackendUnavailable: The driver did not close one in time; all others are closed.
    """
    pool = engine.pool
    await settle(engine.dispose())
    if isinstance(pool, BudgetedPool):
        await pool.let_go()


class Lease(Protocol):
    """An engine in use."""

    @property
    def engine(self) -> AsyncEngine:
        """The engine."""
        ...

    async def release(self) -> None:
        """Give the engine back. Call it once."""
        ...


class EngineSource(Protocol):
    """Where sessions take the engine of a tenant from.

    Attributes:
        affine: Whether it matters which of its connections a session gets.
    """

    affine: bool

    def lease(self, key: str) -> Lease:
        """Return the engine of a key; release it after use."""
        ...


class SharedEngine:
    """One engine for all tenants: what tells them apart is in their transactions.

    Attributes:
        engine: The engine.
        affine: Whether a session had better have a connection that its tenant had last, because
            the server then finds the plans of its statements.
    """

    __slots__ = ("affine", "engine")

    def __init__(self, engine: AsyncEngine, *, affine: bool = False) -> None:
        self.engine = engine
        self.affine = affine

    def lease(self, key: str) -> SharedEngine:  # noqa: ARG002 - as EngineSource
        """Return the one engine."""
        return self

    async def release(self) -> None:
        """Nothing is held."""


class EngineLease:
    """An engine in use: it is not evicted before the ``async with`` block is left."""

    __slots__ = ("_cache", "_entry")

    def __init__(self, cache: EngineCache, entry: _Entry) -> None:
        self._cache = cache
        self._entry = entry

    @property
    def engine(self) -> AsyncEngine:
        """The engine."""
        return self._entry.engine

    async def release(self) -> None:
        """Give the engine back. Call it once."""
        entry = self._entry
        entry.users -= 1
        if not entry.users:
            entry.unused.set()
        await self._cache.shrink()


class _Entry:
    __slots__ = ("engine", "unused", "users")

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.users = 0
        self.unused = asyncio.Event()


class EngineCache:
    """Engines by key, least recently used first, at most ``size`` of them while they are idle.

    An engine in use is never evicted: with more tenants at once than ``size`` the cache grows
    for as long as they are busy, and shrinks when they are done. Making an engine does no I/O and
    does not await, so a hundred first requests of one tenant make one engine.

    Args:
        make: Makes the engine of a key.
        size: The setting ``max_cached_engines``.
    """

    __slots__ = ("_barred", "_closed", "_entries", "_make", "_size", "affine")

    def __init__(self, make: Callable[[str], AsyncEngine], size: int) -> None:
        self._make = make
        self._size = size
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._barred: set[str] = set()
        self._closed = False
        # All connections of a tenant's own engine are the tenant's.
        self.affine = False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def lease(self, key: str) -> EngineLease:
        """Return the engine of a key, making it if need be; release it after use.

        Raises:
            BackendUnavailable: The cache is closed, or the key is barred.
        """
        if self._closed:
            raise BackendUnavailable("The database engines are closed.")
        if key in self._barred:
            raise BackendUnavailable("The database of this tenant is being removed.")
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(self._make(key))
        else:
            self._entries.move_to_end(key)
            entry.unused.clear()
        entry.users += 1
        return EngineLease(self, entry)

    async def shrink(self) -> None:
        """Dispose of idle engines, oldest first, while there are more than ``size``."""
        while len(self._entries) > self._size:
            key = next((key for key, entry in self._entries.items() if not entry.users), None)
            if key is None:
                return
            await settle(self._entries.pop(key).engine.dispose())

    @asynccontextmanager
    async def barred(self, key: str, timeout: float) -> AsyncGenerator[None, None]:  # noqa: ASYNC109 - its caller's setting
        """Keep everybody from a key for a block, which begins when no connection is open any more.

        Args:
            key: Of the engine; there need not be one.
            timeout: Seconds to wait for those who use it.

        Raises:
            BackendUnavailable: It was still in use then, or is barred by somebody else.
        """
        if key in self._barred:
            raise BackendUnavailable("The database of this tenant is being removed.")
        self._barred.add(key)
        try:
            entry = self._entries.get(key)
            if entry is not None:
                await self._until_unused(entry, timeout)
                self._entries.pop(key, None)
                await close_engine(entry.engine)
            yield
        finally:
            self._barred.discard(key)

    async def _until_unused(self, entry: _Entry, timeout: float) -> None:  # noqa: ASYNC109 - as above
        try:
            async with asyncio.timeout(timeout):
                while entry.users:
                    await entry.unused.wait()
        except TimeoutError:
            raise BackendUnavailable(
                f"The tenant's database was still in use after {timeout:g} seconds."
            ) from None

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        if self._entries:
            await settle(self._dispose_of_all())

    async def _dispose_of_all(self) -> None:
        while self._entries:
            key, entry = self._entries.popitem()
            try:
                await close_engine(entry.engine)
            except BackendUnavailable:
                _log.warning("a connection to the database %s was not closed in time", key)
