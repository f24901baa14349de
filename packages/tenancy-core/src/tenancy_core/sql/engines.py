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
    from tenancy_core.sql.breaker import Breaker
    from tenancy_core.sql.budget import ConnectionBudget
    from tenancy_core.tenant import Tenant

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
    breakers: tuple[Breaker, ...] = (),
    **options: Any,
) -> AsyncEngine:
    """Make an engine whose connections count towards the process's ceiling.

    Args:
        url: Of the database.
        config: Gives the pool settings and ``database_echo``.
        budget: The ceiling.
        control: Whether it serves the control plane.
        breakers: Of what has to answer when a connection is opened; see
            :mod:`tenancy_core.sql.breaker`.
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
            breakers=breakers,
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
    """Where sessions take the engine of a tenant from."""

    def lease(self, tenant: Tenant) -> Lease:
        """Return the engine of a tenant; release it after use."""
        ...


class SharedEngine:
    """One engine for all tenants: what tells them apart is in their transactions.

    Args:
        engine: The engine. No tenant then has more of its connections than its share.
        affine: Whether a session had better have a connection that its tenant had last, because
            the server then finds the plans of its statements.

    Attributes:
        engine: The engine.
    """

    __slots__ = ("engine",)

    def __init__(self, engine: AsyncEngine, *, affine: bool = False) -> None:
        self.engine = engine
        if isinstance(engine.pool, BudgetedPool):
            engine.pool.shared = True
            engine.pool.affine = affine

    def lease(self, tenant: Tenant) -> SharedEngine:  # noqa: ARG002 - as EngineSource
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
    __slots__ = ("engine", "unused", "users", "version")

    def __init__(self, engine: AsyncEngine, version: int) -> None:
        self.engine = engine
        self.users = 0
        self.unused = asyncio.Event()
        self.version = version


class EngineCache:
    """Engines by the name of the tenant's place, at most ``size`` of them while they are idle.

    The least recently used go first. An engine in use is never evicted: with more tenants at once
    than ``size`` the cache grows for as long as they are busy, and shrinks when they are done.
    Making an engine does no I/O and does not await, so a hundred first requests of one tenant make
    one engine.

    Args:
        make: Makes the engine of a tenant.
        size: The setting ``max_cached_engines``.
        renews: Whether a tenant whose record has changed gets a new engine. The old one serves
            whoever uses it, and is closed after the last of them.
    """

    __slots__ = (
        "_barred",
        "_closed",
        "_entries",
        "_make",
        "_renews",
        "_retired",
        "_size",
    )

    def __init__(
        self, make: Callable[[Tenant], AsyncEngine], size: int, *, renews: bool = False
    ) -> None:
        self._make = make
        self._size = size
        self._renews = renews
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._retired: dict[_Entry, str] = {}
        self._barred: set[str] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def lease(self, tenant: Tenant) -> EngineLease:
        """Return the engine of a tenant, making it if need be; release it after use.

        Raises:
            BackendUnavailable: The cache is closed, or the tenant's place is barred.
        """
        if self._closed:
            raise BackendUnavailable("The database engines are closed.")
        name = tenant.placement.name
        if name in self._barred:
            raise BackendUnavailable("The database of this tenant is being removed.")
        entry = self._entries.get(name)
        if entry is not None and self._renews and entry.version < tenant.version:
            self._retired[self._entries.pop(name)] = name
            entry = None
        if entry is None:
            entry = self._entries[name] = _Entry(self._make(tenant), tenant.version)
        else:
            self._entries.move_to_end(name)
            entry.unused.clear()
        entry.users += 1
        return EngineLease(self, entry)

    async def renew(self, name: str) -> None:
        """Give whoever comes next a new engine; the old one serves whoever uses it."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._retired[entry] = name
            await self.shrink()

    async def shrink(self) -> None:
        """Dispose of engines that nobody uses: retired ones, and the oldest beyond ``size``."""
        for entry in [entry for entry in self._retired if not entry.users]:
            # Another task may be at it already.
            if self._retired.pop(entry, None) is not None:
                await settle(entry.engine.dispose())
        while len(self._entries) > self._size:
            name = next((name for name, entry in self._entries.items() if not entry.users), None)
            if name is None:
                return
            await settle(self._entries.pop(name).engine.dispose())

    @asynccontextmanager
    async def barred(self, name: str, timeout: float) -> AsyncGenerator[None, None]:  # noqa: ASYNC109 - its caller's setting
        """Keep everybody from a place for a block; it begins when no connection is open any more.

        Args:
            name: Of the place; there need not be an engine.
            timeout: Seconds to wait for those who use it.

        Raises:
            BackendUnavailable: It was still in use then, or is barred by somebody else.
        """
        if name in self._barred:
            raise BackendUnavailable("The database of this tenant is being removed.")
        self._barred.add(name)
        try:
            for old in [old for old, place in self._retired.items() if place == name]:
                await self._until_unused(old, timeout)
                if self._retired.pop(old, None) is not None:
                    await close_engine(old.engine)
            entry = self._entries.get(name)
            if entry is not None:
                await self._until_unused(entry, timeout)
                self._entries.pop(name, None)
                await close_engine(entry.engine)
            yield
        finally:
            self._barred.discard(name)

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
        if self._entries or self._retired:
            await settle(self._dispose_of_all())

    async def _dispose_of_all(self) -> None:
        while self._entries or self._retired:
            if self._entries:
                name, entry = self._entries.popitem()
            else:
                entry, name = self._retired.popitem()
            try:
                await close_engine(entry.engine)
            except BackendUnavailable:
                _log.warning("a connection to the database %s was not closed in time", name)
