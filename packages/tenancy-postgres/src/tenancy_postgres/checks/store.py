"""Connections as the tenant store has them, and as whoever listens has them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tenancy_core.sql import close_engine, make_engine
from tenancy_core.sql.postgres import WITHOUT_PREPARED, connect_args, tell_flaws, url_of
from tenancy_postgres.administering import unavailable_in_words
from tenancy_postgres.invalidation.bus import PostgresBus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["listening_connection", "store_connection"]


@asynccontextmanager
async def store_connection(tenancy: Any) -> AsyncGenerator[AsyncConnection | None, None]:  # noqa: ANN401 - as Check says
    """Open a connection with the role of the tenant store; None where it is not on PostgreSQL.

    Raises:
        BackendUnavailable: The database cannot be used now.
    """
    config = tenancy.config
    if config.control_dialect != "postgresql" or getattr(tenancy.parts.store, "in_process", False):
        yield None
        return
    async with _connection(tenancy, config.control_url, config.control_setting) as connection:
        yield connection


@asynccontextmanager
async def listening_connection(
    tenancy: Any,  # noqa: ANN401 - as Check says
) -> AsyncGenerator[tuple[str, AsyncConnection] | None, None]:
    """Open a connection to where changes are heard, beside its setting; None if nobody listens.

    Raises:
        BackendUnavailable: The database cannot be used now.
    """
    bus = tenancy.parts.bus
    if not isinstance(bus, PostgresBus) or bus.deaf:
        yield None
        return
    setting, url = bus.place
    async with _connection(tenancy, url, setting) as connection:
        yield setting, connection


@asynccontextmanager
async def _connection(tenancy: Any, text: str, setting: str) -> AsyncGenerator[AsyncConnection]:  # noqa: ANN401 - as Check says
    config = tenancy.config
    url, arguments = connect_args(url_of(text, setting), setting, timeout=config.connect_timeout)
    engine = make_engine(
        url,
        config,
        tenancy.parts.connections,
        control=True,
        connect_args={**WITHOUT_PREPARED, **arguments},
        pool_pre_ping=False,
    )
    tell_flaws(engine, setting)
    try:
        with unavailable_in_words():
            async with engine.connect() as connection:
                yield connection
    finally:
        await close_engine(engine)
