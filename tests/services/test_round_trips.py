"""Counting round trips, and making each of them take its time."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from support.services.observing import wait_for
from support.services.round_trips import RoundTripCounter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from support.services.redis import Redis

pytestmark = pytest.mark.anyio

Counter = RoundTripCounter


@pytest.fixture
def counter(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., Counter]
) -> Counter:
    return round_trip_counter(postgres_database.app_url)


@pytest.fixture
async def connection(counter: Counter) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(counter)
    yield connection
    await connection.close()


async def connect(counter: Counter, **options: Any) -> asyncpg.Connection:
    return await asyncpg.connect(counter.url.replace("+asyncpg", ""), **options)


async def test_start_up_is_counted_apart(counter: Counter, connection: asyncpg.Connection) -> None:
    counts = counter.counts
    assert counts.round_trips == 0, counts
    # The question for TLS, the start-up itself, and two messages of SCRAM.
    assert counts.startup_round_trips == 4, counts
    assert counts.kinds == {"SSLRequest": 1, "StartupMessage": 1, "Password": 2}, counts
    assert counts.connections == 1


@pytest.mark.parametrize("statements", [1, 2, 5])
async def test_a_simple_query_is_one_round_trip_however_many_statements_it_has(
    statements: int, counter: Counter, connection: asyncpg.Connection
) -> None:
    counter.reset()
    await connection.execute("; ".join(["SELECT 1"] * statements))
    assert counter.round_trips == 1, counter.counts
    assert counter.counts.kinds == {"Query": 1}


async def test_preparing_costs_a_round_trip_once(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    counter.reset()
    await connection.fetchval("SELECT $1::int", 1)
    first = counter.reset()
    await connection.fetchval("SELECT $1::int", 2)
    assert first.round_trips == 2, first
    assert first.kinds["Parse"] == 1, first
    assert counter.round_trips == 1, counter.counts
    assert counter.counts.kinds == {"Bind": 1, "Execute": 1, "Sync": 1}, counter.counts


async def test_a_transaction_costs_two_more(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    counter.reset()
    async with connection.transaction():
        await connection.execute("SELECT 1")
        await connection.execute("SELECT 2")
    counts = counter.counts
    assert counts.round_trips == 4, counts
    assert counts.statements == ["BEGIN;", "SELECT 1", "SELECT 2", "COMMIT;"]
    assert [message.round_trip for message in counts.messages] == [1, 2, 3, 4]


async def test_connections_are_counted_together_and_told_apart(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    second = await connect(counter)
    counter.reset()
    await connection.execute("SELECT 1")
    await second.execute("SELECT 2")
    counts = counter.counts
    assert counts.round_trips == 2, counts
    assert [(message.connection, message.sql) for message in counts.messages] == [
        (1, "SELECT 1"),
        (2, "SELECT 2"),
    ]
    await second.close()


async def test_what_a_failed_test_prints_has_the_sql_and_no_password(
    counter: Counter, connection: asyncpg.Connection, postgres_database: PostgresDatabase
) -> None:
    await connection.execute("SELECT 'élan'")
    text = str(counter.counts)
    assert "1 round trips (and 4 of start-up)" in text
    assert "#1   1 Query SELECT 'élan'" in text
    assert postgres_database.password not in text


async def test_large_messages_are_cut_where_they_end(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    counter.reset()
    long = "x" * 1_000_000
    assert await connection.fetchval("SELECT length($1)", long) == len(long)
    answer = await connection.fetchval("SELECT repeat('y', 3000000)")
    assert len(answer) == 3_000_000
    counts = counter.counts
    assert counts.kinds["Bind"] == 2
    assert counts.bytes_to_server > 1_000_000
    assert counts.bytes_to_client > 3_000_000
    # One each: ParseComplete and two descriptions; BindComplete, a row, its end and ReadyForQuery.
    assert counts.messages_to_client == 2 * 7


async def test_copies_of_the_counts_stay_what_they_are(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    before = counter.counts
    await connection.execute("SELECT 1")
    assert before.statements == []
    assert counter.counts.statements == ["SELECT 1"]


async def test_encrypted_connections_are_counted_and_not_read(
    postgres_tls_server: Postgres, round_trip_counter: Callable[..., Counter]
) -> None:
    assert postgres_tls_server.certificates is not None
    counter = round_trip_counter(postgres_tls_server.url())
    context = postgres_tls_server.certificates.client_context()
    connection = await connect(counter, ssl=context)
    assert counter.counts.kinds == {"SSLRequest": 1}
    counter.reset()
    await connection.execute("SELECT 1")
    assert counter.round_trips == 1
    assert counter.counts.messages == []
    await connection.close()


def test_any_protocol_can_be_counted(
    redis_server: Redis, round_trip_counter: Callable[..., Counter]
) -> None:
    counter = round_trip_counter((redis_server.host, redis_server.port), protocol="any")

    with socket.create_connection((counter.host, counter.port), 60) as client:
        for _ in range(3):
            client.sendall(b"PING\r\n")
            client.recv(99)
    assert counter.round_trips == 3
    assert counter.counts.bytes_to_server == 18


def test_packets_in_one_direction_are_one_round_trip(
    redis_server: Redis, round_trip_counter: Callable[..., Counter]
) -> None:
    counter = round_trip_counter((redis_server.host, redis_server.port), protocol="any")
    with socket.create_connection((counter.host, counter.port), 60) as client:
        client.sendall(b"PI")
        wait_for(lambda: counter.counts.bytes_to_server == 2, "the first packet")
        client.sendall(b"NG\r\n")
        client.recv(99)
    assert counter.round_trips == 1


@pytest.mark.parametrize("delay", [0.001, 0.02])
async def test_every_round_trip_takes_longer_by_what_is_asked_for(
    delay: float, counter: Counter, connection: asyncpg.Connection
) -> None:
    async def times() -> list[float]:
        found = []
        for _ in range(40):
            begin = time.perf_counter()
            await connection.execute("SELECT 1")
            found.append(time.perf_counter() - begin)
        return found

    usual = statistics.median(await times())
    counter.round_trip_delay = delay
    # What a busy machine adds is not the proxy's: the fastest quarter of a stretch in which the
    # machine was quiet shows what it does itself.
    quarters: list[float] = []
    while not quarters or (len(quarters) < 20 and min(quarters) - usual >= delay + 0.002):
        slow = await times()
        assert min(slow) > delay
        quarters.append(statistics.quantiles(slow, n=4)[0])
    assert min(quarters) - usual < delay + 0.002
    counter.round_trip_delay = 0
    assert min(await times()) < delay


async def test_delayed_bytes_keep_their_order(
    counter: Counter, connection: asyncpg.Connection
) -> None:
    counter.round_trip_delay = 0.01
    rows = await connection.fetch("SELECT n, repeat('x', 1000) FROM generate_series(1, 2000) AS n")
    assert [row["n"] for row in rows] == list(range(1, 2001))


async def test_many_connections_at_once(counter: Counter, connection: asyncpg.Connection) -> None:
    connections = [await connect(counter) for _ in range(50)]
    counter.reset()
    counter.round_trip_delay = 0.002

    answers = await asyncio.gather(
        *(one.fetchval("SELECT $1::int", number) for number, one in enumerate(connections))
    )
    assert answers == list(range(50))
    assert counter.round_trips == 100
    counter.round_trip_delay = 0
    for one in connections:
        one.terminate()
