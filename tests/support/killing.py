"""Runs that are cut at every message, and what is left of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenancy_core.errors import TenancyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from support.services.cutting import Cutter, Moment
    from support.services.databases import PostgresDatabase

FULL = bool(os.environ.get("TENANCY_TEST_FULL"))

CHANGING = ("ALTER", "COMMIT", "CREATE", "DROP", "GRANT", "REVOKE", "SET LOCAL lock_timeout")
"""What statements begin with that change something, or hold something."""
LASTING = ("CREATE DATABASE", "DROP DATABASE")
"""What the server is at for so long that the next process comes meanwhile."""
MOMENTS: tuple[Moment, ...] = ("before", "answered", "delivered")


@dataclass(frozen=True)
class Cut:
    """Where a run is cut."""

    cutter: Cutter
    number: int
    moment: Moment
    words: tuple[str, ...]

    async def run(self, work: Awaitable[Any], *, whole: bool = True) -> bool:
        """Do something until it is cut; whether it was. All that it may raise is tenancy's."""
        self.cutter.cut_at(self.number, self.moment, whole=whole, words=self.words)
        try:
            await work
        except* TenancyError:
            assert self.cutter.fired, "nothing was cut"
        fired = self.cutter.fired
        self.cutter.carry()
        return fired

    def __str__(self) -> str:
        """Return where it was, for the log of a failed test."""
        return f"{self.moment} #{self.number}: {self.cutter.said[-3:]}"


class Sweep:
    """Every cut, until the run is over before it is cut.

    Args:
        cutter: What the runs go through.
        words: What the messages begin with at which they are cut, unless all are tried.
        moments: When, unless all are tried.
        everything: Whether with ``TENANCY_TEST_FULL`` every message is tried.
    """

    def __init__(
        self,
        cutter: Cutter,
        words: tuple[str, ...] = CHANGING,
        moments: tuple[Moment, ...] = MOMENTS,
        *,
        everything: bool = True,
    ) -> None:
        self._cutter = cutter
        self._everything = FULL and everything
        self._words = () if self._everything else words
        self._moments = MOMENTS if FULL else moments
        self.fired = False
        self.cuts = 0

    def __iter__(self) -> Iterator[Cut]:
        for moment in self._moments:
            words = self._words
            if moment == "delivered" and not self._everything:
                words = LASTING
            number, self.fired = 0, True
            while self.fired:
                self.fired = False
                yield Cut(self._cutter, number, moment, words)
                number += 1
                self.cuts += self.fired

    def note(self, *fired: bool) -> None:
        """Say of a round's runs whether they were cut."""
        self.fired = any(fired)


MADE = """
    SELECT datname FROM pg_catalog.pg_database
     WHERE datname LIKE 'tenancy\\_template\\_%' AND pg_catalog.pg_get_userbyid(datdba) = $1
"""


async def remove_shared(database: PostgresDatabase) -> None:
    """Take away what is made once for all tenants' databases."""
    made = await database.fetch(MADE, database.control)
    drops = [f'DROP DATABASE "{name}" WITH (FORCE)' for (name,) in made]
    await database.admin(*drops, f'DROP ROLE IF EXISTS "{database.control}_tenants"')
