"""Connections that break, are left half-way, or are cut at the worst moment."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from support.postgres import Note, opened, provisioned
from support.services.databases import fresh_database
from tenancy_core.errors import BackendUnavailable, CommitUnknown, IsolationError
from tenancy_postgres import connection as connection_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from support.services.round_trips import RoundTripCounter

pytestmark = pytest.mark.anyio

FULL = bool(os.environ.get("TENANCY_TEST_FULL"))

OPEN = """
    SELECT state FROM pg_stat_activity
     WHERE datname = current_database() AND usename = $1 AND state <> 'idle'
"""


async def texts(isolation: Any, tenant: Any, **how: Any) -> list[str]:
    async with isolation.session(tenant, **how) as session:
        return sorted(await session.scalars(select(Note.text)))


# -- P2 --------------------------------------------------------------------------------------------


@pytest.mark.storm
@pytest.mark.parametrize("mode", ["search_path", "qualified"])
async def test_P2_cancellations_at_random_moments_leave_nothing(
    postgres_database: PostgresDatabase,
    round_trip_counter: Callable[..., RoundTripCounter],
    mode: str,
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    # A cancelled request is struck while it waits for the wire, wherever that is.
    counter.round_trip_delay = 0.001
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    async with opened(
        postgres_database,
        url=counter.url,
        settings={"schema_mode": mode},
        database_pool_size=4,
        max_database_connections=6,
    ) as isolation:
        tenants = await provisioned(isolation, "acme", "beta", "gamma")

        async def request(tenant: Any, words: str) -> None:
            read_only = dice.random() < 0.3
            async with isolation.session(tenant, read_only=read_only) as session:
                if not read_only:
                    session.add(Note(text=f"{tenant.identifier}:{words}"))
                    await session.flush()
                found = await session.scalars(select(Note.text))
                assert {one.partition(":")[0] for one in found} <= {tenant.identifier}

        done = cancelled = 0
        for turn in range(2_000 if FULL else 300):
            burst = [
                asyncio.create_task(request(dice.choice(tenants), f"{turn}.{number}"))
                for number in range(5)
            ]
            await asyncio.sleep(dice.random() * 0.012)
            for task in burst:
                if dice.random() < 0.8:
                    task.cancel()
            outcomes = await asyncio.gather(*burst, return_exceptions=True)
            cancelled += sum(isinstance(one, asyncio.CancelledError) for one in outcomes)
            done += outcomes.count(None)
            others = [one for one in outcomes if one is not None]
            assert all(isinstance(one, asyncio.CancelledError) for one in others), (seed, others)
        assert cancelled > 100, "The storm struck nobody."
        assert done > 100, "The storm let nobody through."
        # No slot is lost: all of them can be had at once.
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(request(tenants[number % 3], "after"))
        assert await postgres_database.fetch(OPEN, postgres_database.app) == []
        # And none of them carries a tenant.
        probe = text(
            "SELECT pg_catalog.current_setting('search_path'),"
            " pg_catalog.current_setting('application_name')"
        )
        for _ in range(5):
            async with isolation.session(tenants[0]) as session:
                path, name = (await session.execute(probe)).one()
                mine = tenants[0].placement.name
                assert path == (mine if mode == "search_path" else '""')
                assert name == "tenancy/acme"


# -- P5 --------------------------------------------------------------------------------------------


async def test_P5_a_connection_that_was_closed_while_idle_is_replaced(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        for _ in range(8):
            assert await texts(isolation, acme) == []
            await postgres_database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = $1",
                postgres_database.app,
            )
            await until_noticed(isolation)


async def until_noticed(isolation: Any) -> None:
    """Wait until the event loop has seen the end of the idle connections."""
    async with asyncio.timeout(30):
        while any(
            not record.dbapi_connection.driver_connection.is_closed()
            for record in isolation._engine.pool._free
            if record.dbapi_connection is not None
        ):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_P5_a_half_open_link_shows_at_BEGIN_which_is_sent_once_more(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy], kind: str
) -> None:
    proxy = chaos_proxy(postgres_database.app_url)
    async with opened(postgres_database, url=proxy.url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        assert await texts(isolation, acme) == []
        for number in range(3):
            # The next message finds nobody, and nobody said so before.
            proxy.kill_when(b"BEGIN")
            async with getattr(isolation, kind)(acme) as opened_:
                await opened_.execute(insert(Note).values(text=f"line {number}"))
        assert await texts(isolation, acme) == ["line 0", "line 1", "line 2"]


async def test_P5_a_link_that_breaks_while_it_is_made_is_503(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(postgres_database.app_url)
    async with opened(postgres_database, url=proxy.url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        struck = proxy.kill_when(b"SCRAM")
        with pytest.raises(BackendUnavailable):
            await texts(isolation, acme)
        assert struck.fired
        assert await texts(isolation, acme) == []


@pytest.mark.parametrize("given_up", [False, True])
async def test_P5_a_link_that_is_silent_is_given_up(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy], given_up: bool
) -> None:
    """Nobody says that the other end is gone: neither a request nor its end waits for ever."""
    proxy = chaos_proxy(postgres_database.app_url)
    patience = 60 if given_up else 1
    async with opened(
        postgres_database, url=proxy.url, database_pool_timeout=patience
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        assert await texts(isolation, acme) == []
        proxy.half_open()
        async with asyncio.timeout(40):
            if given_up:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await texts(isolation, acme)
            else:
                with pytest.raises(BackendUnavailable):
                    await texts(isolation, acme)
            assert await texts(isolation, acme) == []


async def test_P5_a_link_that_breaks_later_is_503_and_nothing_is_written(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(postgres_database.app_url)
    async with opened(postgres_database, url=proxy.url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(BackendUnavailable):
            async with isolation.session(acme) as session:
                session.add(Note(text="lost"))
                await session.flush()
                proxy.reset_all()
                await session.scalars(select(Note.text))
        assert await texts(isolation, acme) == []


async def test_P5_the_pool_heals_when_the_server_comes_back(postgres_victim: Postgres) -> None:
    with fresh_database(postgres_victim) as database:
        async with opened(database, database_pool_timeout=5) as isolation:
            (acme,) = await provisioned(isolation, "acme")
            async with isolation.session(acme) as session:
                session.add(Note(text="kept"))
            postgres_victim.kill()
            for _ in range(2):
                with pytest.raises(BackendUnavailable):
                    await texts(isolation, acme)
            postgres_victim.start()
            assert await texts(isolation, acme) == ["kept"]


async def test_P5_a_server_that_only_reads_is_unavailable_for_writing(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        # As a standby has it, which took over the address.
        await postgres_database.admin(
            f'ALTER ROLE "{postgres_database.app}" SET default_transaction_read_only = on',
        )
        await postgres_database.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1",
            postgres_database.app,
        )
        await until_noticed(isolation)
        with pytest.raises(BackendUnavailable, match="25006"):
            async with isolation.session(acme) as session:
                session.add(Note(text="lost"))
        # A write in a session that declared to read is its own mistake.
        with pytest.raises(DBAPIError, match="read-only transaction"):
            async with isolation.session(acme, read_only=True) as session:
                session.add(Note(text="lost"))


# -- P4 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["search_path", "qualified"])
async def test_P4_a_pooler_gives_every_transaction_another_server(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], mode: str
) -> None:
    """Two services share two server connections; what one prepared is not where it looks next."""
    bouncer = pgbouncer(default_pool_size=2, max_prepared_statements=0)
    url = postgres_database.url(postgres_database.app, via=bouncer)
    many: dict[str, Any] = {"database_pool_size": 4, "max_database_connections": 6}
    settings = {"schema_mode": mode}
    async with (
        opened(postgres_database, url=url, settings=settings, **many) as one,
        opened(postgres_database, url=url, settings=settings, **many) as other,
    ):
        tenants = await provisioned(one, "acme", "beta", "gamma")

        async def request(isolation: Any, tenant: Any, number: int) -> None:
            words = f"{tenant.identifier}:{number}"
            async with isolation.session(tenant) as session:
                await session.execute(insert(Note).values(text=words))
                found = (await session.scalars(select(Note.text))).all()
            assert words in found
            assert {text.partition(":")[0] for text in found} == {tenant.identifier}

        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for number in range(300):
                isolation = (one, other)[number % 2]
                group.create_task(request(isolation, tenants[number % 3], number))
        for start, tenant in enumerate(tenants):
            mine = [f"{tenant.identifier}:{number}" for number in range(start, 300, 3)]
            assert await texts(other, tenant, read_only=True) == sorted(mine)


# -- COMMIT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_COMMIT_whose_answer_was_lost_is_unknown(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy], delivered: bool
) -> None:
    proxy = chaos_proxy(postgres_database.app_url)
    async with opened(postgres_database, url=proxy.url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        assert await texts(isolation, acme) == []
        strike = proxy.kill_after if delivered else proxy.kill_when
        strike(b"COMMIT")
        with pytest.raises(CommitUnknown):
            async with isolation.session(acme) as session:
                session.add(Note(text="perhaps"))
        assert await texts(isolation, acme) == (["perhaps"] if delivered else [])


@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_a_COMMIT_whose_answer_is_late_is_unknown(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy], kind: str
) -> None:
    """The driver gives up waiting, and still believes that the transaction is open."""
    proxy = chaos_proxy(postgres_database.app_url)
    async with opened(postgres_database, url=f"{proxy.url}?command_timeout=1") as isolation:
        (acme,) = await provisioned(isolation, "acme")
        assert await texts(isolation, acme) == []
        with pytest.raises(CommitUnknown):
            async with getattr(isolation, kind)(acme) as held:
                await held.execute(insert(Note).values(text="written"))
                proxy.latency_to_client = 5
        proxy.latency_to_client = 0
        assert await texts(isolation, acme) == ["written"]


@pytest.mark.parametrize("pooled", [False, True])
async def test_a_COMMIT_that_is_refused_says_why(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], pooled: bool
) -> None:
    url = None
    if pooled:
        bouncer = pgbouncer(default_pool_size=1, max_prepared_statements=0)
        url = postgres_database.url(postgres_database.app, via=bouncer)
    async with opened(postgres_database, url=url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        place = acme.placement.name
        await postgres_database.admin(
            f'ALTER TABLE "{place}".notes ADD UNIQUE (text) DEFERRABLE INITIALLY DEFERRED'
        )
        with pytest.raises(IntegrityError):
            async with isolation.session(acme) as session:
                session.add_all([Note(text="twice"), Note(text="twice")])
        assert await texts(isolation, acme) == []


async def test_a_block_that_swallows_an_error_does_not_seem_to_commit(
    postgres_database: PostgresDatabase,
) -> None:
    """PostgreSQL answers ROLLBACK to the COMMIT of a failed transaction, and no error."""
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(DBAPIError, match=r"ROLLBACK|rolled back|aborted"):
            async with isolation.connection(acme) as connection:
                await connection.execute(insert(Note).values(text="lost"))
                with pytest.raises(DBAPIError, match="division by zero"):
                    await connection.execute(text("SELECT 1/0"))
        assert await texts(isolation, acme) == []
        assert await postgres_database.fetch(OPEN, postgres_database.app) == []


async def test_what_cannot_be_cleaned_costs_the_connection_and_not_the_commit(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        for number in range(2):
            with monkeypatch.context() as patch:
                if number == 0:
                    failing = "SET tenancy.committed='%s';COMMIT;SELECT 1/0"
                    patch.setattr(connection_module, "_COMMIT", failing)
                async with isolation.session(acme) as session:
                    pids.append(await session.scalar(text("SELECT pg_catalog.pg_backend_pid()")))
                    session.add(Note(text=f"line {number}"))
        assert await texts(isolation, acme) == ["line 0", "line 1"]
    assert pids[0] != pids[1]


# -- L6 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
async def test_L6_AUTOCOMMIT_is_refused(
    postgres_database: PostgresDatabase, read_only: bool
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            async with isolation.session(acme, read_only=read_only) as session:
                await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
                await session.scalars(select(Note.text))
        assert await texts(isolation, acme) == []


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_other_isolation_levels_are_kept(
    postgres_database: PostgresDatabase, level: str
) -> None:
    probe = text("SELECT pg_catalog.current_setting('transaction_isolation')")
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            await session.connection(execution_options={"isolation_level": level})
            assert await session.scalar(probe) == level.lower()
        async with isolation.session(acme) as session:
            assert await session.scalar(probe) == "read committed"


async def test_a_declared_read_without_a_transaction_has_no_isolation_level(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, settings={"schema_mode": "qualified"}) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(IsolationError, match="without read_only"):
            async with isolation.session(acme, read_only=True) as session:
                await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
                await session.scalars(select(Note.text))
