"""Times a tenant's session against a plain one, interleaved, on a real PostgreSQL: ``./dev bench``.

Between client and server a relay in a process of its own delays every round trip. Each round times
every subject on the same work, one SELECT of a row in a session, tenants rotating, in a random
order. The figure is the median of the rounds' ratios to the plain session of the same round, with
the interval that holds 95 % of medians drawn from these rounds again (bootstrap).

    python tests/bench/sessions.py [--rounds 20] [--requests 400] [--tenants 200] [--delay 1.0]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import Identity, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.postgres import opened
from support.scoped import rls
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from tenancy_core.sql import TenantScoped
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from support.services.databases import PostgresDatabase

ROWS = 20

RELAY = """
import sys
sys.path.insert(0, sys.argv[1])
from support.services.round_trips import RoundTripCounter
relay = RoundTripCounter(sys.argv[2], protocol="any")
relay.round_trip_delay = float(sys.argv[3]) / 1000
print(relay.url, flush=True)
sys.stdin.read()
"""


class Plain(DeclarativeBase):
    pass


class PlainNote(Plain):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Scoped(DeclarativeBase):
    pass


class ScopedNote(TenantScoped, Scoped):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    text: Mapped[str]


@contextlib.contextmanager
def delayed(url: str, milliseconds: float) -> Iterator[str]:
    """Return a URL that leads to the same place, with a delay."""
    command = [sys.executable, "-c", RELAY, str(Path(__file__).parents[1]), url, str(milliseconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as relay:
        assert relay.stdout is not None
        yield relay.stdout.readline().strip()
        assert relay.stdin is not None
        relay.stdin.close()


async def fill(session: Any, model: type[Any]) -> None:
    session.add_all([model(id=number, text=f"line {number}") for number in range(ROWS)])


Subject = "Callable[[int], Awaitable[None]]"


@contextlib.asynccontextmanager
async def subjects(
    plain: PostgresDatabase, schemas: PostgresDatabase, rows: PostgresDatabase, options: Any
) -> AsyncIterator[dict[str, Any]]:
    """Open what is compared; each takes the number of the request."""
    async with contextlib.AsyncExitStack() as stack:

        def slow(url: str) -> str:
            return stack.enter_context(delayed(url, options.delay))

        engine = create_async_engine(slow(plain.owner_url), pool_size=1, max_overflow=0)
        async with engine.begin() as connection:
            await connection.run_sync(Plain.metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            await fill(session, PlainNote)
        stack.push_async_callback(engine.dispose)

        async def plainly(number: int) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(select(PlainNote.text).where(PlainNote.id == number % ROWS))

        found: dict[str, Callable[[int], Awaitable[None]]] = {"plain": plainly}
        common = {"database_pool_size": 1, "max_database_connections": 3}
        url = slow(schemas.app_url)
        for label, context, model, read_only in (
            ("schema", opened(schemas, metadata=Plain.metadata, url=url), PlainNote, False),
            (
                "rls",
                rls(rows, Scoped.metadata, database_url=slow(rows.app_url), **common),
                ScopedNote,
                False,
            ),
            (
                "qualified read",
                opened(
                    schemas,
                    metadata=Plain.metadata,
                    url=url,
                    settings={"schema_mode": "qualified"},
                ),
                PlainNote,
                True,
            ),
        ):
            isolation = await stack.enter_async_context(context)
            places = [
                make_tenant(f"tenant-{number}", isolation=isolation.name)
                for number in range(options.tenants)
            ]
            for tenant in places:
                await isolation.provision(tenant)
                async with isolation.session(tenant) as session:
                    await fill(session, model)
            found[label] = as_tenant(isolation, places, model, read_only=read_only)
        yield found


def as_tenant(isolation: Any, tenants: list[Any], model: Any, *, read_only: bool) -> Any:
    async def work(number: int) -> None:
        tenant = tenants[number % len(tenants)]
        async with isolation.session(tenant, read_only=read_only) as session:
            await session.execute(select(model.text).where(model.id == number % ROWS))

    return work


async def time_requests(work: Any, requests: int) -> float:
    """Return the milliseconds that a request takes."""
    began = perf_counter()
    for number in range(requests):
        await work(number)
    return (perf_counter() - began) / requests * 1000


def median_of(values: list[float]) -> tuple[float, float, float]:
    """Return the lower end, the median and the upper end."""
    dice = random.Random(0)
    drawn = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(2000))
    return drawn[50], statistics.median(values), drawn[-51]


async def measure(options: Any) -> dict[str, Any]:
    """Run all rounds."""
    with (
        Postgres() as server,
        fresh_database(server) as plain,
        fresh_database(server) as schemas,
        fresh_database(server) as rows,
    ):
        async with subjects(plain, schemas, rows, options) as compared:
            for work in compared.values():
                await time_requests(work, options.tenants)
            rounds: list[dict[str, float]] = []
            for number in range(options.rounds):
                order = list(compared)
                random.shuffle(order)
                rounds.append(
                    {name: await time_requests(compared[name], options.requests) for name in order}
                )
                if sys.stderr.isatty():
                    print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr)
            if sys.stderr.isatty():
                print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
            figures = {"plain_ms": median_of([one["plain"] for one in rounds])}
            for name in compared:
                if name != "plain":
                    ratios = [one[name] / one["plain"] for one in rounds]
                    figures[f"{name} to plain"] = median_of(ratios)
            return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--delay", type=float, default=1.0, help="ms per round trip")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    if options.json:
        print(
            json.dumps({"python": platform.python_version(), "rounds": options.rounds, **figures})
        )
        return
    print(
        f"one SELECT in a session, {options.tenants} tenants rotating, round trips delayed by "
        f"{options.delay:g} ms · Python {platform.python_version()}"
    )
    print(f"{options.rounds} interleaved rounds of {options.requests}, median [95 % interval]")
    for name, (low, median, high) in figures.items():
        print(f"  {name:23} {median:6.3f}  [{low:.3f} – {high:.3f}]")


if __name__ == "__main__":
    main()
