"""The engines under the sessions: nothing runs on them that is nobody's."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    String,
    case,
    cast,
    column,
    func,
    literal_column,
    make_url,
    select,
    text,
    union_all,
    values,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import aliased

from support.postgres import Note, opened, provisioned
from tenancy_core._stores.sql.reach import reach
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_postgres.harmless import leaves_nothing, leaves_prepared

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

ATTACKED = "postgresql+asyncpg://app:hunter2@127.0.0.1:1/app"


@pytest.mark.anyio
async def test_without_a_tenant_no_transaction_begins(postgres_database: PostgresDatabase) -> None:
    async with opened(postgres_database) as isolation:
        with pytest.raises(IsolationError, match="without a tenant"):
            async with isolation._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))


@pytest.mark.anyio
async def test_what_is_nobodys_finds_nothing(postgres_database: PostgresDatabase) -> None:
    """Below SQLAlchemy, after the transaction: the search path is empty there."""
    await postgres_database.admin(
        "CREATE TABLE public.notes (id integer)", "GRANT ALL ON public.notes TO PUBLIC"
    )
    for mode in ("search_path", "qualified"):
        async with opened(postgres_database, settings={"schema_mode": mode}) as isolation:
            (acme,) = await provisioned(isolation, f"acme-{mode[:4]}")
            for read_only in (False, True):
                async with isolation.session(acme, read_only=read_only) as session:
                    raw = await (await session.connection()).get_raw_connection()
                    driver = raw.driver_connection
                    await session.scalars(select(Note))
                    await session.commit()
                    with pytest.raises(Exception, match=r"relation .* does not exist"):
                        await driver.fetch("SELECT * FROM notes")


@pytest.mark.anyio
async def test_a_transaction_that_was_begun_and_not_used_is_begun_anew(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for tenant in (acme, beta, acme):
            async with isolation.session(tenant) as session:
                await session.connection()
                await session.commit()
                await session.connection()
                path = await session.scalar(text("SELECT pg_catalog.current_schema()"))
                assert path == tenant.placement.name


@pytest.mark.anyio
async def test_a_session_that_ran_nothing_leaves_no_transaction_behind(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        for _ in range(2):
            async with isolation.session(acme) as session:
                await session.connection()
            states = await postgres_database.fetch(
                "SELECT state FROM pg_stat_activity WHERE usename = $1", postgres_database.app
            )
            assert states == [("idle",)]


@pytest.mark.anyio
async def test_a_server_that_is_not_there_is_unavailable_at_once(
    postgres_database: PostgresDatabase,
) -> None:
    with pytest.raises(BackendUnavailable, match="ConnectionRefusedError") as caught:
        async with opened(postgres_database, url=ATTACKED):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.anyio
async def test_two_roles_with_time_zones_of_their_own_see_one_database(
    postgres_database: PostgresDatabase,
) -> None:
    await postgres_database.admin(
        f"ALTER ROLE {postgres_database.app} SET timezone = 'Asia/Tokyo'",
        f"ALTER ROLE {postgres_database.app} SET datestyle = 'German'",
    )
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(Note))).all() == []


async def nobody_is_let_in(database: PostgresDatabase, url: str, why: str) -> None:
    async with opened(database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
    with pytest.raises(BackendUnavailable) as caught:
        async with opened(database, url=url) as isolation, isolation.session(acme) as session:
            await session.execute(text("SELECT 1"))
    assert str(caught.value) == f"The tenant's database cannot be used now ({why})."
    assert database.name not in repr(caught.value)
    assert database.password not in repr(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("password", "28P01: the server refuses this user or password"),
        ("username", "28P01: the server refuses this user or password"),
        ("database", "3D000: there is no database of that name"),
    ],
)
async def test_a_part_of_the_url_that_is_wrong_is_told(
    postgres_database: PostgresDatabase, part: str, why: str
) -> None:
    right = make_url(postgres_database.app_url)
    wrong: Any = {part: f"{getattr(right, part)}x"}
    url = right.set(**wrong).render_as_string(hide_password=False)
    await nobody_is_let_in(postgres_database, url, why)


@pytest.mark.anyio
async def test_the_tenant_store_tells_it_in_the_same_words(
    postgres_database: PostgresDatabase,
) -> None:
    url = make_url(postgres_database.control_url).set(password="hunter2")
    engine = create_async_engine(url)
    with pytest.raises(BackendUnavailable) as caught:
        async with reach, engine.connect():
            pass
    assert str(caught.value) == (
        "The tenant store cannot be reached (28P01: the server refuses this user or password)."
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("NOLOGIN", "28000: the server refuses this role from here"),
        ("CONNECTION LIMIT 0", "53300: the server has no connection left for this role"),
    ],
)
async def test_a_role_that_may_not_come_in_is_told(
    postgres_database: PostgresDatabase, option: str, why: str
) -> None:
    # Another role than the app's: the first opening is to succeed.
    role = f"{postgres_database.name}_other"
    try:
        await postgres_database.admin(
            f"CREATE ROLE {role} {option} PASSWORD '{postgres_database.password}'"
        )
        if option != "NOLOGIN":
            await postgres_database.admin(f"ALTER ROLE {role} LOGIN")
        await nobody_is_let_in(postgres_database, postgres_database.url(role), why)
    finally:
        await postgres_database.admin(f"DROP ROLE IF EXISTS {role}")


@pytest.mark.parametrize(
    "statement",
    [
        select(Note),
        select(Note.text).where(Note.id == 1).order_by(Note.text).limit(3),
        select(func.count()).select_from(Note),
        select(func.lower(Note.text), case((Note.id > 1, "a"), else_="b")),
        select(Note.id).join(aliased(Note), Note.id == Note.id),
        union_all(select(Note.id), select(Note.id)),
        select(select(Note.id).scalar_subquery()),
        select(Note.id).where(Note.id.in_([1, 2]), Note.text.like("a(%")),
        text("SELECT id FROM notes").columns(Note.id),
        text('SELECT \'set_config(\' FROM "a""b(c".notes'),
        select(cast(Note.text, String(10)), func.count().over(partition_by=Note.text)),
    ],
)
def test_a_plain_query_leaves_nothing_on_its_connection(statement: object) -> None:
    assert leaves_nothing(str(statement))


@pytest.mark.parametrize(
    "statement",
    [
        None,
        text("SET search_path = public"),
        text("SELECT 1; SET search_path = public"),
        text("SELECT 1 INTO TEMPORARY t"),
        text("EXPLAIN SELECT 1"),
        text("SELECT $$a$$"),
        text("SELECT E'\\\\', set_config('a.b', 'c', false), E'\\\\'"),
        text("SELECT \"set_config\"('a.b', 'c', false)"),
        text("SELECT set_config ('a.b', 'c', false)"),
        text("SELECT 1 /* ( */"),
        text("""SELECT 1 AS "a'", set_config('a.b', 'c', false) AS "b'\""""),
        text("""SELECT 1 AS "a'", pg_advisory_lock(7) AS "b'\""""),
        text("""SELECT 'a"', set_config('a.b', 'c', false), 'b"'"""),
        text("SELECT $$'$$, set_config('a.b', 'c', false), $$'$$"),
        text("SELECT 1 /* ' */, set_config('a.b', 'c', false) /* ' */"),
        text("SELECT 'a"),
        select(func.util.lower(Note.text)),
        select(Note.id).prefix_with("set_config('a.b', 'c', false),"),
        select(Note.id.op("+ set_config('a.b', 'c', false)::int +")(1)),
        values(column("a"), name="v").data([(func.set_config("a.b", "c", 0),)]),
        select(literal_column("set_config('search_path', 'public', false)")),
        select(func.set_config("search_path", "public", 0)),
        select(func.pg_advisory_lock(1)),
        select(Note).where(func.pg_catalog.set_config("a.b", "c", 0) == "c"),
        select(Note.id).where(text("pg_advisory_lock(1) IS NULL")),
        select(func.my_own_function(Note.id)),
    ],
)
def test_what_nobody_knows_may_leave_something(statement: object) -> None:
    assert not leaves_nothing(str(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "PREPARE q AS SELECT 1",
        "deallocate all",
        "/* of the day */ PREPARE q AS SELECT 1",
        "-- of the day\nDISCARD ALL",
        "SELECT 1; /* and */ DEALLOCATE ALL",
        "DO $$ BEGIN EXECUTE 'PREPARE q AS SELECT 1'; END $$",
        """SELECT 1 AS "it's"; DEALLOCATE ALL; SELECT 'x'""",
        "SELECT $a$'$a$; DEALLOCATE ALL; SELECT $a$'$a$",
        "SELECT E'\\''; DEALLOCATE ALL; SELECT 'x'",
    ],
)
def test_what_the_driver_does_not_know_of_its_statements_is_noticed(statement: str) -> None:
    assert leaves_prepared(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT prepared, discarded FROM notes",
        "INSERT INTO notes (text) VALUES ('discard, or prepare')",
        'SELECT "discard" FROM notes',
    ],
)
def test_words_that_only_look_so_cost_no_connection(statement: str) -> None:
    assert not leaves_prepared(statement)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_a_session_has_a_connection_that_its_tenant_had_last(
    postgres_database: PostgresDatabase, kind: str
) -> None:
    """Where one is idle: the server has planned the tenant's statements there."""
    pid = text("SELECT pg_catalog.pg_backend_pid()")
    async with opened(
        postgres_database, database_pool_size=3, max_database_connections=5
    ) as isolation:
        tenants = await provisioned(isolation, "acme", "beta", "gamma")
        async with AsyncExitStack() as stack:
            first = {}
            for tenant in tenants:
                held = await stack.enter_async_context(getattr(isolation, kind)(tenant))
                first[tenant.identifier] = await held.scalar(pid)
        assert len(set(first.values())) == 3
        for turn in range(20):
            tenant = tenants[turn * 7 % 3]
            async with getattr(isolation, kind)(tenant) as held:
                assert await held.scalar(pid) == first[tenant.identifier]
        # A stranger gets what has been idle for longest.
        (delta,) = await provisioned(isolation, "delta")
        for tenant in (tenants[1], tenants[0], tenants[2]):
            async with getattr(isolation, kind)(tenant) as held:
                await held.scalar(pid)
        async with getattr(isolation, kind)(delta) as held:
            assert await held.scalar(pid) == first["beta"]
