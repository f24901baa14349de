"""PgBouncer before the shared PostgreSQL: who may log in, and how connections are shared."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from support.services.errors import ServiceUnavailableError
from support.services.finding import find
from support.services.pgbouncer import PREPARES_FROM, PgBouncer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asyncpg.prepared_stmt import PreparedStatement

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio

BACKEND = "SELECT pg_backend_pid()"
NO_SERVER = "query_wait_timeout"


async def connect(url: str, **options: Any) -> asyncpg.Connection:
    settings = {"statement_cache_size": 0, "timeout": 60, **options}
    return await asyncpg.connect(url.replace("+asyncpg", ""), **settings)


def app_url(database: PostgresDatabase, bouncer: PgBouncer) -> str:
    return database.url(database.app, via=bouncer)


async def test_every_role_of_a_database_can_log_in(
    postgres_database: PostgresDatabase, pgbouncer_server: PgBouncer
) -> None:
    database = postgres_database
    for role in (database.owner, database.control, database.app):
        connection = await connect(database.url(role, via=pgbouncer_server))
        assert await connection.fetchval("SELECT current_user") == role
        await connection.close()


async def test_a_wrong_password_is_refused(
    postgres_database: PostgresDatabase, pgbouncer_server: PgBouncer
) -> None:
    url = pgbouncer_server.url(
        user=postgres_database.app, password="wrong", database=postgres_database.name
    )
    with pytest.raises(asyncpg.PostgresError, match="authentication failed"):
        await connect(url)


async def test_the_superuser_is_the_admin(pgbouncer_server: PgBouncer) -> None:
    console = await connect(pgbouncer_server.url(database="pgbouncer"))
    await console.execute("SHOW POOLS")
    await console.close()


@pytest.mark.parametrize(("mode", "shared"), [("transaction", True), ("session", False)])
async def test_the_pool_mode_says_whether_clients_share_a_server(
    mode: str,
    shared: object,
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
) -> None:
    bouncer = pgbouncer(pool_mode=mode, default_pool_size=1, options={"query_wait_timeout": 1})
    url = app_url(postgres_database, bouncer)
    first, second = await connect(url), await connect(url)
    backend = await first.fetchval(BACKEND)
    if shared:
        assert await second.fetchval(BACKEND) == backend
    else:
        with pytest.raises(asyncpg.PostgresError, match=NO_SERVER):  # the only one is taken
            await second.fetchval(BACKEND)
    first.terminate()
    second.terminate()


async def test_the_pool_size_bounds_the_servers_of_a_role(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=2, options={"query_wait_timeout": 1})
    connections = [await connect(app_url(postgres_database, bouncer)) for _ in range(3)]
    transactions = [connection.transaction() for connection in connections]
    for transaction in transactions[:2]:
        await transaction.start()
    with pytest.raises(asyncpg.PostgresError, match=NO_SERVER):
        await transactions[2].start()
    servers = await postgres_database.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", postgres_database.app
    )
    assert servers == 2
    for connection in connections:
        connection.terminate()


@asynccontextmanager
async def prepared_on_another_server(
    database: PostgresDatabase, bouncer: PgBouncer
) -> AsyncIterator[tuple[PreparedStatement[Any], int]]:
    """Yield a statement whose client gets the other of two servers now, and who prepared it."""
    url = app_url(database, bouncer)
    client, other = await connect(url), await connect(url)
    statement = await client.prepare(BACKEND, name="one")
    backend = await statement.fetchval()
    async with other.transaction():
        assert await other.fetchval(BACKEND) == backend  # now the client gets the second server
        yield statement, backend
    client.terminate()
    await other.close()


async def test_without_prepared_statements_those_of_another_server_are_missing(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=2, max_prepared_statements=0)
    async with prepared_on_another_server(postgres_database, bouncer) as (statement, _):
        with pytest.raises(asyncpg.InvalidSQLStatementNameError):
            await statement.fetchval()


def test_who_asks_for_prepared_statements_gets_a_pgbouncer_that_carries_them(
    pgbouncer: Callable[..., PgBouncer],
) -> None:
    assert pgbouncer(max_prepared_statements=10).version >= PREPARES_FROM


def test_who_does_not_ask_keeps_what_is_found(pgbouncer: Callable[..., PgBouncer]) -> None:
    pgbouncer(max_prepared_statements=10)
    for bouncer in (pgbouncer(), pgbouncer(max_prepared_statements=0)):
        assert bouncer.binaries is find("pgbouncer")


def test_an_older_pgbouncer_that_is_given_is_refused(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PgBouncer, "version", (1, 20))
    given = find("pgbouncer")
    bouncer = PgBouncer(postgres_server, max_prepared_statements=10, binaries=given)
    with pytest.raises(ServiceUnavailableError, match=r"1\.20 .*not know max_prepared_statements"):
        bouncer.start()
    bouncer.close()


async def test_two_clients_keep_their_statements_on_one_server(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """Although both give them the same name, and the one server has had another's in between."""
    bouncer = pgbouncer(default_pool_size=1, max_prepared_statements=10)
    url = app_url(postgres_database, bouncer)
    clients = [await connect(url) for _ in range(2)]
    statements = []
    for number, client in enumerate(clients):
        async with client.transaction():  # asyncpg's `prepare` alone keeps the server: no Sync
            text = f"SELECT {number}, pg_backend_pid(), $1::integer"
            statements.append(await client.prepare(text, name="one"))
    backends = set()
    for turn in range(10):
        for number, client in enumerate(clients):
            async with client.transaction():
                row = await statements[number].fetchrow(turn)
                assert row is not None
                assert (row[0], row[2]) == (number, turn)
                backends.add(row[1])
    assert len(backends) == 1
    for client in clients:
        await client.close()


async def test_prepared_statements_follow_their_client_from_server_to_server(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=2, max_prepared_statements=10)
    async with prepared_on_another_server(postgres_database, bouncer) as (statement, backend):
        assert await statement.fetchval() not in {backend, None}


async def test_more_statements_than_a_server_keeps_are_prepared_again(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=1, max_prepared_statements=2)
    client = await connect(app_url(postgres_database, bouncer))
    statements = [await client.prepare(f"SELECT {number}") for number in range(6)]
    for _ in range(2):
        assert [await one.fetchval() for one in statements] == list(range(6))
    await client.close()


async def test_roles_in_the_user_list_need_no_look_up(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    database = postgres_database
    bouncer = pgbouncer(
        users={database.app: database.password},
        options={"auth_query": "SELECT NULL::text, NULL::text WHERE $1 = ''"},
    )
    connection = await connect(app_url(database, bouncer))
    assert await connection.fetchval("SELECT current_user") == database.app
    await connection.close()
    with pytest.raises(asyncpg.PostgresError, match=r"no such user|authentication failed"):
        await connect(database.url(database.owner, via=bouncer))


async def test_a_killed_pgbouncer_is_restarted_on_its_port(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer()
    connection = await connect(app_url(postgres_database, bouncer))
    bouncer.restart(crash=True)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval(BACKEND)
    connection.terminate()
    connection = await connect(app_url(postgres_database, bouncer))
    assert await connection.fetchval(BACKEND)
    await connection.close()
