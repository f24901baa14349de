"""The checklist on functions and rules that run with their owner's rights, however they are run."""

from __future__ import annotations

from contextlib import asynccontextmanager
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

TEXTS = "LANGUAGE sql SECURITY DEFINER SET search_path = '' AS 'SELECT text FROM public.notes'"
DELETES = (
    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
    "SET search_path = '' AS 'BEGIN DELETE FROM public.notes; RETURN OLD; END'"
)


@asynccontextmanager
async def role(database: PostgresDatabase, suffix: str) -> AsyncIterator[str]:
    """Make a role besides those that the database has; what it owns goes with it."""
    name = f"{database.name}_{suffix}"
    await database.admin(f"CREATE ROLE {name} NOLOGIN", f"GRANT USAGE ON SCHEMA public TO {name}")
    try:
        yield name
    finally:
        await database.admin(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
async def tenancy(postgres_database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service under ``rls``, with a note of each of two tenants."""
    async with shop(postgres_database) as opened:
        for name in ("acme", "beta"):
            await opened.tenants.create(name)
            async with opened.scope(name), opened.session() as session:
                session.add(Note(id=1, text=name))
        yield opened


async def read(tenancy: Tenancy, query: str, *before: str) -> list[str]:
    async with tenancy.scope("acme"), tenancy.session() as session:
        for line in before:
            await session.execute(text(line))
        return sorted(await session.scalars(text(query)))


async def do(tenancy: Tenancy, *statements: str) -> None:
    async with tenancy.scope("acme"), tenancy.session() as session:
        for statement in statements:
            await session.execute(text(statement))


async def left(database: PostgresDatabase) -> list[str]:
    return sorted(row[0] for row in await database.fetch("SELECT text FROM notes"))


# -- functions that are called by what knows them --------------------------------------------------


@pytest.mark.parametrize("security", ["true", "false"])
async def test_L8_a_view_calls_a_function_in_a_schema_that_is_closed(
    tenancy: Tenancy, postgres_database: PostgresDatabase, security: str
) -> None:
    """A right on a schema is asked for where a name is read, and a view has read it."""
    database = postgres_database
    await database.admin(
        "CREATE SCHEMA private", f"CREATE FUNCTION private.texts() RETURNS SETOF text {TEXTS}"
    )
    finding = await the_one(tenancy, "functions", WARNING, "private.texts()", "may call")
    await database.admin(
        "CREATE VIEW texts AS SELECT * FROM private.texts() AS t (text)",
        f"ALTER VIEW texts SET (security_invoker = {security})",
        f"GRANT SELECT ON texts TO {database.app}",
    )
    assert await read(tenancy, "SELECT text FROM texts") == ["acme", "beta"]
    finding = await the_one(tenancy, "functions", ERROR, "private.texts()", "sessions run")
    await mend(database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_a_default_calls_a_function_in_a_schema_that_is_closed(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(
        "CREATE SCHEMA private",
        "CREATE FUNCTION private.texts() RETURNS text LANGUAGE sql SECURITY DEFINER "
        "SET search_path = '' AS 'SELECT string_agg(text, '','') FROM public.notes'",
        "ALTER TABLE notes ADD COLUMN extra text DEFAULT private.texts()",
    )
    await do(tenancy, "INSERT INTO notes (tenant_id, id, text) SELECT tenant_id, 2, 'x' FROM notes")
    (extra,) = await read(tenancy, "SELECT extra FROM notes WHERE id = 2")
    assert "beta" in extra
    finding = await the_one(tenancy, "functions", ERROR, "private.texts()")
    await mend(database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_a_closed_function_of_the_tables_owner_is_a_warning(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    async with database.connection(database.owner) as owner:
        await owner.execute("CREATE SCHEMA private")
        await owner.execute(f"CREATE FUNCTION private.texts() RETURNS SETOF text {TEXTS}")
        finding = await the_one(tenancy, "functions", WARNING, database.owner)
        await mend(database, finding, role=database.owner)
        assert await found(tenancy, "functions") == []
        await owner.execute("ALTER FUNCTION private.texts() SECURITY DEFINER")
        await owner.execute("REVOKE EXECUTE ON FUNCTION private.texts() FROM PUBLIC")
        assert await found(tenancy, "functions") == []


# -- whose rights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inherited", [False, True])
async def test_L8_a_function_of_a_role_that_a_policy_lets_in_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, *, inherited: bool
) -> None:
    database = postgres_database
    async with role(database, "reports") as reports, role(database, "member") as member:
        await database.admin(
            f"GRANT {reports} TO {member}",
            f"GRANT SELECT ON notes TO {reports}",
            f"CREATE FUNCTION texts() RETURNS SETOF text {TEXTS}",
            f"ALTER FUNCTION texts() OWNER TO {member if inherited else reports}",
        )
        assert await read(tenancy, "SELECT texts()") == []
        assert await found(tenancy, "functions") == []
        await database.admin(f"CREATE POLICY all_of_it ON notes TO {reports} USING (true)")
        assert await read(tenancy, "SELECT texts()") == ["acme", "beta"]
        finding = await the_one(tenancy, "functions", ERROR, "public.texts()", "nothing keeps")
        await mend(database, finding)
        assert await found(tenancy, "functions") == []


async def test_L8_a_function_of_a_role_that_the_floor_holds_is_no_finding(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """Another service may have a role of its own, with its own policy above the same floor."""
    database = postgres_database
    async with role(database, "other") as other:
        await database.admin(
            f"GRANT SELECT ON notes TO {other}",
            f"ALTER POLICY tenancy_floor ON notes TO {database.app}, {other}",
            f"CREATE POLICY all_of_it ON notes TO {other} USING (true)",
            f"CREATE FUNCTION texts() RETURNS SETOF text {TEXTS}",
            f"ALTER FUNCTION texts() OWNER TO {other}",
        )
        assert await read(tenancy, "SELECT texts()") == ["acme"]
        assert await found(tenancy, "functions") == []
        await database.admin(f"ALTER POLICY tenancy_floor ON notes TO {database.app}")


# -- triggers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "trigger", "statement"),
    [
        ("DELETE", "BEFORE DELETE", "DELETE FROM bin"),
        ("TRUNCATE", "BEFORE TRUNCATE", "TRUNCATE bin"),
    ],
)
async def test_L8_a_trigger_of_whoever_may_only_remove_is_found(
    tenancy: Tenancy,
    postgres_database: PostgresDatabase,
    right: str,
    trigger: str,
    statement: str,
) -> None:
    database = postgres_database
    await database.admin(
        "CREATE SCHEMA private",
        "CREATE TABLE bin (word text)",
        "INSERT INTO bin VALUES ('x')",
        DELETES.format(name="private.emptied"),
        "REVOKE EXECUTE ON FUNCTION private.emptied FROM PUBLIC",
        f"CREATE TRIGGER emptying {trigger} ON bin EXECUTE FUNCTION private.emptied()",
    )
    assert await found(tenancy, "functions") == []
    await database.admin(f"GRANT {right} ON bin TO {database.app}")
    await do(tenancy, statement)
    assert await left(database) == []
    finding = await the_one(tenancy, "functions", ERROR, "private.emptied()", "sessions run")
    await mend(database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_a_trigger_on_what_follows_what_sessions_may_write_to_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """A foreign key takes rows along, and a table hands rows on to its partitions."""
    database = postgres_database
    await database.admin(
        "CREATE TABLE folders (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE folders_few PARTITION OF folders FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE papers (folder int REFERENCES folders ON DELETE CASCADE)",
        "CREATE TABLE kept AS SELECT * FROM notes",
        DELETES.format(name="emptied"),
        "REVOKE EXECUTE ON FUNCTION emptied FROM PUBLIC",
        f"GRANT SELECT, DELETE ON folders TO {database.app}",
    )
    for table in ("folders_few", "papers"):
        await database.admin("INSERT INTO notes SELECT * FROM kept ON CONFLICT DO NOTHING")
        await database.admin("TRUNCATE papers, folders; INSERT INTO folders VALUES (1)")
        await database.admin("INSERT INTO papers VALUES (1)")
        assert await found(tenancy, "functions") == []
        await database.admin(
            f"CREATE TRIGGER emptying AFTER DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION emptied()"
        )
        finding = await the_one(tenancy, "functions", ERROR, "public.emptied()")
        await do(tenancy, "DELETE FROM folders")
        assert await left(database) == []
        await mend(database, finding)
        assert await found(tenancy, "functions") == []
        await database.admin("ALTER FUNCTION emptied() SECURITY DEFINER")
        await database.admin(f"DROP TRIGGER emptying ON {table}")


# -- rules -----------------------------------------------------------------------------------------

RULE = 'CREATE RULE "a rule" AS ON INSERT TO inbox DO ALSO DELETE FROM notes'


async def test_L8_a_rule_of_a_table_that_is_no_tenants_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin("CREATE TABLE inbox (word text)", RULE)
    assert await found(tenancy, "functions") == []
    await database.admin(f"GRANT INSERT (word) ON inbox TO {database.app}")
    finding = await the_one(
        tenancy, "functions", ERROR, 'The rule "a rule" on public.inbox', "reaches public.notes"
    )
    await do(tenancy, "INSERT INTO inbox (word) VALUES ('x')")
    assert await left(database) == []
    await mend(database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_a_rule_of_a_view_that_shows_nothing_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """Its other rules ask nobody who reads; and they may lead into tables by other views."""
    database = postgres_database
    await database.admin(
        "CREATE VIEW texts WITH (security_invoker = true) AS SELECT text FROM notes",
        "CREATE VIEW inbox WITH (security_invoker = true) AS SELECT 'x'::text AS word",
        "CREATE RULE emptying AS ON INSERT TO inbox DO INSTEAD DELETE FROM texts",
        f"GRANT INSERT ON inbox TO {database.app}",
    )
    finding = await the_one(tenancy, "functions", ERROR, "The rule emptying on public.inbox")
    await mend(database, finding)
    assert await found(tenancy, "functions") == []


async def test_L8_a_rule_of_somebody_whom_policies_hold_is_no_finding(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    async with database.connection(database.owner) as owner:
        await owner.execute("CREATE TABLE inbox (word text)")
        await owner.execute("CREATE TABLE log (word text)")
        await owner.execute(RULE)
        await owner.execute(f"GRANT INSERT ON inbox TO {database.app}")
    await do(tenancy, "INSERT INTO inbox VALUES ('x')")
    assert await left(database) == ["acme", "beta"]
    assert await found(tenancy, "functions") == []
    # A superuser's, that leads elsewhere.
    await database.admin(
        f"ALTER TABLE inbox OWNER TO {database.server.user}",
        'DROP RULE "a rule" ON inbox',
        "CREATE RULE logging AS ON INSERT TO inbox DO ALSO INSERT INTO log VALUES (NEW.word)",
    )
    assert await found(tenancy, "functions") == []


# -- roles that sessions can take ------------------------------------------------------------------


async def test_L8_a_function_for_a_role_that_sessions_can_take_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """Its rights are not the sessions' own, until they take it."""
    database = postgres_database
    async with role(database, "taken") as taken, role(database, "between") as between:
        await database.admin(
            f"ALTER ROLE {database.app} NOINHERIT",
            f"GRANT {between} TO {database.app}",
            f"CREATE FUNCTION texts() RETURNS SETOF text {TEXTS}",
            "REVOKE EXECUTE ON FUNCTION texts FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION texts TO {taken}",
            "CREATE TABLE inbox (word text)",
            RULE,
            f"GRANT INSERT ON inbox TO {taken}",
        )
        assert await found(tenancy, "functions") == []
        await database.admin(f"GRANT {taken} TO {between}")
        texts = await read(tenancy, "SELECT texts()", f"SET LOCAL ROLE {taken}")
        assert texts == ["acme", "beta"]
        both = await found(tenancy, "functions")
        assert [one.severity for one in both] == [ERROR, ERROR]
        await mend(database, *both)
        assert await found(tenancy, "functions") == []
