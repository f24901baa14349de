"""Counts what many tenants with a database each cost a process: ``./dev bench``.

* *cold*: round trips and wall time of the first request of each of N tenants, and what the process
  grew by for each that stays active, with an engine and a connection open;
* *ceiling*: the same tenants once more, rotating, with far fewer connections allowed: the most that
  the server saw at once;
* *long tail*: 10,000 tenants, 50 of them active at a time: connections, engines and memory at the
  end. Every name leads to one database here; 10,000 of them take 70 GB of disk.

    python tests/bench/databases.py [--tenants 500] [--tail 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import random
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import make_url, select

from support.databases import KeptSecrets, database_isolation
from support.postgres import Base, Note
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from support.services.round_trips import RoundTripCounter
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant

STATEMENTS = 20
CEILING = 60
ACTIVE = 50


def resident() -> int:
    """Return the memory of this process in kB."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("Linux only.")


def statements() -> list[Any]:
    """Return statements that are compiled and prepared apart from one another."""
    return [
        select(Note.text).where(Note.id > number).order_by(*[Note.id] * (1 + number % 4)).limit(1)
        if number % 2
        else select(Note.id).where(*[Note.id == number] * (1 + number // 2))
        for number in range(STATEMENTS)
    ]


async def request(isolation: Any, tenant: Tenant) -> None:
    """Do what a first request does."""
    async with isolation.session(tenant) as session:
        await session.execute(select(Note.id))


async def work(isolation: Any, tenant: Tenant) -> None:
    """Do what makes a tenant active."""
    async with isolation.session(tenant) as session:
        for statement in statements():
            await session.execute(statement)


def through(url: str, *, one_role: str = "{user}:{password}") -> str:
    """Return the template that leads through a proxy."""
    parsed = make_url(url)
    return f"postgresql+asyncpg://{one_role}@{parsed.host}:{parsed.port}/{{database}}"


async def backends(database: PostgresDatabase, role: str = r"tenant\_%") -> int:
    """Return how many connections tenants have on the server."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE $1"
    return int(await database.fetchval(query, role))


def lead_to(server: Any, database: str) -> None:
    """Have every tenant's connection lead to one database."""
    open_ = server.open
    # The class has no place for a function of an object.
    type(server).open = lambda _self, _name, password: open_(database, password)


async def cold(database: PostgresDatabase, tenants: list[Tenant], keys: Any) -> dict[str, Any]:
    """Measure first requests, and what stays."""
    options = {"max_database_connections": len(tenants) + 20, "max_cached_engines": len(tenants)}
    figures: dict[str, Any] = {}
    with RoundTripCounter(database.app_url) as counter:
        async with database_isolation(
            database,
            Base.metadata,
            secrets=keys,
            database_url_template=through(counter.url),
            **options,
        ) as isolation:
            await isolation.provision(tenants[0])
            await work(isolation, tenants[0])
            for number, tenant in enumerate(tenants[1:], 1):
                await isolation.provision(tenant)
                told(f"database {number} of {len(tenants)}")
            counter.reset()
            trips, taken = [], []
            for tenant in tenants[1:]:
                before, began = counter.round_trips, perf_counter()
                await request(isolation, tenant)
                taken.append((perf_counter() - began) * 1000)
                trips.append(counter.round_trips - before)
                # What the counter writes down is not the library's.
                counter.reset()
            figures["cold round trips, most"] = max(trips)
            figures["cold ms, median"] = statistics.median(taken)
    async with database_isolation(database, Base.metadata, secrets=keys, **options) as isolation:
        await work(isolation, tenants[0])
        before = resident()
        for tenant in tenants[1:]:
            await work(isolation, tenant)
        figures["kB for each active tenant"] = (resident() - before) / (len(tenants) - 1)
        figures["connections of active tenants"] = await backends(database)
    return figures


async def ceiling(database: PostgresDatabase, tenants: list[Tenant], keys: Any) -> dict[str, Any]:
    """Rotate through all of them within a ceiling."""
    most = 0
    async with database_isolation(
        database, Base.metadata, secrets=keys, max_database_connections=CEILING
    ) as isolation:
        dice = random.Random(0)

        async def one() -> None:
            for _ in range(len(tenants) // 10):
                await request(isolation, dice.choice(tenants))

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await backends(database))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one() for _ in range(CEILING)))
        watching.cancel()
        engines = len(isolation._engines)
    return {f"most connections of {CEILING} allowed": most, "engines kept": engines}


async def long_tail(database: PostgresDatabase, count: int) -> dict[str, Any]:
    """Rotate through very many tenants, a few of them at a time."""
    tenants = [make_tenant(f"tail-{number}", isolation="database") for number in range(count)]
    async with database.connection(database.owner) as owner:
        await owner.execute("CREATE TABLE notes (id int, text text)")
        await owner.execute(f"GRANT SELECT ON notes TO {database.app}")
        await owner.execute(f"GRANT USAGE ON SCHEMA public TO {database.app}")
    url = make_url(database.app_url)
    text = url.set(database="PLACE").render_as_string(hide_password=False)
    most = 0
    async with database_isolation(
        database,
        None,
        database_url_template=text.replace("/PLACE", "/{database}"),
        max_database_connections=CEILING,
    ) as isolation:
        server: Any = isolation._servers["default"]
        lead_to(server, database.name)
        await asyncio.gather(*(request(isolation, tenant) for tenant in tenants[:ACTIVE]))
        before = resident()
        for start in range(0, count, ACTIVE):
            active = tenants[start : start + ACTIVE]
            for _ in range(2):
                await asyncio.gather(*(request(isolation, tenant) for tenant in active))
                most = max(most, await backends(database, database.app))
            told(f"tenants {start} of {count}")
        grown = resident() - before
        engines = len(isolation._engines)
    return {
        f"{count} tenants: most connections of {CEILING} allowed": most,
        f"{count} tenants: engines kept": engines,
        f"{count} tenants: grown by kB": grown,
    }


def told(what: str) -> None:
    """Say how far it is."""
    if sys.stderr.isatty():
        print(f"\r{what:40}", end="", file=sys.stderr)


async def measure(options: Any) -> dict[str, Any]:
    """Make the tenants and measure."""
    keys = KeptSecrets()
    config = {"max_connections": options.tenants + 60, "shared_buffers": "128MB"}
    with (
        Postgres(config=config) as server,
        fresh_database(server, createrole=True, createdb=True) as database,
    ):
        tenants = [
            make_tenant(f"tenant-{number}", isolation="database")
            for number in range(options.tenants)
        ]
        return {
            **await cold(database, tenants, keys),
            **await ceiling(database, tenants, keys),
            **await long_tail(database, options.tail),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tenants", type=int, default=500)
    parser.add_argument("--tail", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    if options.json:
        print(json.dumps({"python": platform.python_version(), **figures}))
        return
    print(f"{options.tenants} tenants with a database each · Python {platform.python_version()}")
    for name, figure in figures.items():
        print(f"  {name:55} {figure:9.1f}")


if __name__ == "__main__":
    main()
