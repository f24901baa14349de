"""The checklist on views and functions: nothing lends tenants the rights of its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from support.checks import ERROR, WARNING, found, mend, shop, the_one
from support.scoped import Note

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tenancy(postgres_database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service under ``rls``, with a note of each of two tenants."""
    async with shop(postgres_database) as opened:
        for name in ("acme", "beta"):
            await opened.tenants.create(name)
            async with opened.scope(name), opened.session() as session:
                session.add(Note(id=1, text=name))
        yield opened


async def read(tenancy: Tenancy, query: str) -> list[str]:
    async with tenancy.scope("acme"), tenancy.session() as session:
        return sorted(await session.scalars(text(query)))


async def as_owner(database: PostgresDatabase, *statements: str) -> None:
    async with database.connection(database.owner) as owner:
        for statement in statements:
            await owner.execute(statement.format(app=database.app, owner=database.owner))


# -- views -----------------------------------------------------------------------------------------


async def test_L8_a_view_that_shows_all_tenants_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(
        "CREATE VIEW texts AS SELECT text FROM notes", f"GRANT SELECT ON texts TO {database.app}"
    )
    assert await read(tenancy, "SELECT text FROM texts") == ["acme", "beta"]
    finding = await the_one(tenancy, "views", ERROR, "The view public.texts reads public.notes")
    await mend(database, finding)
    assert await found(tenancy, "views") == []
    assert await read(tenancy, "SELECT text FROM texts") == ["acme"]


async def test_L8_a_view_over_a_view_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(
        "CREATE VIEW inner_one AS SELECT text FROM notes",
        "CREATE VIEW outer_one AS SELECT text FROM inner_one",
        "GRANT SELECT (text) ON outer_one TO PUBLIC",
    )
    assert await read(tenancy, "SELECT text FROM outer_one") == ["acme", "beta"]
    finding = await the_one(tenancy, "views", ERROR, "public.outer_one reads public.notes")
    # One that asks who reads keeps tenants apart, whatever is made of it.
    await database.admin("ALTER VIEW inner_one SET (security_invoker = on)")
    assert await found(tenancy, "views") == []
    assert await read(tenancy, "SELECT text FROM outer_one") == ["acme"]
    await database.admin("ALTER VIEW inner_one RESET (security_invoker)")
    assert await found(tenancy, "views") == [finding]
    await database.admin(f"GRANT SELECT ON inner_one TO {database.app}")
    both = await found(tenancy, "views")
    assert len(both) == 2
    await mend(database, *both)
    assert await found(tenancy, "views") == []


