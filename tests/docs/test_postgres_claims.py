"""What the pages say of PostgreSQL: where isolation ends, and what it costs."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import MetaData, Table, Text, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import Column

from support import postgres, scoped
from support.services.databases import fresh_database
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import GLOBAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from support.services.round_trips import RoundTripCounter
    from tenancy_core.tenant import Tenant

    Shop = tuple[Any, Tenant, Tenant]

pytestmark = pytest.mark.anyio

PID = text("SELECT pg_catalog.pg_backend_pid()")


@asynccontextmanager
async def schemas(database: PostgresDatabase, **options: Any) -> AsyncIterator[Shop]:
    """Open the strategy ``schema`` with two tenants that have a note each."""
    async with postgres.opened(database, **options) as isolation:
        acme, beta = await postgres.provisioned(isolation, "acme", "beta")
        for one in (acme, beta):
            async with isolation.session(one) as session:
                session.add(postgres.Note(text=f"{one.identifier}'s"))
        yield isolation, acme, beta
        for one in (acme, beta):
            await isolation.destroy(one)


@pytest.fixture
async def shop(postgres_database: PostgresDatabase) -> AsyncIterator[Shop]:
    """The strategy ``rls`` with two tenants that have a note each."""
    async with scoped.two_tenants(postgres_database) as found:
        yield found


async def ask(held: Any, sql: str) -> list[Any]:
    return list((await held.execute(text(sql))).scalars())


# -- L7: what is no barrier ------------------------------------------------------------------------


@pytest.mark.parametrize("roles", [False, True])
async def test_L7_injected_sql_reaches_other_schemas_also_with_a_role_for_each(
    postgres_server: Postgres, roles: bool
) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        async with schemas(database, settings={"schema_roles": roles}) as (isolation, acme, beta):
            place = beta.placement.name
            async with isolation.session(acme) as session:
                if roles:
                    # What a SELECT can do that somebody has put something into.
                    await ask(session, f"SELECT pg_catalog.set_config('role', '{place}', true)")
                assert await ask(session, f'SELECT text FROM "{place}".notes') == ["beta's"]  # noqa: S608 - ours


async def test_L7_injected_sql_reaches_other_tenants_rows(shop: Shop) -> None:
    isolation, acme, beta = shop
    async with isolation.session(acme) as session:
        assert await ask(session, "SELECT text FROM notes") == ["acme's"]
        await ask(session, f"SELECT set_config('app.tenant_id', '{beta.id}', true)")
        assert await ask(session, "SELECT text FROM notes") == ["beta's"]


async def test_L7_the_time_outs_of_a_plan_can_be_lifted(
    postgres_database: PostgresDatabase,
) -> None:
    plans = {"slow": {"statement_timeout": 0.2}}
    async with postgres.opened(postgres_database, plans=plans) as isolation:
        (acme,) = await postgres.provisioned(isolation, "acme", plan="slow")
        async with isolation.session(acme) as session:
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            await session.execute(text("SELECT pg_catalog.pg_sleep(0.4)"))


# -- L8: what runs with its owner's rights ---------------------------------------------------------


async def test_L8_a_view_shows_what_its_owner_may_see(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, _ = shop
    database = postgres_database
    shown = {
        "of_a_superuser": ["acme's", "beta's"],
        "of_the_owner": [],
        "of_whoever_asks": ["acme's"],
    }
    statements = [
        "CREATE VIEW of_a_superuser AS SELECT text FROM notes",
        "CREATE VIEW of_the_owner AS SELECT text FROM notes",
        f"ALTER VIEW of_the_owner OWNER TO {database.owner}",
        "CREATE VIEW of_whoever_asks WITH (security_invoker = true) AS SELECT text FROM notes",
        f"GRANT SELECT ON of_a_superuser, of_the_owner, of_whoever_asks TO {database.app}",
    ]
    await database.admin(*statements)
    async with isolation.session(acme) as session:
        for name, rows in shown.items():
            assert sorted(await ask(session, f"SELECT text FROM {name}")) == rows  # noqa: S608 - ours


# -- L10, L11: what row policies do not cover ------------------------------------------------------


async def test_L10_large_objects_are_the_roles_and_no_tenants(shop: Shop) -> None:
    isolation, acme, beta = shop
    async with isolation.session(acme) as session:
        (number,) = await ask(session, "SELECT lo_from_bytea(0, 'acme''s')")
    async with isolation.session(beta) as session:
        assert await ask(session, f"SELECT lo_get({number})") == [b"acme's"]


async def test_L10_numbers_tell_how_many_rows_others_write(shop: Shop) -> None:
    isolation, acme, beta = shop
    numbers = []
    for one in (acme, beta, acme):
        async with isolation.session(one) as session:
            note = scoped.Note(text="new")
            session.add(note)
            await session.flush()
            numbers.append(note.id)
            await session.rollback()
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


async def test_L10_a_channel_is_the_databases(shop: Shop) -> None:
    isolation, acme, beta = shop
    heard: list[str] = []
    arrived = asyncio.Event()

    def hear(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
        heard.append(payload)
        arrived.set()

    async with isolation.session(beta) as listening:
        raw = await (await listening.connection()).get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.add_listener("orders", hear)
        # It begins with the commit. Ours would end it in the same message.
        await driver.execute("COMMIT")
        async with isolation.session(acme) as session:
            await ask(session, "SELECT CAST(pg_notify('orders', 'acme''s') AS text)")
        async with asyncio.timeout(30):
            await arrived.wait()
        await driver.remove_listener("orders", hear)
        await driver.execute("BEGIN")
    assert heard == ["acme's"]


async def test_L11_sessions_of_one_role_see_and_stop_one_another(shop: Shop) -> None:
    isolation, acme, beta = shop
    async with isolation.session(beta) as running:
        (pid,) = await ask(running, "SELECT pg_backend_pid()")
        await running.scalars(select(scoped.Note.text).where(scoped.Note.id == 1))
        async with isolation.session(acme) as session:
            activity = f"FROM pg_stat_activity WHERE pid = {pid}"
            assert await ask(session, f"SELECT application_name {activity}") == ["tenancy/beta"]
            (query,) = await ask(session, f"SELECT query {activity}")
            assert query.startswith("SELECT notes.text")
            assert await ask(session, f"SELECT pg_cancel_backend({pid})") == [True]


async def test_L11_with_a_role_for_each_they_do_not_see_the_statements(
    postgres_server: Postgres,
) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        many: dict[str, Any] = {"database_pool_size": 2, "max_database_connections": 4}
        settings = {"schema_roles": True}
        async with (
            schemas(database, settings=settings, **many) as (isolation, acme, beta),
            isolation.session(beta) as running,
            isolation.session(acme) as session,
        ):
            (pid,) = await ask(running, "SELECT pg_catalog.pg_backend_pid()")
            activity = f"FROM pg_catalog.pg_stat_activity WHERE pid = {pid}"
            assert await ask(session, f"SELECT application_name {activity}") == ["tenancy/beta"]
            assert await ask(session, f"SELECT query {activity}") == ["<insufficient privilege>"]
            # Or the sessions would keep the schemas from being removed.
            await running.rollback()
            await session.rollback()


async def test_L11_advisory_locks_are_the_databases(shop: Shop) -> None:
    isolation, acme, beta = shop
    async with isolation.session(beta) as holding:
        await ask(holding, "SELECT CAST(pg_advisory_xact_lock(5) AS text)")
        async with isolation.session(acme) as session:
            assert await ask(session, "SELECT pg_try_advisory_xact_lock(5)") == [False]


async def test_L11_EXPLAIN_estimates_from_all_tenants_rows(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    async with isolation.session(acme) as session:
        before = await ask(session, "EXPLAIN SELECT * FROM notes WHERE id > 0")
    await postgres_database.admin(
        "INSERT INTO notes (tenant_id, id, text)"  # noqa: S608 - ours
        f" SELECT '{beta.id}', n, 'line ' || n FROM generate_series(1000, 20000) AS n",
        "ANALYZE notes",
    )
    async with isolation.session(acme) as session:
        assert await ask(session, "EXPLAIN SELECT * FROM notes WHERE id > 0") != before


# -- P1: what stays on a connection ----------------------------------------------------------------


ONE: dict[str, Any] = {"database_pool_size": 1, "max_database_connections": 3}


@pytest.mark.parametrize("kind", ["schema", "rls"])
@pytest.mark.parametrize("prepare", ["{}", "DO $$ BEGIN EXECUTE '{}'; END $$"])
async def test_P1_a_statement_that_was_prepared_by_hand_goes_with_its_connection(
    postgres_database: PostgresDatabase, kind: str, prepare: str
) -> None:
    opening = schemas if kind == "schema" else scoped.two_tenants
    async with opening(postgres_database, **ONE) as (isolation, acme, beta):
        async with isolation.session(acme) as session:
            first = await session.scalar(PID)
            await session.execute(text(prepare.format("PREPARE mine AS SELECT text FROM notes")))
        async with isolation.session(beta) as session:
            assert await session.scalar(PID) != first
            await session.execute(text("PREPARE mine AS SELECT 1"))


@pytest.mark.parametrize("kind", ["schema", "rls"])
async def test_P1_one_that_a_block_of_code_prepared_stays_and_reads_the_next_tenants_rows(
    postgres_database: PostgresDatabase, kind: str
) -> None:
    hidden = "DO $$ BEGIN EXECUTE 'PRE' || 'PARE mine AS SELECT text FROM notes'; END $$"
    opening = schemas if kind == "schema" else scoped.two_tenants
    async with opening(postgres_database, **ONE) as (isolation, acme, beta):
        async with isolation.session(acme) as session:
            first = await session.scalar(PID)
            await session.execute(text(hidden))
        async with isolation.session(beta) as session:
            assert await session.scalar(PID) == first
            raw = await (await session.connection()).get_raw_connection()
            driver: Any = raw.driver_connection
            assert [tuple(row) for row in await driver.fetch("EXECUTE mine")] == [("beta's",)]
            with pytest.raises(asyncpg.DuplicatePreparedStatementError):
                await driver.execute("PREPARE mine AS SELECT 1")
            await session.rollback()


# -- what is shared, and what is not ---------------------------------------------------------------


async def test_a_table_without_a_schema_is_each_tenants_own_under_schema(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    words = Table("words", metadata, Column("word", Text, primary_key=True), info=GLOBAL)
    async with postgres.opened(postgres_database, metadata=metadata) as isolation:
        acme, beta = await postgres.provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            await session.execute(words.insert().values(word="acme's"))
        async with isolation.session(beta) as session:
            assert (await session.scalars(select(words.c.word))).all() == []


# -- what goes wrong first -------------------------------------------------------------------------


async def test_without_USAGE_on_its_schema_a_table_does_not_exist(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, _ = shop
    app = postgres_database.app
    await postgres_database.admin(f"REVOKE USAGE ON SCHEMA public FROM {app}")
    with pytest.raises(ProgrammingError, match='relation "notes" does not exist'):
        async with isolation.session(acme) as session:
            await ask(session, "SELECT text FROM notes")
    await postgres_database.admin(f"GRANT USAGE ON SCHEMA public TO {app}")
    async with isolation.session(acme) as session:
        assert await ask(session, "SELECT text FROM notes") == ["acme's"]


async def test_temporary_tables_are_for_who_was_granted_them(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, _ = shop
    made = text("CREATE TEMPORARY TABLE scratch (id integer)")
    with pytest.raises(ProgrammingError, match="permission denied to create temporary tables"):
        async with isolation.session(acme) as session:
            await session.execute(made)
    database = postgres_database
    await database.admin(f"GRANT TEMPORARY ON DATABASE {database.name} TO {database.app}")
    async with isolation.session(acme) as session:
        await session.execute(made)


async def test_a_pooler_in_statement_mode_is_told_when_it_opens(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(pool_mode="statement")
    url = postgres_database.url(postgres_database.app, via=pooler)
    with pytest.raises(BackendUnavailable, match="08003"):
        async with postgres.opened(postgres_database, url=url):
            pytest.fail("it opened")


async def test_statements_that_are_kept_and_that_the_pooler_does_not_track_are_503(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(pool_mode="transaction", default_pool_size=2, max_prepared_statements=0)
    url = postgres_database.url(postgres_database.app, via=pooler)
    settings = {"prepared_statements": "on"}
    notes = select(postgres.Note.text)
    async with postgres.opened(postgres_database, url=url, settings=settings) as isolation:
        (acme,) = await postgres.provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            await session.execute(notes)
            (first,) = await ask(session, "SELECT pg_catalog.pg_backend_pid()")
        other = await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)
        async with other.transaction():
            # So the session has the pooler's other server connection.
            assert await other.fetchval("SELECT pg_catalog.pg_backend_pid()") == first
            with pytest.raises(BackendUnavailable, match="26000"):
                async with isolation.session(acme) as session:
                    await session.execute(notes)
        await other.close()


# -- a link without an answer ----------------------------------------------------------------------


async def test_command_timeout_in_the_url_ends_waiting_for_a_server_that_is_silent(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(postgres_database.app_url)
    url = f"{proxy.url}?command_timeout=0.5"
    # So long that it is not what ends the waiting, as it would at BEGIN.
    patient = {"database_pool_timeout": 90}
    async with postgres.opened(postgres_database, url=url, **patient) as isolation:
        (acme,) = await postgres.provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(postgres.Note))).all() == []
        with pytest.raises(BackendUnavailable, match="TimeoutError"):
            async with asyncio.timeout(60), isolation.session(acme) as session:
                await session.scalars(select(postgres.Note))
                proxy.half_open()
                await session.scalars(select(postgres.Note))
        # And the next one has another connection.
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(postgres.Note))).all() == []


# -- what it costs ---------------------------------------------------------------------------------


async def test_a_session_of_rls_takes_three(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    one = {"database_pool_size": 1, "max_database_connections": 3}
    async with scoped.two_tenants(postgres_database, database_url=counter.url, **one) as found:
        isolation, *tenants = found
        for turn in range(40):
            if turn == 20:
                counter.reset()
            async with isolation.session(tenants[turn % 2], read_only=turn % 3 == 0) as session:
                await session.execute(select(scoped.Note.text))
        assert counter.round_trips == 20 * 3, counter.counts


async def test_the_ping_of_sqlalchemy_takes_three(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    taken = []
    for pre_ping in (False, True):
        engine = create_async_engine(counter.url, pool_size=1, pool_pre_ping=pre_ping)
        for _ in range(3):
            counter.reset()
            async with engine.begin() as connection:
                await connection.execute(text("SELECT 1"))
        taken.append(counter.round_trips)
        await engine.dispose()
    assert taken == [3, 6], counter.counts
