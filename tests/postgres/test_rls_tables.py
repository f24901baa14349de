"""Threats L2, L8 and L10: tables that do not keep tenants apart are not used."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import (
    Column,
    Identity,
    Integer,
    MetaData,
    Sequence,
    Table,
    Text,
    delete,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from support.scoped import Currency, Line, Note, rls, tenant, two_tenants
from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError
from tenancy_core.sql import GLOBAL, tenant_column, tenant_foreign_key
from tenancy_core.testing.suite import run_together

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio

OURS = "tenant_id = (select nullif(current_setting('app.tenant_id', true), '')::uuid)"


@pytest.fixture
async def database(postgres_database: PostgresDatabase) -> PostgresDatabase:
    """With the tables of the application, and a note of each of two tenants."""
    async with two_tenants(postgres_database):
        pass
    return postgres_database


def remake(policy: str, change: str = "", *, kind: str = "PERMISSIVE", to: str = "{app}") -> str:
    """Return SQL that puts another policy in the place of one of ours."""
    condition = change or f"USING ({OURS}) WITH CHECK ({OURS})"
    return (
        f"DROP POLICY tenancy_{policy} ON notes;"
        f"CREATE POLICY tenancy_{policy} ON notes AS {kind} TO {to} {condition}"
    )


# -- what is wrong ---------------------------------------------------------------------------------

WRONG = {
    "row-level security is not enabled": "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
    "row-level security is not forced": "ALTER TABLE notes NO FORCE ROW LEVEL SECURITY",
    "the policy tenancy_access is missing": "DROP POLICY tenancy_access ON notes",
    "the policy tenancy_floor is missing": "DROP POLICY tenancy_floor ON notes",
    "the policy tenancy_floor is not RESTRICTIVE": remake("floor"),
    "the policy tenancy_access is not PERMISSIVE": remake("access", kind="RESTRICTIVE"),
    "the policy tenancy_access is not FOR ALL": (
        "DROP POLICY tenancy_access ON notes;"
        f"CREATE POLICY tenancy_access ON notes FOR SELECT TO {{app}} USING ({OURS})"
    ),
    "the policy tenancy_access is not for the role": remake("access", to="{owner}"),
    "the policy tenancy_access is for PUBLIC": remake("access", to="PUBLIC"),
    "the policy tenancy_floor is not for the role": remake(
        "floor", kind="RESTRICTIVE", to="{owner}"
    ),
    "USING of the policy tenancy_access": remake("access", "USING (true)"),
    "USING of the policy tenancy_floor": remake("floor", "USING (true)", kind="RESTRICTIVE"),
    "WITH CHECK of the policy tenancy_access": remake("access", f"USING ({OURS})"),
    "WITH CHECK of the policy tenancy_floor": remake(
        "floor", f"USING ({OURS}) WITH CHECK (true)", kind="RESTRICTIVE"
    ),
    "the policy others is for PUBLIC": "CREATE POLICY others ON notes USING (true)",
    "has the right TRUNCATE": "GRANT TRUNCATE ON notes TO {app}",
    "has the right REFERENCES": "GRANT REFERENCES ON notes TO {app}",
    "has the right TRIGGER": "GRANT TRIGGER ON notes TO PUBLIC",
}
ALMOST = {
    "cast on the column": "tenant_id::text = (select current_setting('app.tenant_id', true))",
    "no subquery": "tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid",
    "another setting": OURS.replace("app.tenant_id", "app.other"),
    "another column": OURS.replace("tenant_id =", "gen_random_uuid() ="),
    "or": f"{OURS} OR id = 1",
    "not": f"NOT ({OURS})",
    "not equal": OURS.replace("tenant_id =", "tenant_id <>"),
    "an error for ''": "tenant_id = (select current_setting('app.tenant_id', true)::uuid)",
}


@pytest.mark.parametrize("lack", WRONG)
async def test_L2_a_table_that_lacks_something_is_refused(
    database: PostgresDatabase, lack: str
) -> None:
    async with rls(database) as isolation:
        await database.admin(WRONG[lack].format(app=database.app, owner=database.owner))
        for step in (isolation.provision, opened_again(database)):
            with pytest.raises(ConfigurationError) as caught:
                await step(tenant("acme"))
            told = str(caught.value)
            assert "- notes: " in told
            assert lack in told
            assert "- lines" not in told
        assert not await isolation.exists(tenant("acme"))
    # The message ends with what to run.
    remedy = [line for line in told.splitlines() if line.endswith(";")]
    async with database.connection(database.owner) as connection:
        for statement in remedy:
            await connection.execute(statement)
    if "the policy others" in lack or "right" in lack:
        await database.admin(
            "DROP POLICY IF EXISTS others ON notes",
            f"REVOKE TRUNCATE, REFERENCES, TRIGGER ON notes FROM PUBLIC, {database.app}",
        )
    async with rls(database) as isolation:
        assert await isolation.exists(tenant("acme"))


def opened_again(database: PostgresDatabase) -> Any:
    async def step(_tenant: Any) -> None:
        async with rls(database):
            pass

    return step


async def test_L2_the_remedy_of_one_service_leaves_another_its_policies(
    database: PostgresDatabase,
) -> None:
    async with database.connection(database.owner) as owner:
        for policy in ("tenancy_access", "tenancy_floor"):
            await owner.execute(f'ALTER POLICY {policy} ON notes TO "{database.control}"')
        with pytest.raises(ConfigurationError, match="is not for the role") as caught:
            async with rls(database):
                pass
        for line in str(caught.value).splitlines():
            if line.endswith(";"):
                await owner.execute(line)
    async with rls(database):
        pass
    roles = "SELECT DISTINCT r.rolname FROM pg_policy, pg_roles AS r WHERE r.oid = ANY (polroles)"
    assert {one for (one,) in await database.fetch(roles)} == {database.app, database.control}


@pytest.mark.parametrize("almost", ALMOST)
async def test_L2_a_condition_that_is_almost_ours_is_refused(
    database: PostgresDatabase, almost: str
) -> None:
    condition = ALMOST[almost]
    await database.admin(
        remake("floor", f"USING ({condition}) WITH CHECK ({OURS})", kind="RESTRICTIVE").format(
            app=database.app
        )
    )
    with pytest.raises(ConfigurationError, match="USING of the policy tenancy_floor") as caught:
        async with rls(database):
            pass
    assert "WITH CHECK" not in str(caught.value).partition("\nNothing")[0]


@pytest.mark.parametrize(
    "written",
    [
        OURS.upper().replace("APP.TENANT_ID", "app.tenant_id"),
        "\"tenant_id\"=(SELECT NULLIF(pg_catalog.current_setting('app.tenant_id',true),'')::uuid)",
        f"(({OURS}))",
    ],
)
async def test_L2_our_condition_may_be_written_by_hand(
    database: PostgresDatabase, written: str
) -> None:
    await database.admin(
        remake("access", f"USING ({written}) WITH CHECK ({written})").format(app=database.app)
    )
    async with rls(database) as isolation:
        assert await isolation.exists(tenant("acme"))


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (
            "CREATE TABLE notes (tenant_id uuid, id integer, text text)",
            "row-level security is not enabled",
        ),
        ("CREATE VIEW notes AS SELECT 1 AS id", "it is a view"),
    ],
)
async def test_L2_what_somebody_else_made_in_the_place_of_a_table_is_refused(
    postgres_database: PostgresDatabase, made: str, complaint: str
) -> None:
    async with postgres_database.connection(postgres_database.owner) as connection:
        await connection.execute(made)
    with pytest.raises(ConfigurationError, match=f"- notes: {complaint}"):
        async with rls(postgres_database):
            pass


async def test_a_policy_that_lets_in_more_does_not_reach_below_the_floor(
    database: PostgresDatabase,
) -> None:
    await database.admin(f"CREATE POLICY more ON notes TO {database.app} USING (true)")
    async with two_tenants(database) as (isolation, acme, beta):
        for one in (acme, beta):
            async with isolation.session(one) as session:
                assert [*await session.scalars(select(Note.text))] == [f"{one.identifier}'s"]


async def test_the_owner_is_held_as_well(database: PostgresDatabase) -> None:
    """Whoever makes tables sees no tenant's rows, and no tenant without naming one."""
    async with database.connection(database.owner) as connection:
        assert await connection.fetch("SELECT * FROM notes") == []
        assert await connection.execute("DELETE FROM notes") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(
                "INSERT INTO notes (tenant_id, text) VALUES (gen_random_uuid(), 'x')"
            )
    assert await database.fetchval("SELECT count(*) FROM notes") == 2


