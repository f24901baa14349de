"""Times a tenant's requests alone and beside a greedy tenant, interleaved: ``./dev bench``.

One process serves both on a real PostgreSQL. The greedy tenant has 500 slow requests under way at
every moment, each of which sleeps in the server; the other runs short ones, some at a time. Each
round times the other one alone and beside it, in a random order. The figure is the median of the
rounds' ratios of throughput, with the interval that holds 95 % of medians drawn from these rounds
again (bootstrap). For comparison the same without a share (``database_tenant_share=1``).

    python tests/bench/fairness.py [--rounds 20] [--requests 300] [--greedy 500] [--sleep 1.0]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import select, text

from support.databases import KeptSecrets
from support.scoped import Base, Note, settings_for
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_postgres import DatabaseIsolation, PostgresSettings, RlsIsolation, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.services.databases import PostgresDatabase

AT_ONCE = 4
"""Requests of the other tenant."""


class Service:
    """A strategy with two tenants."""

    def __init__(self, isolation: Any, greedy: Any, other: Any, options: Any) -> None:
        self._isolation = isolation
        self._greedy = greedy
        self._other = other
        self._options = options

    async def _sleep(self) -> None:
        while True:
            async with self._isolation.session(self._greedy) as session:
                await session.execute(text(f"SELECT pg_sleep({self._options.sleep:f})"))

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Have the greedy tenant at it."""
        tasks = [asyncio.create_task(self._sleep()) for _ in range(self._options.greedy)]
        # Until those that came at once have drifted apart a little.
        await asyncio.sleep(self._options.sleep * 1.5)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def throughput(self, requests: int) -> float:
        """Return the other tenant's requests per second."""
        left = iter(range(requests))

        async def work() -> None:
            for _ in left:
                async with self._isolation.session(self._other) as session:
                    await session.scalars(select(Note.text))

        began = perf_counter()
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return requests / (perf_counter() - began)

    async def throughput_beside(self, requests: int) -> float:
        """Return the same while the greedy tenant is at it."""
        async with self.beside():
            return await self.throughput(requests)


@contextlib.asynccontextmanager
async def service(
    database: PostgresDatabase, kind: Any, options: Any, share: float
) -> AsyncIterator[Service]:
    """Open a strategy with the pool of the defaults, a third of its size."""
    config = settings_for(
        database,
        database_pool_size=20,
        database_max_overflow=0,
        max_database_connections=22,
        database_pool_timeout=600,
        database_tenant_share=share,
    )
    section = {"admin_url": database.owner_url} if kind is RlsIsolation else {}
    more = [KeptSecrets()] if kind is DatabaseIsolation else []
    made = kind(
        config,
        ConnectionBudget.from_config(config),
        PostgresSettings(**section),
        Base.metadata,
        *more,
    )
    async with made as isolation:
        tenants = [
            make_tenant(name, isolation=isolation.name)
            for name in (
                f"greedy-{share:g}".replace(".", "-"),
                f"other-{share:g}".replace(".", "-"),
            )
        ]
        for tenant in tenants:
            await isolation.provision(tenant)
        yield Service(isolation, *tenants, options)


def median_of(values: list[float]) -> tuple[float, float, float]:
    """Return the lower end, the median and the upper end."""
    dice = random.Random(0)
    drawn = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(2000))
    return drawn[50], statistics.median(values), drawn[-51]


async def measure(options: Any) -> dict[str, Any]:
    """Run all rounds."""
    figures: dict[str, Any] = {}
    with Postgres() as server:
        for kind in (SchemaIsolation, RlsIsolation, DatabaseIsolation):
            with fresh_database(server, createrole=True, createdb=True) as database:
                async with service(database, kind, options, 0.5) as served:
                    rounds = await compare(served, options, options.rounds)
                    figures[f"{kind.name} alone, requests/s"] = median_of([a for a, _ in rounds])
                    figures[f"{kind.name} beside to alone"] = median_of([b / a for a, b in rounds])
                async with service(database, kind, options, 1.0) as served:
                    # A few are enough, and each takes as long as the greedy one's queue.
                    few = argparse.Namespace(**{**vars(options), "requests": AT_ONCE * 2})
                    rounds = await compare(served, few, 3)
                    figures[f"{kind.name} without a share"] = median_of([b / a for a, b in rounds])
    return figures


async def compare(served: Service, options: Any, rounds: int) -> list[tuple[float, float]]:
    """Return the throughput alone and beside the greedy tenant, for each round."""
    await served.throughput(options.requests)
    found: list[tuple[float, float]] = []
    for number in range(rounds):
        ways: list[Callable[[int], Awaitable[float]]] = [
            served.throughput,
            served.throughput_beside,
        ]
        random.shuffle(ways)
        timed = {way.__name__: await way(options.requests) for way in ways}
        found.append((timed["throughput"], timed["throughput_beside"]))
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--greedy", type=int, default=500, help="slow requests at once")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    if options.json:
        print(
            json.dumps({"python": platform.python_version(), "rounds": options.rounds, **figures})
        )
        return
    print(
        f"one SELECT in a session, {AT_ONCE} at a time, beside {options.greedy} requests of "
        f"another tenant that sleep {options.sleep:g} s · Python {platform.python_version()}"
    )
    print(f"{options.rounds} interleaved rounds of {options.requests}, median [95 % interval]")
    for name, (low, median, high) in figures.items():
        print(f"  {name:27} {median:8.3f}  [{low:.3f} – {high:.3f}]")


if __name__ == "__main__":
    main()
