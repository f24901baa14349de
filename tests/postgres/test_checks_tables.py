"""The checklist on tables that all tenants are in: what opening refused is looked at again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.checks import ERROR, WARNING, found, mend, shop, the_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio

ABOUT_TABLES = ("force", "policies", "keys", "views", "functions")


@pytest.fixture
async def tenancy(postgres_database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service under ``rls`` whose tables are made."""
    async with shop(postgres_database) as opened:
        await opened.tenants.create("acme")
        yield opened


async def as_owner(database: PostgresDatabase, *statements: str) -> None:
    async with database.connection(database.owner) as owner:
        for statement in statements:
            await owner.execute(statement.format(app=database.app, owner=database.owner))


async def test_tables_that_tenancy_made_have_no_findings(tenancy: Tenancy) -> None:
    assert [await found(tenancy, name) for name in ABOUT_TABLES] == [[]] * len(ABOUT_TABLES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE notes NO FORCE ROW LEVEL SECURITY", "is not forced, so its owner"),
        ("ALTER TABLE notes DISABLE ROW LEVEL SECURITY", "is not enabled"),
    ],
)
async def test_L1_row_level_security_that_was_switched_off_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, change: str, words: str
) -> None:
    await as_owner(postgres_database, change)
    finding = await the_one(tenancy, "force", ERROR, "notes: ", words)
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "force") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP POLICY tenancy_floor ON notes", "the policy tenancy_floor is missing"),
        ("CREATE POLICY all_of_it ON notes TO PUBLIC USING (true)", "is for PUBLIC"),
        ("ALTER POLICY tenancy_access ON notes USING (true)", "USING of the policy"),
        ("GRANT TRUNCATE ON notes TO {app}", "has the right TRUNCATE"),
    ],
)
async def test_L2_policies_that_were_changed_are_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, change: str, words: str
) -> None:
    await as_owner(postgres_database, change)
    finding = await the_one(tenancy, "policies", ERROR, "notes: ", words)
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "policies") == []


async def test_L2_a_right_of_a_role_that_sessions_can_take_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """It is not the sessions' own, until they take that role."""
    database = postgres_database
    taken = f"{database.name}_taken"
    await database.admin(
        f"CREATE ROLE {taken} NOLOGIN",
        f"ALTER ROLE {database.app} NOINHERIT",
        f"GRANT TRUNCATE, REFERENCES (text) ON notes TO {taken}",
    )
    try:
        assert await found(tenancy, "policies") == []
        await database.admin(f"GRANT {taken} TO {database.app}")
        finding = await the_one(
            tenancy, "policies", ERROR, f"TRUNCATE, REFERENCES, or can take '{taken}' with it"
        )
        await mend(database, finding, role=database.owner)
        assert await found(tenancy, "policies") == []
    finally:
        await database.admin(f"DROP OWNED BY {taken}; DROP ROLE {taken}")


async def test_L2_a_table_that_nobody_declared_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database,
        "CREATE TABLE memos (tenant_id uuid)",
        "GRANT SELECT ON memos TO {app}",
    )
    finding = await the_one(tenancy, "policies", ERROR, "not in metadata=: public.memos")
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "policies") == []


async def test_L8_a_rule_that_runs_as_a_superuser_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await postgres_database.admin(f"ALTER ROLE {postgres_database.owner} BYPASSRLS")
    await as_owner(
        postgres_database, "CREATE RULE quietly AS ON DELETE TO lines DO ALSO DELETE FROM notes"
    )
    finding = await the_one(tenancy, "policies", ERROR, "lines: the rule quietly runs as")
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "policies") == []


async def test_L8_a_rule_that_runs_as_somebody_whom_a_policy_lets_in_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database, "CREATE RULE quietly AS ON DELETE TO lines DO ALSO DELETE FROM notes"
    )
    assert await found(tenancy, "policies") == []
    await as_owner(postgres_database, "CREATE POLICY all_of_it ON notes TO {owner} USING (true)")
    finding = await the_one(tenancy, "policies", ERROR, "lines: the rule quietly runs as")
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "policies") == []


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE lines ADD CONSTRAINT one UNIQUE (text)", "the unique key one does not hold"),
        ("CREATE UNIQUE INDEX one ON lines (lower(text))", "the unique key one does not hold"),
        (
            "ALTER TABLE lines ADD CONSTRAINT one EXCLUDE USING btree (text WITH =)",
            "the exclusion one does not hold",
        ),
    ],
)
async def test_L9_a_key_without_the_tenant_is_found_and_made_anew(
    tenancy: Tenancy, postgres_database: PostgresDatabase, change: str, words: str
) -> None:
    await as_owner(postgres_database, change)
    finding = await the_one(tenancy, "keys", ERROR, "lines: ", words)
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "keys") == []
    columns = await postgres_database.fetchval(
        "SELECT pg_get_indexdef(indexrelid, 1, false) FROM pg_index"
        " WHERE indexrelid = 'public.one'::regclass"
    )
    assert columns == "tenant_id"


