"""Times how long a change takes to be forgotten in another process, on a real PostgreSQL.

Two ``Tenancy`` objects on one event loop, each with its own connections. A tenant is suspended and
resumed in turns in one of them. *told* is from behind the commit, when the message is handed to the
bus, to when the other has forgotten the tenant; *change* is the whole call, and *publish* what the
bus adds to it. The poll comes once an hour. Each figure is the median of all changes, with the
interval that holds 95 % of medians drawn from them again (bootstrap).

    python tests/bench/invalidation.py [--changes 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.invalidation import connected
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from tenancy_core import Tenancy, TenancyConfig

HOUR = 3600.0
WARM_UP = 20


class Stopwatch:
    """A bus that notes when it is given a message, and for how long it takes it."""

    def __init__(self, bus: Any) -> None:
        self._publish = bus.publish
        self.began = 0.0
        self.took: list[float] = []

    async def publish(self, message: str, /) -> None:
        self.began = perf_counter()
        await self._publish(message)
        self.took.append(perf_counter() - self.began)


async def measure(options: Any) -> dict[str, tuple[float, float, float]]:
    """Make the changes."""
    with Postgres() as server, fresh_database(server) as database:
        config = TenancyConfig(
            database_url=database.app_url,
            control_database_url=database.control_url,
            invalidation_poll_seconds=HOUR,
        )
        async with Tenancy(config) as maker, Tenancy(config) as other:
            await maker.tenants.create("acme")
            await connected(other)
            forgotten = asyncio.Event()

            async def forget(_: object) -> None:
                forgotten.set()

            other.parts.directory.on_change(forget)
            bus: Any = maker.parts.bus
            watch = Stopwatch(bus)
            bus.publish = watch.publish
            told: list[float] = []
            changes: list[float] = []
            for number in range(options.changes + WARM_UP):
                forgotten.clear()
                began = perf_counter()
                waiting = asyncio.ensure_future(forgotten.wait())
                waiting.add_done_callback(lambda _: told.append(perf_counter() - watch.began))
                change = maker.tenants.resume if number % 2 else maker.tenants.suspend
                await change("acme")
                changes.append(perf_counter() - began)
                await waiting
                await asyncio.sleep(0)
    figures = {"told": told, "publish": watch.took, "change": changes}
    return {name: median_of(values[WARM_UP:]) for name, values in figures.items()}


def median_of(values: list[float]) -> tuple[float, float, float]:
    """Return the lower end, the median and the upper end, in milliseconds."""
    dice = random.Random(0)
    drawn = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(2000))
    return drawn[50] * 1000, statistics.median(values) * 1000, drawn[-51] * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    if options.json:
        print(
            json.dumps({"python": platform.python_version(), "changes": options.changes, **figures})
        )
        return
    print(f"{options.changes} changes · Python {platform.python_version()}")
    print("milliseconds, median [95 % interval]")
    for name, (low, median, high) in figures.items():
        print(f"  {name:10} {median:6.2f}  [{low:.2f} – {high:.2f}]")


if __name__ == "__main__":
    main()
