"""Threats C1 and C5 under ``schema``: killed at any message, a second run ends well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from support.killing import Cut, Sweep
from support.postgres import Base, Note, opened
from support.services.cutting import Cutter
from support.services.databases import fresh_database
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenant

pytestmark = [pytest.mark.anyio, pytest.mark.storm]

PLACES = """
    SELECT nspname::text, nspacl::text, pg_catalog.obj_description(oid, 'pg_namespace'),
           (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = n.oid)
      FROM pg_catalog.pg_namespace AS n WHERE nspname LIKE 'tenant\\_%'
"""
ROLES = """
    SELECT rolname::text, m.member::regrole::text
      FROM pg_catalog.pg_roles AS r LEFT JOIN pg_catalog.pg_auth_members AS m ON m.roleid = r.oid
     WHERE rolname = ANY ($1::text[])
"""
WORDS = ("ALTER", "BEGIN", "COMMIT", "CREATE", "DROP", "GRANT", "SET LOCAL")


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    with fresh_database(postgres_server, createrole=True) as database:
        yield database


@pytest.fixture
def cutter(database: PostgresDatabase) -> Iterator[Cutter]:
    with Cutter(database.control_url) as cutter:
        yield cutter


async def made(database: PostgresDatabase, *tenants: Tenant) -> list[Any]:
    names = [tenant.placement.name for tenant in tenants]
    rows = await database.fetch(PLACES) + await database.fetch(ROLES, names)
    return sorted(rows, key=str)


@pytest.mark.parametrize("roles", [False, True], ids=["one-role", "roles"])
async def test_C1_C5_a_schema_killed_at_any_message(
    database: PostgresDatabase, cutter: Cutter, roles: bool
) -> None:
    how: dict[str, Any] = {"metadata": Base.metadata, "settings": {"schema_roles": roles}}
    acme, beta = (make_tenant(name, isolation="schema") for name in ("acme", "beta"))

    async def killed(cut: Cut, work: str) -> bool:
        url = cutter.through(database.control_url)

        async def run() -> None:
            async with opened(database, control_database_url=url, **how) as isolation:
                await getattr(isolation, work)(acme)

        return await cut.run(run())

    async with opened(database, **how) as isolation:
        await isolation.provision(beta)
        async with isolation.session(beta) as session:
            session.add(Note(text="beta's"))
        without = await made(database, acme, beta)
        await isolation.provision(acme)
        both = await made(database, acme, beta)
        await isolation.destroy(acme)
        sweep = Sweep(cutter, WORDS)
        for cut in sweep:
            fired = await killed(cut, "provision")
            await isolation.provision(acme)
            assert await isolation.exists(acme)
            assert await made(database, acme, beta) == both, cut
            async with isolation.session(acme) as session:
                session.add(Note(text="mine"))
            async with isolation.session(acme) as session:
                assert (await session.scalars(select(Note.text))).all() == ["mine"]
            # There already: it is completed.
            again = await killed(cut, "provision")
            await isolation.provision(acme)
            assert await made(database, acme, beta) == both, cut
            sweep.note(fired, again, await killed(cut, "destroy"))
            await isolation.destroy(acme)
            assert not await isolation.exists(acme)
            assert await made(database, acme, beta) == without, cut
            async with isolation.session(beta) as session:
                assert (await session.scalars(select(Note.text))).all() == ["beta's"]
        assert sweep.cuts >= 10
