"""A connection as the tenant store has it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tenancy_core.sql import close_engine, make_engine
from tenancy_core.sql.postgres import WITHOUT_PREPARED, connect_args, tell_flaws, url_of
from tenancy_postgres.administering import unavailable_in_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["store_connection"]


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
    setting = config.control_setting
    url, arguments = connect_args(
        url_of(config.control_url, setting), setting, timeout=config.connect_timeout
    )
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