# -- partitions ------------------------------------------------------------------------------------


async def test_L8_a_partition_has_to_be_protected_as_well(
    postgres_database: PostgresDatabase,
) -> None:
    """It can be read by a name of its own, past the policies of its table."""
    database = postgres_database
    metadata = MetaData()
    Table(
        "events",
        metadata,
        tenant_column(),
        Column("id", Integer, primary_key=True),
        postgresql_partition_by="LIST (id)",
    )
    acme = tenant("acme")
    async with rls(database, metadata) as isolation:
        await isolation.provision(acme)
        async with database.connection(database.owner) as owner:
            await owner.execute("CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)")
            await owner.execute(f'GRANT SELECT ON events_1 TO "{database.app}"')
        assert not await isolation.exists(acme)
        with pytest.raises(
            ConfigurationError, match=r"its partition or child public\.events_1: row-level security"
        ):
            async with rls(database, metadata):
                pass
        async with database.connection(database.owner) as owner:
            await owner.execute("ALTER TABLE events_1 ENABLE ROW LEVEL SECURITY")
            await owner.execute("ALTER TABLE events_1 FORCE ROW LEVEL SECURITY")
        assert await isolation.exists(acme)
        async with isolation.connection(acme) as connection:
            await connection.execute(text("INSERT INTO events (id) VALUES (1)"))
            assert (await connection.execute(text("SELECT id FROM events"))).scalar_one() == 1
            assert (await connection.execute(text("SELECT id FROM events_1"))).all() == []
        # A policy of its own would let in what the table keeps out.
        await database.admin(f"CREATE POLICY all_of_it ON events_1 TO {database.app} USING (true)")
        assert not await isolation.exists(acme)


