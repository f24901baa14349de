"""Whether the server has room for all connections that processes may open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core.sql.postgres import is_pooled
from tenancy_postgres.checks.besides import Links, look_besides
from tenancy_postgres.checks.limits import (
    beyond_database,
    beyond_pooler,
    beyond_role,
    beyond_server,
    limits_of,
    need_of,
)
from tenancy_postgres.checks.sessions import sessions_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container, Iterator

    from sqlalchemy import Row

    from tenancy_core.contract import Finding
    from tenancy_postgres.checks.limits import Need
    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["judge"]


async def judge(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield where processes times ceiling is more than the server, or a role, may have."""
    need, besides, pooled = need_of(tenancy), Links(), set[str]()
    async for setting, opens in sessions_of(tenancy, strategies):
        async with opens() as connection:
            if await is_pooled(connection):
                pooled.add(setting)
                yield beyond_pooler(need, setting)
    async for finding in _of_shared(need, strategies, pooled, besides):
        yield finding
    async for finding in _of_servers(need, strategies, pooled, besides):
        yield finding
    await look_besides(besides, tenancy, strategies)
    for finding in _judge_besides(need, besides):
        yield finding


async def _of_shared(
    need: Need, strategies: Strategies, pooled: Container[str], besides: Links
) -> AsyncIterator[Finding]:
    for isolation in strategies.shared:
        facts = isolation.tenants
        besides.leave_out(facts.place)
        if "TENANCY_DATABASE_URL" in pooled:
            continue
        besides.leave_out_role(facts.place, facts.role)
        async with isolation.administering() as connection:
            limits = await limits_of(connection, facts.role)
        for finding in _judge(need, limits, "this server", facts.role):
            yield finding


async def _of_servers(
    need: Need, strategies: Strategies, pooled: Container[str], besides: Links
) -> AsyncIterator[Finding]:
    for database in strategies.database:
        for alias, server in database.servers.items():
            place = (await server.facts()).place
            besides.leave_out(place)
            if server.address.setting in pooled:
                continue
            name = None if server.address.own else server.address.url.username
            if name is not None:
                besides.leave_out_role(place, name)
            async with server.administering() as connection:
                limits = await limits_of(connection, name)
            for finding in _judge(need, limits, f"the server {alias!r}", name):
                yield finding


def _judge(need: Need, limits: Row[Any], where: str, role: str | None) -> Iterator[Finding]:
    yield from beyond_server(need, limits, where)
    yield from beyond_database(need, limits)
    if role is not None:
        yield from beyond_role(need, limits, role)


def _judge_besides(need: Need, besides: Links) -> Iterator[Finding]:
    for links in besides.by_server():
        where = f"the server of {links.settings}"
        yield from beyond_server(need.at_most(links.most), links.limits, where)
    for links in besides.by_database():
        yield from beyond_database(need.at_most(links.most), links.limits)
    for links in besides.by_role():
        few = need.at_most(links.most)
        yield from beyond_role(few, links.limits, links.role, links.settings)