async def test_L9_an_exclusion_of_ranges_is_made_anew_with_the_tenant(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database,
        "ALTER TABLE lines ADD COLUMN during tstzrange",
        "ALTER TABLE lines ADD CONSTRAINT one EXCLUDE USING gist (during WITH &&)",
    )
    finding = await the_one(tenancy, "keys", ERROR, "the exclusion one does not hold")
    await mend(postgres_database, finding)
    assert await found(tenancy, "keys") == []


@pytest.mark.parametrize("done", ["CASCADE", "SET NULL", "NO ACTION"])
async def test_L9_a_foreign_key_to_another_tenants_rows_is_found_and_made_anew(
    tenancy: Tenancy, postgres_database: PostgresDatabase, done: str
) -> None:
    await as_owner(
        postgres_database,
        "CREATE UNIQUE INDEX numbers ON notes (id)",
        "ALTER TABLE lines DROP CONSTRAINT lines_tenant_id_note_id_fkey",
        "ALTER TABLE lines ADD CONSTRAINT one FOREIGN KEY (note_id) REFERENCES notes (id) "
        f"ON DELETE {done}",
    )
    both = await found(tenancy, "keys")
    assert {one.severity for one in both} == {ERROR}
    (finding,) = [one for one in both if "lines: " in one.message]
    assert "the foreign key one to public.notes does not hold the tenant" in finding.message
    (unique,) = [one for one in both if one is not finding]
    await mend(postgres_database, finding, unique, role=postgres_database.owner)
    assert await found(tenancy, "keys") == []
    body = await postgres_database.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'one'"
    )
    # Its row would be nobody's without the tenant.
    assert body.endswith(
        {"CASCADE": "ON DELETE CASCADE", "SET NULL": "ON DELETE SET NULL (note_id)"}.get(done, ")")
    )


async def test_L9_a_foreign_key_that_follows_what_all_tenants_share_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database,
        "ALTER TABLE notes ADD COLUMN code text",
        "ALTER TABLE notes ADD CONSTRAINT one FOREIGN KEY (code) REFERENCES currencies "
        "ON DELETE CASCADE",
        "GRANT DELETE ON currencies TO {app}",
    )
    finding = await the_one(tenancy, "keys", ERROR, "follows what is done to public.currencies")
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "keys") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("CREATE INDEX one ON lines (text)", "the index one does not begin with the tenant"),
        ("CREATE INDEX one ON lines (lower(text))", "the index one does not begin"),
        ("CREATE INDEX one ON lines (text, tenant_id)", "the index one does not begin"),
        (
            (
                "ALTER TABLE lines DROP CONSTRAINT lines_pkey,"
                " ADD CONSTRAINT one PRIMARY KEY (id, tenant_id)"
            ),
            "the primary key one does not begin with the tenant",
        ),
    ],
)
async def test_an_index_that_does_not_begin_with_the_tenant_is_a_warning(
    tenancy: Tenancy, postgres_database: PostgresDatabase, change: str, words: str
) -> None:
    await as_owner(postgres_database, change)
    finding = await the_one(tenancy, "keys", WARNING, "lines: ", words)
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "keys") == []
    columns = await postgres_database.fetchval(
        "SELECT array_agg(pg_get_indexdef(indexrelid, number, false) ORDER BY number)"
        " FROM pg_index, generate_series(1, indnkeyatts) AS number"
        " WHERE indexrelid = 'public.one'::regclass"
    )
    assert columns[0] == "tenant_id"
    assert len(columns) == 2


async def test_indexes_of_other_kinds_are_left_alone(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database, "CREATE INDEX one ON lines USING gin (to_tsvector('simple', text))"
    )
    assert await found(tenancy, "keys") == []


async def test_tables_of_a_tenants_own_are_not_looked_at(
    postgres_database: PostgresDatabase,
) -> None:
    async with shop(postgres_database, "schema") as tenancy:
        acme = await tenancy.tenants.create("acme")
        await postgres_database.admin(
            f'CREATE UNIQUE INDEX one ON "{acme.placement.name}".lines (text)'
        )
        assert [await found(tenancy, name) for name in ABOUT_TABLES] == [[]] * len(ABOUT_TABLES)