async def test_L8_a_child_by_inheritance_has_to_be_protected_as_well(
    database: PostgresDatabase,
) -> None:
    async with database.connection(database.owner) as owner:
        await owner.execute("CREATE TABLE old_notes () INHERITS (notes)")
    with pytest.raises(ConfigurationError, match=r"child public\.old_notes: row-level security"):
        async with rls(database):
            pass


# -- rights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE notes CASCADE",
        "CREATE TABLE spies (tenant_id uuid, id integer REFERENCES notes)",
        (
            "CREATE TRIGGER spy BEFORE UPDATE ON notes FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenancy_floor ON notes",
        "CREATE POLICY mine ON notes USING (true)",
        "SELECT last_value FROM notes_id_seq",
        "INSERT INTO currencies (code) VALUES ('XXX')",
        "COPY notes (text) FROM '/etc/hostname'",
    ],
)
async def test_L10_what_policies_do_not_restrain_is_not_allowed(
    database: PostgresDatabase, statement: str
) -> None:
    async with rls(database) as isolation:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            async with isolation.connection(tenant("acme")) as connection:
                await connection.exec_driver_sql(statement)
    assert await database.fetchval("SELECT count(*) FROM notes") == 2


async def test_L10_COPY_out_gives_the_tenants_rows_and_COPY_in_is_refused(
    postgres_database: PostgresDatabase,
) -> None:
    async with two_tenants(postgres_database) as (isolation, acme, _):
        async with isolation.connection(acme) as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            copied = bytearray()

            async def keep(data: bytes) -> None:
                copied.extend(data)

            await driver.copy_from_table("notes", columns=["text"], output=keep)
            assert bytes(copied) == b"acme's\n"
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            async with isolation.connection(acme) as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                await driver.copy_records_to_table("notes", records=[("x",)], columns=["text"])


async def test_the_role_has_the_rights_that_it_needs_and_no_more(
    database: PostgresDatabase,
) -> None:
    rights = "SELECT privilege_type FROM information_schema.role_table_grants WHERE grantee = $1"
    for table, expected in {
        "notes": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "currencies": {"SELECT"},
    }.items():
        found = await database.fetch(f"{rights} AND table_name = $2", database.app, table)
        assert {one for (one,) in found} == expected