async def test_L8_a_view_of_the_tables_owner_is_found_for_whoever_may_use_it(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await as_owner(database, "CREATE VIEW texts AS SELECT text FROM notes")
    assert await found(tenancy, "views") == []
    await as_owner(database, "GRANT INSERT ON texts TO {app}")
    finding = await the_one(tenancy, "views", ERROR, f"its owner '{database.owner}'")
    await mend(database, finding, role=database.owner)
    assert await found(tenancy, "views") == []


async def test_L8_a_materialized_view_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(
        "CREATE MATERIALIZED VIEW texts AS SELECT text FROM notes",
        "GRANT SELECT ON texts TO PUBLIC",
        f"GRANT SELECT (text) ON texts TO {database.app}",
    )
    assert await read(tenancy, "SELECT text FROM texts") == ["acme", "beta"]
    finding = await the_one(tenancy, "views", ERROR, "materialized view public.texts holds rows")
    await mend(database, finding)
    assert await found(tenancy, "views") == []


async def test_L8_a_view_for_a_role_that_sessions_can_take_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """Its rights are not the sessions' own, until they take it."""
    database = postgres_database
    taken, beyond = f"{database.name}_taken", f"{database.name}_beyond"
    await database.admin(
        f"CREATE ROLE {taken} NOLOGIN",
        f"CREATE ROLE {beyond} NOLOGIN NOINHERIT",
        f"ALTER ROLE {database.app} NOINHERIT",
        f"GRANT {beyond} TO {database.app}",
        "CREATE VIEW texts AS SELECT text FROM notes",
        f"GRANT USAGE ON SCHEMA public TO {taken}",
        f"GRANT SELECT ON texts TO {taken}",
    )
    try:
        assert await found(tenancy, "views") == []
        await database.admin(f"GRANT {taken} TO {beyond}")
        async with tenancy.scope("acme"), tenancy.session() as session:
            await session.execute(text(f"SET LOCAL ROLE {taken}"))
            texts = await session.scalars(text("SELECT text FROM texts"))
            assert sorted(texts) == ["acme", "beta"]
        finding = await the_one(tenancy, "views", ERROR, "public.texts reads public.notes")
        await mend(database, finding)
        assert await found(tenancy, "views") == []
        await database.admin(
            "DROP VIEW texts",
            "CREATE MATERIALIZED VIEW texts AS SELECT text FROM notes",
            f"GRANT SELECT (text) ON texts TO {taken}",
        )
        finding = await the_one(tenancy, "views", ERROR, "materialized view public.texts")
        assert f"FROM {taken};" in finding.remedy
        await mend(database, finding)
        assert await found(tenancy, "views") == []
    finally:
        for name in (taken, beyond):
            await database.admin(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def test_L8_a_view_of_what_all_tenants_share_is_no_finding(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await postgres_database.admin(
        "CREATE VIEW codes AS SELECT code FROM currencies", "GRANT SELECT ON codes TO PUBLIC"
    )
    assert await found(tenancy, "views") == []


# -- functions -------------------------------------------------------------------------------------

TEXTS = (
    "CREATE FUNCTION texts(prefix text) RETURNS SETOF text LANGUAGE sql SECURITY DEFINER "
    "AS 'SELECT text FROM public.notes WHERE text LIKE prefix || ''%'''"
)


async def test_L8_a_function_with_the_rights_of_a_superuser_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await postgres_database.admin(TEXTS)
    assert await read(tenancy, "SELECT texts('')") == ["acme", "beta"]
    finding = await the_one(
        tenancy, "functions", ERROR, "public.texts(prefix text)", "has no search_path of its own"
    )
    await mend(postgres_database, finding)
    assert await found(tenancy, "functions") == []
    assert await read(tenancy, "SELECT texts('')") == ["acme"]


async def test_L8_a_function_with_the_rights_of_the_tables_owner_is_a_warning(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(postgres_database, f"{TEXTS} SET search_path = ''")
    finding = await the_one(tenancy, "functions", WARNING, postgres_database.owner)
    assert "search_path" not in finding.message
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "functions") == []


async def test_L8_a_function_that_sessions_may_not_call_is_no_finding(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await postgres_database.admin(TEXTS, "REVOKE EXECUTE ON FUNCTION texts FROM PUBLIC")
    assert await found(tenancy, "functions") == []


async def test_L8_a_trigger_calls_a_function_that_nobody_may_call(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await postgres_database.admin(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
        "AS 'BEGIN RETURN NEW; END'",
        "REVOKE EXECUTE ON FUNCTION note FROM PUBLIC",
    )
    assert await found(tenancy, "functions") == []
    await postgres_database.admin(
        "CREATE TRIGGER noting BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION note()"
    )
    finding = await the_one(tenancy, "functions", ERROR, "public.note()")
    await mend(postgres_database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_functions_are_looked_at_under_schema_as_well(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with shop(database, "schema") as tenancy:
        acme, beta = [await tenancy.tenants.create(name) for name in ("acme", "beta")]
        own, other = acme.placement.name, beta.placement.name
        assert await found(tenancy, "functions") == []
        await database.admin(
            f'CREATE FUNCTION "{own}".lent() RETURNS int LANGUAGE sql SECURITY DEFINER '
            "AS 'SELECT 1'",
        )
        finding = await the_one(tenancy, "functions", ERROR, "lent()")
        await mend(database, finding)
        assert await found(tenancy, "functions") == []
        for name, schema in (("own", f'"{own}".'), ("strays", f'"{other}" . ')):
            counting = f"SELECT count(*) FROM {schema}notes"  # noqa: S608 - names of ours
            await database.admin(
                f"CREATE FUNCTION \"{own}\".{name}() RETURNS bigint LANGUAGE sql AS '{counting}'"
            )
        finding = await the_one(tenancy, "functions", WARNING, "strays()", other)
        await mend(database, finding)
        assert await found(tenancy, "functions") == []
