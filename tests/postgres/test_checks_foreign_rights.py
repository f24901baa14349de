"""The checklist on tenants with a schema and a role each: who gets at another's schema."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from support.checks import ERROR, WARNING, found, mend, shop, the_one
from support.hybrid import hybrid_database
from support.scoped import Note

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    """One whose control role may make roles."""
    with hybrid_database(postgres_server) as database:
        yield database


@pytest.fixture
async def tenancy(database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service with a schema and a role for each of two tenants, and a note in each."""
    async with shop(database, "schema", section={"schema_roles": True}) as opened:
        for name in ("acme", "beta"):
            await opened.tenants.create(name)
            async with opened.scope(name), opened.session() as session:
                session.add(Note(text=name))
        yield opened


@pytest.fixture
async def between(database: PostgresDatabase) -> AsyncIterator[str]:
    """A role that is nobody's."""
    name = f"{database.name}_between"
    await database.admin(f"CREATE ROLE {name} NOLOGIN")
    yield name
    await database.admin(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def places(tenancy: Tenancy) -> tuple[str, str]:
    """Return the names of the two schemas, which are those of their roles."""
    acme, beta = [await tenancy.tenants.get(name) for name in ("acme", "beta")]
    return acme.placement.name, beta.placement.name


async def read(tenancy: Tenancy, query: str) -> list[str]:
    async with tenancy.scope("acme"), tenancy.session() as session:
        return sorted(await session.scalars(text(query)))


async def refused(tenancy: Tenancy, query: str) -> bool:
    try:
        await read(tenancy, query)
    except ProgrammingError:
        return True
    return False


def of(place: str) -> str:
    return f'SELECT text FROM "{place}".notes'  # noqa: S608 - a name of ours


# -- rights ----------------------------------------------------------------------------------------


async def test_L1_tenants_with_a_role_each_have_no_finding(tenancy: Tenancy) -> None:
    assert await found(tenancy, "role") == await found(tenancy, "views") == []


async def test_L1_a_schema_that_everybody_may_read_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    assert await refused(tenancy, of(beta))
    await database.admin(
        f'GRANT USAGE ON SCHEMA "{beta}" TO PUBLIC',
        f'GRANT SELECT ON ALL TABLES IN SCHEMA "{beta}" TO PUBLIC',
    )
    assert await read(tenancy, of(beta)) == ["beta"]
    finding = await the_one(tenancy, "role", ERROR, "Everybody", beta)
    assert acme not in finding.message
    await mend(database, finding)
    assert await found(tenancy, "role") == []
    assert await refused(tenancy, of(beta))


@pytest.mark.parametrize(
    "right",
    [
        'USAGE ON SCHEMA "{beta}"',
        'SELECT ON "{beta}".notes',
        'SELECT (text) ON "{beta}".notes',
        'USAGE ON SEQUENCE "{beta}".serial',
    ],
)
async def test_L1_each_kind_of_right_of_another_tenant_is_found(
    tenancy: Tenancy, database: PostgresDatabase, right: str
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(f'CREATE SEQUENCE "{beta}".serial')
    await database.admin(f'GRANT {right.format(beta=beta)} TO "{acme}"')
    finding = await the_one(tenancy, "role", ERROR, repr(acme), f"of tenants: {beta}.")
    await mend(database, finding)
    assert await found(tenancy, "role") == []


async def test_L1_rights_of_a_role_that_a_tenant_is_a_member_of_are_found(
    tenancy: Tenancy, database: PostgresDatabase, between: str
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(
        f'GRANT USAGE ON SCHEMA "{beta}" TO {between}',
        f'GRANT SELECT ON "{beta}".notes TO {between}',
        f'GRANT {between} TO "{beta}"',
    )
    # A role for backups, say; and what a tenant's own role has besides.
    assert await found(tenancy, "role") == []
    await database.admin(f'GRANT {between} TO "{acme}"')
    assert await read(tenancy, of(beta)) == ["beta"]
    finding = await the_one(tenancy, "role", ERROR, repr(between), beta)
    await mend(database, finding)
    assert await found(tenancy, "role") == []
    assert await refused(tenancy, of(beta))


async def test_L1_a_schema_that_another_tenant_owns_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(f'ALTER SCHEMA "{beta}" OWNER TO "{acme}"')
    finding = await the_one(tenancy, "role", ERROR, repr(acme), "owns these schemas", beta)
    await mend(database, finding)
    assert await found(tenancy, "role") == []


async def test_L1_a_tenant_that_is_a_member_of_another_is_found(
    tenancy: Tenancy, database: PostgresDatabase, between: str
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(f'GRANT "{beta}" TO {between}', f'GRANT {between} TO "{acme}"')
    assert await read(tenancy, of(beta)) == ["beta"]
    await database.admin(
        f'CREATE VIEW "{beta}".texts AS {of(beta)}', f'GRANT SELECT ON "{beta}".texts TO "{beta}"'
    )
    assert await found(tenancy, "views") == []
    finding = await the_one(tenancy, "role", ERROR, f"{acme!r} of a tenant is a member", beta)
    await mend(database, finding)
    assert await found(tenancy, "role") == []
    assert await refused(tenancy, of(beta))


async def test_L1_where_all_schemas_have_one_role_its_rights_are_no_finding(
    database: PostgresDatabase,
) -> None:
    async with shop(database, "schema") as tenancy:
        await tenancy.tenants.create("acme")
        finding = await the_one(tenancy, "role", WARNING, "and not rights")
        assert "TENANCY_POSTGRES_SCHEMA_ROLES" in finding.remedy


# -- views -----------------------------------------------------------------------------------------


async def test_L8_a_view_of_another_tenants_tables_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    _, beta = await places(tenancy)
    query = "SELECT text FROM public.texts"
    await database.admin(
        f"CREATE VIEW public.texts AS {of(beta)}",
        "GRANT SELECT ON public.texts TO PUBLIC",
    )
    assert await refused(tenancy, query)
    assert await found(tenancy, "views") == []
    await database.admin("GRANT USAGE ON SCHEMA public TO PUBLIC")
    assert await read(tenancy, query) == ["beta"]
    finding = await the_one(
        tenancy, "views", ERROR, f"The view public.texts reads {beta}.notes with the rights"
    )
    await mend(database, finding)
    assert await found(tenancy, "views") == []
    assert await refused(tenancy, query)


async def test_L8_views_over_views_and_materialized_ones_are_found_under_schema(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    # In acme's own schema its role may read whatever is made there by whoever makes schemas.
    await database.admin(
        f'CREATE MATERIALIZED VIEW "{beta}".held AS {of(beta)}',
        f'CREATE VIEW "{beta}".inner_one AS SELECT text FROM "{beta}".held',  # noqa: S608 - ours
        f'CREATE VIEW "{acme}".texts AS SELECT text FROM "{beta}".inner_one',  # noqa: S608 - ours
        f'GRANT SELECT (text) ON "{acme}".texts TO "{acme}"',
        f'CREATE MATERIALIZED VIEW "{acme}".kept AS {of(beta)}',
        f'GRANT SELECT ON "{acme}".kept TO "{acme}"',
    )
    assert await read(tenancy, "SELECT text FROM texts") == ["beta"]
    assert await read(tenancy, "SELECT text FROM kept") == ["beta"]
    kept, texts = await found(tenancy, "views")
    assert f"materialized view {acme}.kept holds rows of {beta}.notes" in kept.message
    assert f"The view {acme}.texts reads" in texts.message
    assert f"{beta}.held" in texts.message
    await mend(database, kept, texts)
    assert await found(tenancy, "views") == []
    assert await refused(tenancy, "SELECT text FROM texts")


async def test_L8_a_tenants_view_of_its_own_tables_is_no_finding(
    tenancy: Tenancy, database: PostgresDatabase, between: str
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(
        f'CREATE VIEW "{acme}".texts AS {of(acme)}',
        f'GRANT SELECT ON "{acme}".texts TO "{acme}"',
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
        f"CREATE VIEW public.reports AS {of(acme)} UNION ALL {of(beta)}",
        f"GRANT SELECT ON public.reports TO {between}",
        f"CREATE VIEW public.asks WITH (security_invoker = true) AS {of(beta)}",
        "GRANT SELECT ON public.asks TO PUBLIC",
    )
    assert await read(tenancy, "SELECT text FROM texts") == ["acme"]
    assert await found(tenancy, "views") == []
    await database.admin(f'GRANT {between} TO "{acme}"')
    finding = await the_one(tenancy, "views", ERROR, "public.reports")
    await mend(database, finding)
    assert await found(tenancy, "views") == []


# -- many ------------------------------------------------------------------------------------------


async def test_thousands_of_schemas_are_looked_at_at_once(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    number = 2000
    made = f"{database.name}_many"
    await database.admin(
        f"""
        DO $$
        DECLARE place text;
        BEGIN
          FOR i IN 1..{number} LOOP
            place := '{made}_' || i;
            EXECUTE format('CREATE SCHEMA %I', place);
            EXECUTE format('COMMENT ON SCHEMA %I IS %L', place, 'tenancy ' || gen_random_uuid());
          END LOOP;
        END $$
        """
    )
    await database.admin(f"GRANT USAGE ON SCHEMA {made}_1, {made}_{number} TO PUBLIC")
    began = time.monotonic()
    await the_one(tenancy, "role", ERROR, "Everybody", f"{made}_1, {made}_{number}")
    assert time.monotonic() - began < 10
