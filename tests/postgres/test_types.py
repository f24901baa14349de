"""Statements that are kept prepared, where tenants' types differ."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import Enum, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.postgres import Base as PlainBase
from support.postgres import Note, opened, provisioned
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.round_trips import RoundTripCounter

pytestmark = pytest.mark.anyio


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Base(DeclarativeBase):
    pass


class Diary(Base):
    __tablename__ = "diary"

    id: Mapped[int] = mapped_column(primary_key=True)
    mood: Mapped[Mood] = mapped_column(Enum(Mood, name="mood"))


async def take_turns(isolation: Any, tenants: list[Any], rounds: int) -> int:
    """Write and read as tenants in turn; return how often what was read was right."""
    found = 0
    for number in range(rounds):
        tenant = tenants[number % len(tenants)]
        mood = (Mood.GOOD, Mood.BAD)[number % 2]
        async with isolation.session(tenant) as session:
            await session.execute(insert(Diary).values(mood=mood))
            moods = [row.mood for row in await session.scalars(select(Diary))]
            # Each tenant has its own mood, and no row of the other's.
            found += set(moods) == {mood}
    return found


@pytest.mark.parametrize("mode", ["search_path", "qualified"])
async def test_sixty_requests_in_turn_of_two_tenants_with_enums_of_their_own(
    postgres_database: PostgresDatabase,
    round_trip_counter: Callable[..., RoundTripCounter],
    mode: str,
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    async with opened(
        postgres_database,
        metadata=Base.metadata,
        url=counter.url,
        settings={"schema_mode": mode},
    ) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        await take_turns(isolation, tenants, 4)
        counter.reset()
        assert await take_turns(isolation, tenants, 60) == 60
        # BEGIN, INSERT, SELECT, COMMIT.
        assert counter.round_trips == 60 * 4, counter.counts


@pytest.mark.parametrize(("prepared", "kept"), [("auto", 0), ("on", 100)])
@pytest.mark.parametrize("mode", ["search_path", "qualified"])
async def test_enums_of_their_own_through_a_pooler(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    mode: str,
    prepared: str,
    kept: int,
) -> None:
    bouncer = pgbouncer(default_pool_size=1, max_prepared_statements=kept)
    url = postgres_database.url(postgres_database.app, via=bouncer)
    settings = {"schema_mode": mode, "prepared_statements": prepared}
    async with opened(
        postgres_database, metadata=Base.metadata, url=url, settings=settings
    ) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        assert await take_turns(isolation, tenants, 60) == 60
        # A server connection that has not seen any of the statements.
        console = await asyncpg.connect(bouncer.url(database="pgbouncer", driver="postgresql"))
        await console.execute("RECONNECT")
        await console.close()
        assert await take_turns(isolation, tenants, 60) == 60


async def half_migrate(database: PostgresDatabase, tenant: Any) -> None:
    """Change the type of a column of one tenant, as a migration that is half-way has."""
    await database.admin(
        f'ALTER TABLE "{tenant.placement.name}".notes ALTER COLUMN text TYPE varchar(100)'
    )


async def read_in_turn(isolation: Any, tenants: list[Any], rounds: int) -> int:
    failed = 0
    for number in range(rounds):
        try:
            async with isolation.session(tenants[number % 2]) as session:
                await session.execute(select(Note))
        except BackendUnavailable:
            failed += 1
    return failed


async def test_half_a_migration_with_statements_that_carry_the_schema(
    postgres_database: PostgresDatabase,
) -> None:
    settings = {"statement_tag": "always"}
    async with opened(postgres_database, settings=settings) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        await half_migrate(postgres_database, tenants[1])
        assert await read_in_turn(isolation, tenants, 60) == 0


async def test_half_a_migration_is_noticed_and_cured(postgres_database: PostgresDatabase) -> None:
    async with opened(postgres_database, metadata=PlainBase.metadata) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        assert await read_in_turn(isolation, tenants, 6) == 0
        await half_migrate(postgres_database, tenants[1])
        # Who meets it first is told to try again; from then on the tenant has its own statements.
        assert await read_in_turn(isolation, tenants, 60) <= 2
        assert await read_in_turn(isolation, tenants, 60) == 0


async def test_a_tenant_whose_tables_are_changed_under_a_running_process(
    postgres_database: PostgresDatabase,
) -> None:
    settings = {"statement_tag": "always"}
    async with opened(postgres_database, settings=settings) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        assert await read_in_turn(isolation, tenants, 6) == 0
        await half_migrate(postgres_database, tenants[1])
        assert await read_in_turn(isolation, tenants, 60) <= 1