async def test_serial_columns_and_sequences_can_be_used(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData(schema="Shop Data")
    numbers = Sequence("numbers", metadata=metadata)
    table = Table(
        "odd 'name\"s",
        metadata,
        tenant_column(),
        Column("id", Integer, primary_key=True, autoincrement=True),
        Column("number", Integer, numbers),
    )
    acme = tenant("acme")
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(acme)
        assert await isolation.exists(acme)
        async with isolation.connection(acme) as connection:
            await connection.execute(table.insert())
            assert (await connection.execute(select(table.c.id, table.c.number))).all() == [(1, 1)]


# -- making ----------------------------------------------------------------------------------------


async def test_several_processes_start_at_once(postgres_database: PostgresDatabase) -> None:
    async def start(number: int) -> None:
        one = tenant(f"tenant-{number}")
        async with rls(postgres_database, max_database_connections=3) as isolation:
            await isolation.provision(one)
            async with isolation.session(one) as session:
                session.add(Note(text=one.identifier))

    await run_together(partial(start, number) for number in range(8))
    assert await postgres_database.fetchval("SELECT count(*) FROM notes") == 8


async def test_no_table_is_ever_there_without_its_policies(database: PostgresDatabase) -> None:
    """The table, its policies and its rights are of one transaction."""
    made = await database.fetch(
        "SELECT xmin::text FROM pg_class WHERE relname IN ('notes', 'lines', 'currencies')"
        " UNION SELECT p.xmin::text FROM pg_policy AS p"
        " UNION SELECT xmin::text FROM pg_attribute WHERE attrelid = 'notes'::regclass"
    )
    assert len(made) == 1


async def test_provisioning_makes_what_is_missing(database: PostgresDatabase) -> None:
    async with database.connection(database.owner) as owner:
        await owner.execute("DROP TABLE lines")
    acme = tenant("acme")
    async with rls(database) as isolation:
        assert not await isolation.exists(acme)
        await isolation.provision(acme)
        assert await isolation.exists(acme)
        async with isolation.session(acme) as session:
            note = Note(text="new")
            session.add_all([note, Line(note=note, text="line")])
            assert [*await session.scalars(select(Currency.code))] == []
    assert await database.fetchval("SELECT count(*) FROM notes") == 3


async def test_a_role_that_may_not_make_tables_is_told(
    postgres_database: PostgresDatabase,
) -> None:
    section = {"admin_url": postgres_database.control_url}
    async with rls(postgres_database, section=section) as isolation:
        with pytest.raises(ConfigurationError, match="may not make currencies, lines, notes"):
            await isolation.provision(tenant("acme"))
    assert await postgres_database.fetchval("SELECT count(*) FROM pg_policy") == 0


async def test_without_tables_there_are_no_policies(postgres_database: PostgresDatabase) -> None:
    nothing: Any = None
    with pytest.raises(ConfigurationError, match=r"metadata=Base\.metadata"):
        rls(postgres_database, nothing)


async def test_L9_keys_that_reach_across_tenants_are_refused(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    Table("loose", metadata, Column("id", Integer, primary_key=True))
    with pytest.raises(ConfigurationError, match="- Table 'loose' has no tenant"):
        rls(postgres_database, metadata)
    fine = MetaData()
    isolation = rls(postgres_database, fine)
    Table("late", fine, Column("id", Integer, primary_key=True))
    with pytest.raises(ConfigurationError, match="- Table 'late' has no tenant"):
        async with isolation:
            pass


@pytest.mark.parametrize("setting", ["shop.customer", "user.select", "_._0"])
async def test_the_setting_can_have_another_name(
    postgres_database: PostgresDatabase, setting: str
) -> None:
    acme = tenant("acme")
    async with rls(postgres_database, rls_setting=setting) as isolation:
        await isolation.provision(acme)
        async with isolation.session(acme) as session:
            session.add(Note(text="by the ORM"))
            await session.flush()
            await session.execute(text("INSERT INTO notes (text) VALUES ('by hand')"))
            assert len((await session.scalars(select(Note))).all()) == 2
    with pytest.raises(ConfigurationError, match="is not the condition that tenancy generates"):
        async with rls(postgres_database, rls_setting="another.one"):
            pass


async def test_both_roles_mean_the_same_tables(database: PostgresDatabase) -> None:
    """A table of the same name, in a schema that the sessions' role would look into first."""
    async with rls(database) as isolation, isolation.session(tenant("acme")) as session:
        # Now, as it is refused when this opens.
        await database.admin(
            f"CREATE SCHEMA {database.app}",
            f"CREATE TABLE {database.app}.notes AS TABLE public.notes",
            f"GRANT USAGE ON SCHEMA {database.app} TO {database.app}",
            f"GRANT SELECT ON {database.app}.notes TO {database.app}",
        )
        assert (await session.scalars(select(Note))).all() == []
        assert (await session.execute(text("SELECT * FROM notes"))).all() == []


# -- removing --------------------------------------------------------------------------------------


async def test_destroying_waits_no_longer_than_it_may(
    postgres_database: PostgresDatabase,
) -> None:
    async with two_tenants(postgres_database, database_pool_timeout=0.3) as (isolation, acme, beta):
        async with isolation.session(acme) as session:
            await session.execute(select(Note).with_for_update())
            with pytest.raises(BackendUnavailable):
                await isolation.destroy(acme)
            await isolation.destroy(beta)
            assert (await session.scalars(select(Note.text))).all() == ["acme's"]
        await isolation.destroy(acme)
    assert await postgres_database.fetchval("SELECT count(*) FROM notes") == 0


async def test_destroying_takes_longer_than_a_statement_of_the_plan_may(
    database: PostgresDatabase,
) -> None:
    await database.admin(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_sleep(0.3); RETURN OLD; END'",
        "CREATE TRIGGER dawdle BEFORE DELETE ON notes FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    acme = tenant("acme", plan="hasty")
    async with rls(database, plans={"hasty": {"statement_timeout": 0.1}}) as isolation:
        async with isolation.session(acme) as session:
            session.add(Note(text="removed at leisure"))
        with pytest.raises(BackendUnavailable, match="statement took longer"):
            async with isolation.session(acme) as session:
                await session.execute(delete(Note))
        await isolation.destroy(acme)
    assert await database.fetchval("SELECT count(*) FROM notes WHERE tenant_id = $1", acme.id) == 0


async def test_destroying_that_leaves_something_removes_nothing(
    database: PostgresDatabase,
) -> None:
    await database.admin(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER keep BEFORE DELETE ON lines FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    acme = tenant("acme")
    async with rls(database) as isolation:
        async with isolation.session(acme) as session:
            session.add(Note(text="kept", lines=[Line(text="kept as well")]))
        with pytest.raises(IsolationError, match="still in lines"):
            await isolation.destroy(acme)
    assert await database.fetchval("SELECT count(*) FROM notes WHERE tenant_id = $1", acme.id) == 1


async def test_destroying_without_the_right_says_what_to_grant(database: PostgresDatabase) -> None:
    await database.admin(f"REVOKE DELETE ON lines FROM {database.app}")
    async with rls(database) as isolation:
        with pytest.raises(ConfigurationError, match=r'GRANT SELECT, DELETE ON .*"lines"'):
            await isolation.destroy(tenant("acme"))


async def test_tables_that_refer_to_one_another_are_emptied(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    for one, other in (("hens", "eggs"), ("eggs", "hens")):
        Table(
            one,
            metadata,
            tenant_column("text"),
            Column("id", Integer, Identity(), primary_key=True),
            Column("other_id", Integer),
            Column("parent_id", Integer),
            tenant_foreign_key(["other_id"], other, name=f"{one}_to_{other}"),
            tenant_foreign_key(["parent_id"], one, ondelete="RESTRICT"),
        )
    acme = tenant("acme")
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(acme)
        async with isolation.connection(acme) as connection:
            for statement in (
                "INSERT INTO hens (id, parent_id) VALUES (1, 1), (2, 1)",
                "INSERT INTO eggs (id, other_id) VALUES (1, 1), (2, 2)",
                "UPDATE hens SET other_id = id",
            ):
                await connection.exec_driver_sql(statement)
        await isolation.destroy(acme)
    for table in ("hens", "eggs"):
        assert await postgres_database.fetch(f"TABLE {table}") == []


async def test_what_all_tenants_share_is_not_destroyed(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    shared = Table("shared", metadata, Column("word", Text, primary_key=True), info=GLOBAL)
    acme = tenant("acme")
    async with rls(postgres_database, metadata) as isolation:
        await isolation.provision(acme)
        await postgres_database.admin("INSERT INTO shared VALUES ('kept')")
        await isolation.destroy(acme)
        async with isolation.connection(acme) as connection:
            assert (await connection.execute(select(shared))).scalar_one() == "kept"
