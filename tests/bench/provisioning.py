"""Times making tenants' places against the bare statements, interleaved: ``./dev bench``.

Each round makes one place of every kind, in a random order, on one PostgreSQL: a schema of ten
tables by the strategy, by one bare script, with the rights that the application's role needs and
without them, and by ``metadata.create_all``; and a database by the strategy, and by a bare
``CREATE DATABASE … TEMPLATE`` of the same template. The figure is the ratio of the sums, with the
interval that holds 95 % of the ratios of rounds drawn again (bootstrap).

    python tests/bench/provisioning.py [--schemas 1000] [--databases 100]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg
from sqlalchemy import Column, ForeignKey, Identity, Integer, MetaData, Table, Text, text
from sqlalchemy.ext.asyncio import create_async_engine

from support.databases import KeptSecrets, database_isolation
from support.postgres import opened
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from tenancy_core.testing import make_tenant
from tenancy_postgres.ddl import creation_script
from tenancy_postgres.making import rights_on_coming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.services.databases import PostgresDatabase

TABLES = 10


def ten_tables() -> MetaData:
    """Return tables that refer to one another, with an index each."""
    metadata = MetaData()
    for number in range(TABLES):
        Table(
            f"things_{number}",
            metadata,
            Column("id", Integer, Identity(), primary_key=True),
            Column("name", Text, nullable=False, index=True),
            *([Column("other", ForeignKey(f"things_{number - 1}.id"))] if number else []),
        )
    return metadata


@contextlib.asynccontextmanager
async def bare(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection of the driver."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def schemas(database: PostgresDatabase, count: int) -> AsyncIterator[dict[str, Any]]:
    """Open the three ways to a schema; each takes the number of the round."""
    metadata = ten_tables()
    tenants = [make_tenant(f"tenant-{number}", isolation="schema") for number in range(count + 1)]
    script = creation_script(metadata, metadata.sorted_tables)
    engine = create_async_engine(database.control_url)
    # A connection each: a server process hears what the others have changed in the catalogue when
    # it is asked for something, and one that is asked twice in a round has less to hear.
    async with (
        opened(database, metadata=metadata) as isolation,
        bare(database.control_url) as raw,
        bare(database.control_url) as another,
    ):

        async def by_strategy(number: int) -> None:
            await isolation.provision(tenants[number])

        async def by_script(number: int) -> None:
            await raw.execute(
                f"CREATE SCHEMA bare_{number};SET LOCAL search_path=bare_{number};{script}"
            )

        async def by_script_with_rights(number: int) -> None:
            rights = ";".join(rights_on_coming(f"able_{number}", database.app))
            await another.execute(
                f"CREATE SCHEMA able_{number};{rights};SET LOCAL search_path=able_{number};{script}"
            )

        async def by_create_all(number: int) -> None:
            async with engine.begin() as connection:
                await connection.execute(text(f"CREATE SCHEMA made_{number}"))
                await connection.execute(text(f"SET LOCAL search_path = made_{number}"))
                await connection.run_sync(metadata.create_all)

        yield {
            "strategy": by_strategy,
            "script": by_script_with_rights,
            "script without rights": by_script,
            "create_all": by_create_all,
        }
    await engine.dispose()


@contextlib.asynccontextmanager
async def databases(database: PostgresDatabase, count: int) -> AsyncIterator[dict[str, Any]]:
    """Open the two ways to a database, of tenants that are recorded already."""
    secrets = KeptSecrets()
    tenants = [make_tenant(f"tenant-{number}", isolation="database") for number in range(count + 1)]
    for tenant in tenants:
        await secrets.record(tenant.id)
    async with (
        database_isolation(database, ten_tables(), secrets=secrets) as isolation,
        bare(database.control_url) as raw,
    ):
        await isolation.provision(make_tenant("first", isolation="database"))
        template = await database.fetchval(
            "SELECT datname FROM pg_database WHERE datname LIKE 'tenancy_template_%'"
            " AND pg_catalog.pg_get_userbyid(datdba) = $1",
            database.control,
        )

        async def by_strategy(number: int) -> None:
            await isolation.provision(tenants[number])

        async def by_statement(number: int) -> None:
            await raw.execute(f"CREATE DATABASE bare_{number} TEMPLATE {template} STRATEGY wal_log")

        yield {"strategy": by_strategy, "statement": by_statement}


async def rounds(
    ways: dict[str, Callable[[int], Awaitable[None]]], count: int, what: str
) -> dict[str, list[float]]:
    """Return the seconds of each round, for each way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count + 1):
        order = list(ways)
        random.shuffle(order)
        for name in order:
            began = perf_counter()
            await ways[name](number)
            # The first one fills caches.
            if number:
                taken[name].append(perf_counter() - began)
        if sys.stderr.isatty():
            print(f"\r{what} {number} of {count}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return taken


def ratio_of(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return the lower end, the ratio of the sums and the upper end."""
    dice = random.Random(0)
    numbers = range(len(ours))
    drawn = []
    for _ in range(1000):
        again = dice.choices(numbers, k=len(ours))
        drawn.append(sum(ours[n] for n in again) / sum(theirs[n] for n in again))
    drawn.sort()
    return drawn[25], sum(ours) / sum(theirs), drawn[-26]


async def measure(options: Any) -> dict[str, Any]:
    """Make everything."""
    figures: dict[str, Any] = {}
    with Postgres(config={"max_locks_per_transaction": 256}) as server:
        with fresh_database(server) as place:
            async with schemas(place, options.schemas) as ways:
                taken = await rounds(ways, options.schemas, "schema")
        ours = taken["strategy"]
        figures["schema_ms"] = sum(ours) / len(ours) * 1000
        figures["schema to script"] = ratio_of(ours, taken["script"])
        figures["schema to script without rights"] = ratio_of(ours, taken["script without rights"])
        figures["schema to create_all"] = ratio_of(ours, taken["create_all"])
    # Another server: what the first one forgets of a thousand schemas it has to look through still.
    with Postgres() as server, fresh_database(server, createrole=True, createdb=True) as place:
        async with databases(place, options.databases) as ways:
            taken = await rounds(ways, options.databases, "database")
    ours = taken["strategy"]
    figures["database_ms"] = sum(ours) / len(ours) * 1000
    figures["database to statement"] = ratio_of(ours, taken["statement"])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--databases", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    if options.json:
        print(json.dumps({"python": platform.python_version(), **figures}))
        return
    print(
        f"{options.schemas} schemas of {TABLES} tables, {options.databases} databases · "
        f"Python {platform.python_version()}"
    )
    for name, figure in figures.items():
        if isinstance(figure, tuple):
            print(f"  {name:32} {figure[1]:6.3f}  [{figure[0]:.3f} – {figure[2]:.3f}]")
        else:
            print(f"  {name:32} {figure:6.1f}")


if __name__ == "__main__":
    main()
