"""What a database per tenant costs: round trips, connections, engines. Counted, never timed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, select

from support.databases import database_isolation
from support.postgres import Base, Note, provisioned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from support.services.round_trips import RoundTripCounter
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = pytest.mark.anyio

NAMES = ("acme", "beta", "gamma", "delta")


@asynccontextmanager
async def counted(
    database: PostgresDatabase, counter: RoundTripCounter, **config: Any
) -> AsyncIterator[DatabaseIsolation]:
    """Tenants' sessions go through the counter; whoever makes databases does not."""
    url = make_url(counter.url)
    template = f"postgresql+asyncpg://{{user}}:{{password}}@{url.host}:{url.port}/{{database}}"
    async with database_isolation(
        database, Base.metadata, database_url_template=template, **config
    ) as isolation:
        yield isolation


async def read(isolation: DatabaseIsolation, tenant: Tenant) -> None:
    async with isolation.session(tenant) as session:
        await session.execute(select(Note.id))


async def test_a_cold_first_request_takes_five_round_trips_beside_the_login(
    database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(database.app_url)
    async with counted(database, counter) as isolation:
        first, second, third, _ = await provisioned(isolation, *NAMES)
        # SQLAlchemy meets the server once.
        await read(isolation, first)
        for tenant in (second, third):
            counter.reset()
            await read(isolation, tenant)
            assert counter.round_trips == 4, counter.counts
        counter.reset()
        for tenant in (first, second, third):
            await read(isolation, tenant)
        # As a plain session: BEGIN, SELECT, COMMIT.
        assert counter.round_trips == 9, counter.counts
