"""Connections besides those of tenants' sessions: the tenant store's, and whose tenants' places."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenancy_core.sql.postgres import url_of
from tenancy_postgres.administering import unavailable_in_words
from tenancy_postgres.checks.limits import limits_of
from tenancy_postgres.invalidation.bus import PostgresBus
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["Link", "Links", "look_besides"]


@dataclass(frozen=True, slots=True)
class Link:
    """What a process opens with one setting, or with several that have something in common.

    Attributes:
        settings: The variables that say where it leads to.
        most: Connections of one process.
        role: That logs in.
        place: As in :class:`~tenancy_postgres.server.ServerFacts`.
        limits: Of server, database and role.
    """

    settings: str
    most: int
    role: str
    place: str
    limits: Row[Any]


class Links:
    """All of them; of what tenants' sessions use as well others have told.

    Attributes:
        found: Each by itself.
    """

    def __init__(self) -> None:
        self.found: list[Link] = []
        self._servers: set[str] = set()
        self._places: set[str] = set()
        self._roles: set[tuple[str, str]] = set()

    def leave_out(self, place: str) -> None:
        """Say nothing of a server, and of a database there."""
        self._places.add(place)
        self._servers.add(server_of(place))

    def leave_out_role(self, place: str, role: str) -> None:
        """Say nothing of a role on a server."""
        self._roles.add((server_of(place), role))

    def by_server(self) -> Iterator[Link]:
        """Yield them by server."""
        return self._together(lambda link: server_of(link.place), self._servers)

    def by_database(self) -> Iterator[Link]:
        """Yield them by database."""
        return self._together(lambda link: link.place, self._places)

    def by_role(self) -> Iterator[Link]:
        """Yield them by role."""
        return self._together(lambda link: (server_of(link.place), link.role), self._roles)

    def _together(self, key: Callable[[Link], Hashable], but: set[Any]) -> Iterator[Link]:
        groups: dict[Hashable, list[Link]] = defaultdict(list)
        for link in self.found:
            if key(link) not in but:
                groups[key(link)].append(link)
        for group in groups.values():
            settings = " and ".join(dict.fromkeys(link.settings for link in group))
            most = sum(link.most for link in group)
            yield Link(settings, most, group[0].role, group[0].place, group[0].limits)


def server_of(place: str) -> str:
    """Return the part of a place that two databases of a server have in common."""
    return place.partition(" ")[2]


async def look_besides(links: Links, tenancy: Any, strategies: Strategies) -> None:  # noqa: ANN401 - as Check says
    """Look at them. Those of a pooler are the pooler's own matter.

    Args:
        links: Where they are added.
        tenancy: The open ``Tenancy``.
        strategies: Its own.

    Raises:
        BackendUnavailable: A database cannot be used now.
    """
    config = tenancy.config
    most = config.database_pool_size + config.database_max_overflow
    for isolation in strategies.shared:
        async with isolation.administering() as connection:
            await _add(links, connection, isolation.admin_setting, most)
    for database in strategies.database:
        for server in database.servers.values():
            async with server.administering() as connection:
                await _add(links, connection, server.address.admin_setting, most)
    engine: AsyncEngine | None = getattr(tenancy.parts.store, "engine", None)
    if engine is None or engine.dialect.name != "postgresql":
        return
    # Over a connection that the store has: a role at its limit would be refused another one.
    with unavailable_in_words():
        async with engine.begin() as connection:
            await _add(links, connection, config.control_setting, most)
            await _add_listener(links, connection, tenancy.parts.bus)


async def _add(links: Links, connection: AsyncConnection, setting: str, most: int) -> None:
    facts = await facts_of(connection)
    if not facts.pooled:
        limits = await limits_of(connection, facts.login)
        links.found.append(Link(setting, most, facts.login, facts.place, limits))


async def _add_listener(links: Links, connection: AsyncConnection, bus: object) -> None:
    """Add the one connection that listens, always in the database of the tenant store."""
    if not isinstance(bus, PostgresBus) or bus.deaf:
        return
    setting, text = bus.place
    role = url_of(text, setting).username
    if role:
        place = (await facts_of(connection)).place
        links.found.append(Link(setting, 1, role, place, await limits_of(connection, role)))
