"""Threats L2, L8 and L9: what is in the database counts, not what the application declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    DDL,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.scoped import Base, rls, tenant, two_tenants
from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import GLOBAL, TenantScoped, tenant_column

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio

CONDITION = "tenant_id = (select nullif(current_setting('app.tenant_id', true), '')::uuid)"


class Other(DeclarativeBase):
    """A second base, whose tables nobody hands over."""


class Memo(TenantScoped, Other):
    __tablename__ = "memos"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)


@pytest.fixture
async def database(postgres_database: PostgresDatabase) -> PostgresDatabase:
    """With the tables of the application, and a note of each of two tenants."""
    async with two_tenants(postgres_database):
        pass
    return postgres_database


async def as_owner(database: PostgresDatabase, *statements: str) -> None:
    async with database.connection(database.owner) as owner:
        for statement in statements:
            await owner.execute(statement.format(app=database.app, owner=database.owner))


async def refusal(database: PostgresDatabase, metadata: MetaData = Base.metadata) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with rls(database, metadata):
            raise AssertionError("It was opened.")
    return str(caught.value)


def lines_to_run(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.endswith(";")]


# -- tables that nobody declared -------------------------------------------------------------------


async def test_L2_a_table_of_tenants_that_is_in_no_metadata_is_refused(
    database: PostgresDatabase,
) -> None:
    async with rls(database) as isolation:
        await as_owner(
            database,
            "CREATE TABLE memos (tenant_id uuid, id uuid)",
            "GRANT SELECT (id) ON memos TO {app}",
        )
        with pytest.raises(ConfigurationError, match=r"not in metadata=: public\.memos"):
            await isolation.provision(tenant("gamma"))
    assert "REVOKE ALL ON public.memos" in await refusal(database)
    # A right that nobody has, a temporary table, and one that is protected are no concern.
    await as_owner(database, "REVOKE SELECT (id) ON memos FROM {app}")
    async with rls(database):
        pass
    await as_owner(
        database,
        "GRANT SELECT ON memos TO {app}",
        "ALTER TABLE memos ENABLE ROW LEVEL SECURITY",
    )
    async with rls(database):
        pass


async def test_L2_a_schema_that_is_one_tenants_own_holds_no_strangers(
    database: PostgresDatabase,
) -> None:
    making = (
        "CREATE SCHEMA tenant_acme",
        "CREATE TABLE tenant_acme.memos (tenant_id uuid)",
        "GRANT USAGE ON SCHEMA tenant_acme TO {app}",
        "GRANT SELECT ON tenant_acme.memos TO {app}",
    )
    await as_owner(database, *making)
    assert "tenant_acme.memos" in await refusal(database)
    await as_owner(database, f"COMMENT ON SCHEMA tenant_acme IS 'tenancy {uuid4()}'")
    async with rls(database):
        pass


async def test_L2_models_that_are_not_imported_yet_are_told(
    postgres_database: PostgresDatabase,
) -> None:
    assert "Import the modules" in await refusal(postgres_database, MetaData())


@pytest.mark.parametrize("late", ["no tenant", "no policies"])
async def test_L2_a_table_that_is_declared_late_is_judged_when_a_tenant_is_made(
    postgres_database: PostgresDatabase, late: str
) -> None:
    metadata = MetaData()
    Table("early", metadata, tenant_column(), Column("id", Integer, primary_key=True))
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(tenant("gamma"))
        scope = [] if late == "no tenant" else [tenant_column()]
        Table("late", metadata, *scope, Column("id", Integer, primary_key=True))
        await as_owner(postgres_database, "CREATE TABLE late (tenant_id uuid, id integer)")
        with pytest.raises(ConfigurationError, match="late"):
            await isolation.provision(tenant("delta"))


async def test_L2_each_tenant_that_is_made_looks_again(database: PostgresDatabase) -> None:
    async with rls(database) as isolation:
        await isolation.provision(tenant("gamma"))
        await as_owner(database, "ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
        with pytest.raises(ConfigurationError, match="is not enabled"):
            await isolation.provision(tenant("delta"))


@pytest.mark.parametrize("how", ["default privileges", "after_create"])
async def test_L10_a_table_that_gets_more_rights_while_it_is_made_is_not_made(
    postgres_database: PostgresDatabase, how: str
) -> None:
    metadata = MetaData()
    memos = Table("memos", metadata, tenant_column(), Column("id", Integer, primary_key=True))
    if how == "after_create":
        event.listen(memos, "after_create", DDL("GRANT ALL ON memos TO PUBLIC"))
    else:
        await as_owner(postgres_database, "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {app}")
    async with rls(postgres_database, metadata) as isolation:
        with pytest.raises(ConfigurationError, match="TRUNCATE, REFERENCES, TRIGGER") as caught:
            await isolation.provision(tenant("acme"))
        revoke = "REVOKE TRUNCATE, REFERENCES, TRIGGER ON public.memos FROM PUBLIC, "
        assert f'{revoke}"{postgres_database.app}";' in str(caught.value)
    found = await postgres_database.fetchval("SELECT to_regclass('public.memos')::text")
    assert found is None


async def test_I4_a_name_that_the_server_cuts_is_found(postgres_database: PostgresDatabase) -> None:
    """PostgreSQL keeps 63 bytes of a name, in statements as in the catalogs."""
    name = "a_rather_long_name_of_a_table_that_somebody_gave_without_counting_bytes"
    metadata = MetaData()
    Table(name, metadata, tenant_column(), Column("id", Integer, primary_key=True))
    await as_owner(postgres_database, f"CREATE TABLE {name} (tenant_id uuid, id integer)")
    assert "row-level security is not enabled" in await refusal(postgres_database, metadata)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("CREATE UNIQUE INDEX one ON notes (text)", "the unique key one does not hold the tenant"),
        (
            "CREATE UNIQUE INDEX one ON notes (lower(text)) INCLUDE (tenant_id)",
            "the unique key one",
        ),
        ("ALTER TABLE lines ADD CONSTRAINT one UNIQUE (text)", "the unique key one"),
        (
            "ALTER TABLE lines ADD CONSTRAINT one EXCLUDE USING gist (box(text::point) WITH &&)",
            "the exclusion one does not hold the tenant",
        ),
        (
            """
            ALTER TABLE notes ADD UNIQUE (tenant_id, id);
            ALTER TABLE lines ADD COLUMN other uuid, ADD CONSTRAINT one
              FOREIGN KEY (other, note_id) REFERENCES notes (tenant_id, id) ON DELETE CASCADE
            """,
            "the foreign key one to public.notes does not hold the tenant on both sides",
        ),
    ],
)
async def test_L9_a_key_that_only_the_database_has_is_refused(
    database: PostgresDatabase, change: str, complaint: str
) -> None:
    await as_owner(database, change)
    assert complaint in await refusal(database)


async def test_L9_what_is_declared_to_hold_across_tenants_is_taken(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    users = Table(
        "users",
        metadata,
        tenant_column(),
        Column("id", Integer, primary_key=True),
        Column("email", Text),
        Column("phone", Text),
        UniqueConstraint("email", info=GLOBAL),
    )
    Index("by_phone", users.c.phone, unique=True, info=GLOBAL)
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(tenant("acme"))
    async with rls(postgres_database, metadata):
        pass
    await as_owner(postgres_database, "CREATE UNIQUE INDEX another ON users (phone, id)")
    assert "the unique key another" in await refusal(postgres_database, metadata)


@pytest.mark.parametrize("right", ["DELETE", "UPDATE", "UPDATE (name)"])
async def test_L9_a_cascade_from_what_all_share_is_refused_where_tenants_write_it(
    postgres_database: PostgresDatabase, right: str
) -> None:
    metadata = MetaData()
    Table("tags", metadata, Column("name", Text, primary_key=True), info=GLOBAL)
    tag = ForeignKey("tags.name", ondelete="CASCADE", onupdate="CASCADE")
    Table(
        "tagged",
        metadata,
        tenant_column(),
        Column("id", Integer, primary_key=True),
        Column("tag", Text, tag),
    )
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(tenant("acme"))
    async with rls(postgres_database, metadata):
        pass
    await as_owner(postgres_database, f"GRANT {right} ON tags TO {{app}}")
    word = right.partition(" ")[0]
    found = await refusal(postgres_database, metadata)
    assert f"follows what is done to public.tags, where the role '{postgres_database.app}'" in found
    assert f"has the right {word}: " in found


async def test_L9_keys_of_partitions_count(postgres_database: PostgresDatabase) -> None:
    metadata = MetaData()
    Table(
        "events",
        metadata,
        tenant_column(),
        Column("id", Integer, primary_key=True),
        postgresql_partition_by="LIST (id)",
    )
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(tenant("acme"))
    await as_owner(
        postgres_database,
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
        "CREATE UNIQUE INDEX one ON events_1 (id)",
    )
    assert "child public.events_1: the unique key one" in await refusal(postgres_database, metadata)


# -- policies that look like ours ------------------------------------------------------------------


def remade(condition: str) -> list[str]:
    """Return SQL that puts two policies with a condition in the place of ours."""
    rows = f"USING ({condition}) WITH CHECK ({condition})"
    return [
        "DROP POLICY tenancy_access ON notes",
        "DROP POLICY tenancy_floor ON notes",
        f"CREATE POLICY tenancy_access ON notes TO {{app}} {rows}",
        f"CREATE POLICY tenancy_floor ON notes AS RESTRICTIVE TO {{app}} {rows}",
    ]


NAMESAKES = {
    "a keyword": (
        """
        CREATE FUNCTION public."nullif"(text, text) RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT current_setting('app.other', true) $$
        """,
        CONDITION.replace("nullif", 'public."nullif"'),
    ),
    "a function": (
        """
        CREATE FUNCTION public.current_setting(text, boolean) RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT pg_catalog.current_setting('app.other', true) $$
        """,
        CONDITION.replace("current_setting", "public.current_setting"),
    ),
    "an operator": (
        """
        CREATE FUNCTION public.always(uuid, uuid) RETURNS boolean LANGUAGE sql IMMUTABLE
        AS 'SELECT true';
        CREATE OPERATOR public.= (leftarg = uuid, rightarg = uuid, procedure = public.always)
        """,
        CONDITION.replace("tenant_id =", "tenant_id OPERATOR(public.=)"),
    ),
    "a column called as": (
        'ALTER TABLE notes ADD COLUMN "as" uuid',
        CONDITION.replace("tenant_id =", 'tenant_id = "as" AND tenant_id ='),
    ),
}


@pytest.mark.parametrize("namesake", NAMESAKES)
async def test_L2_a_namesake_of_what_the_server_has_is_told_apart(
    database: PostgresDatabase, namesake: str
) -> None:
    """Also where the owner's search path puts it before the server's own."""
    made, condition = NAMESAKES[namesake]
    await database.admin(
        made,
        f"ALTER ROLE {database.owner} SET search_path = public, pg_catalog",
        *(line.format(app=database.app) for line in remade(condition)),
    )
    assert "USING of the policy tenancy_access is not the condition" in await refusal(database)


async def test_L2_a_policy_for_a_role_that_the_sessions_role_can_become(
    database: PostgresDatabase,
) -> None:
    """``SET ROLE``, and the floor is not for it."""
    reports = f"{database.name}_reports"
    await database.admin(f"CREATE ROLE {reports} NOLOGIN", f"GRANT {reports} TO {database.app}")
    try:
        await as_owner(database, f"CREATE POLICY reports ON notes TO {reports} USING (true)")
        found = await refusal(database)
        assert f"the policy reports is for '{reports}', whom the role can become" in found
        await as_owner(database, *lines_to_run(found))
        async with rls(database):
            pass
    finally:
        await database.admin(f"DROP OWNED BY {reports}; DROP ROLE {reports}")


# -- other ways in ---------------------------------------------------------------------------------


async def test_L10_rights_on_columns_count(database: PostgresDatabase) -> None:
    await as_owner(database, "GRANT REFERENCES (tenant_id, id) ON notes TO {app}")
    found = await refusal(database)
    assert "has the right REFERENCES, which no policy restrains" in found
    await as_owner(database, *lines_to_run(found))
    async with rls(database):
        pass


async def test_L8_a_rule_of_an_owner_whom_no_policy_holds(database: PostgresDatabase) -> None:
    await as_owner(
        database,
        "CREATE RULE soft AS ON DELETE TO notes"
        " DO INSTEAD UPDATE notes SET text = '' WHERE id = OLD.id",
    )
    async with rls(database):
        pass  # A plain owner sees nothing, in a rule as elsewhere.
    await database.admin("ALTER TABLE notes OWNER TO CURRENT_USER")
    assert "the rule soft runs as the owner" in await refusal(database)


async def test_L8_a_table_that_ours_inherits_from_has_to_be_protected_as_well(
    postgres_database: PostgresDatabase,
) -> None:
    """It shows our rows under its own name."""
    database = postgres_database
    await as_owner(database, "CREATE TABLE everything (id integer)")
    async with two_tenants(database):
        pass
    await as_owner(
        database,
        "ALTER TABLE notes INHERIT everything",
        "GRANT SELECT ON everything TO {app}",
    )
    found = await refusal(database)
    assert "public.everything: row-level security is not enabled" in found
    await as_owner(database, *lines_to_run(found))
    async with rls(database):
        pass


async def test_L8_the_remedy_of_a_partition_closes_it(database: PostgresDatabase) -> None:
    await as_owner(
        database,
        "CREATE TABLE old_notes () INHERITS (notes)",
        "CREATE POLICY everybody ON old_notes USING (true)",
    )
    found = await refusal(database)
    assert "DROP POLICY tenancy_access" not in found
    await as_owner(database, *lines_to_run(found))
    async with rls(database) as isolation:
        assert await isolation.exists(tenant("acme"))


# -- text keys, and what is destroyed --------------------------------------------------------------


async def test_L3_rows_of_an_empty_tenant_are_nobodys(postgres_database: PostgresDatabase) -> None:
    """Unset is the empty text after the first transaction of a connection."""
    metadata = MetaData()
    Table("docs", metadata, tenant_column("text"), Column("id", Integer, primary_key=True))
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(tenant("acme"))
    await postgres_database.admin("INSERT INTO docs (tenant_id, id) VALUES ('', 1)")
    async with postgres_database.connection(postgres_database.app) as connection:
        await connection.execute("SET app.tenant_id = ''")
        assert await connection.fetch("SELECT * FROM docs") == []


async def test_C7_without_policies_too_one_tenants_rows_are_destroyed(
    postgres_database: PostgresDatabase,
) -> None:
    """The way out of the role check leaves nothing else that keeps tenants apart."""
    database = postgres_database
    await database.admin(f"ALTER ROLE {database.app} BYPASSRLS")
    unsafe: dict[str, Any] = {"section": {"allow_unsafe_role": True}}
    async with two_tenants(database, **unsafe) as (isolation, acme, _):
        await isolation.destroy(acme)
    assert await database.fetch("SELECT text FROM notes") == [("beta's",)]
