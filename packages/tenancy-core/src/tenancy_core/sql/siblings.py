"""Engines of many databases on one server that share all but their connections.

What an engine learns of a server, and the statements that it has compiled, are the same for every
database there. Learnt once for each of them they cost 11 round trips and 540 kB more per tenant.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from tenancy_core.sql.pool import BudgetedPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from tenancy_core.sql.pool import PoolShare

__all__ = ["Acquaintance", "make_sibling"]


class Acquaintance:
    """Whether a server has been met: one connection at a time, until one has been opened.

    Args:
        learn: Called with the first connection, in a greenlet; returns whether connections have to
            be opened in another way from now on.
    """

    __slots__ = ("known", "learn", "turn")

    def __init__(self, learn: Callable[[ConnectionPoolEntry], bool]) -> None:
        self.known = False
        self.learn = learn
        self.turn = asyncio.Lock()


class _SiblingPool(BudgetedPool):
    """A pool whose first connection may be the first to its server."""

    def __init__(
        self,
        creator: Any,  # noqa: ANN401 - as SQLAlchemy
        share: PoolShare,
        *,
        server: Acquaintance | None = None,
        **options: Any,
    ) -> None:
        super().__init__(creator, share, **options)
        self._server = server

    def _create_connection(self) -> ConnectionPoolEntry:
        server = self._server
        if server is None or server.known:
            return super()._create_connection()
        # SQLAlchemy asks a server for its version on the first connection, and the second one
        # would not wait for the answer.
        await_only(server.turn.acquire())
        try:
            record = super()._create_connection()
            if not server.known:
                record = self._learn_of(server, record)
            return record
        finally:
            server.turn.release()

    def _learn_of(self, server: Acquaintance, record: ConnectionPoolEntry) -> ConnectionPoolEntry:
        try:
            replaces = server.learn(record)
        except BaseException:
            record.close()
            raise
        if replaces:
            record.close()
            record = super()._create_connection()
        server.known = True
        return record


class _Sibling(OptionEngine):
    """An engine with a pool of its own; its dialect, caches and listeners are another's."""

    def __init__(self, prototype: Engine, pool: Pool) -> None:
        super().__init__(prototype, {})
        self._own_pool = pool

    @property
    def pool(self) -> Pool:
        return self._own_pool

    @pool.setter
    def pool(self, pool: Pool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._own_pool = pool


def make_sibling(
    prototype: AsyncEngine,
    connect: Callable[[ConnectionPoolEntry], Any],
    share: PoolShare,
    server: Acquaintance,
) -> AsyncEngine:
    """Make an engine for another database on the same server.

    Args:
        prototype: An engine that :func:`~tenancy_core.sql.make_engine` made, with all its listeners
            and no connection. It must be there for as long as its siblings are.
        connect: Opens a connection of the dialect, in a greenlet.
        share: How its pool draws on the budget.
        server: The same one for all siblings.
    """
    engine = prototype.sync_engine
    pool: Any = engine.pool
    return AsyncEngine(
        _Sibling(
            engine,
            _SiblingPool(
                connect,
                share,
                server=server,
                recycle=pool._recycle,  # noqa: SLF001 - as Pool.recreate does
                echo=pool.echo,
                reset_on_return=pool._reset_on_return,  # noqa: SLF001 - as above
                _dispatch=pool.dispatch,
                dialect=engine.dialect,
            ),
        )
    )
