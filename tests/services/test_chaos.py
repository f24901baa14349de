"""A proxy that a test makes slow, silent or fatal: what either end sees of it."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg
import pytest

from support.services.chaos import ChaosProxy
from support.services.observing import wait_for
from support.services.ports import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

Connect = Callable[[], socket.socket]

PATIENCE = 60
MOMENT = 0.15
"""Seconds in which something must *not* happen."""


class Echo:
    """A server that sends back what it gets, and notes what it got and how each client ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server((LOOPBACK, 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.got = b""
        self.ends: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(
                    target=self._serve, args=self.listener.accept()[:1], daemon=True
                ).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    self.got += data
                    client.sendall(data)
                self.ends.append("end")
            except OSError as error:
                self.ends.append(type(error).__name__)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo, chaos_proxy: Callable[..., ChaosProxy]) -> ChaosProxy:
    return chaos_proxy(echo.address)


@pytest.fixture
def connect(proxy: ChaosProxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def new() -> socket.socket:
        opened.append(socket.create_connection((proxy.host, proxy.port), PATIENCE))
        return opened[-1]

    yield new
    for client in opened:
        client.close()


def say(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := client.recv(65536)):
        answer += more
    return answer


def silent(client: socket.socket, seconds: float = MOMENT) -> bool:
    return not select.select([client], [], [], seconds)[0]


def test_bytes_go_through_unchanged(proxy: ChaosProxy, connect: Connect) -> None:
    client = connect()
    data = bytes(range(256)) * 8192
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    answer = b""
    while len(answer) < len(data):
        answer += client.recv(65536)
    sender.join()
    assert answer == data
    assert proxy.connections == proxy.open_connections == 1


def test_an_end_is_passed_on_in_both_directions(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client = connect()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    answer = b""
    while more := client.recv(99):
        answer += more
    assert answer == b"last words"
    assert echo.ends == ["end"]
    wait_for(lambda: proxy.open_connections == 0, "the end of the connection")


def test_slow_in_either_direction(proxy: ChaosProxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    say(client, b"x")
    for direction in ("latency_to_server", "latency_to_client"):
        setattr(proxy, direction, 0.1)
        begin = time.monotonic()
        say(client, b"x")
        assert time.monotonic() - begin >= 0.1
        setattr(proxy, direction, 0.0)
    proxy.latency = 0.1
    assert proxy.latency == 0.1
    begin = time.monotonic()
    say(client, b"x")
    assert time.monotonic() - begin >= 0.2


def test_latency_is_no_limit_to_what_is_under_way(proxy: ChaosProxy, connect: Connect) -> None:
    client = connect()
    proxy.latency_to_server = 0.2
    begin = time.monotonic()
    for _ in range(20):
        client.sendall(b"x")
        time.sleep(0.005)
    answer = b""
    while len(answer) < 20:
        answer += client.recv(99)
    assert time.monotonic() - begin < 20 * 0.2


def test_what_was_sent_first_arrives_first(proxy: ChaosProxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.latency_to_server = 0.5
    client.sendall(b"first ")
    wait_for(lambda: any(link.server.held for link in [*proxy._links]), "the first packet")
    proxy.latency_to_server = 0.0
    client.sendall(b"second")
    answer = b""
    while len(answer) < len(b"first second"):
        answer += client.recv(99)
    assert answer == b"first second"


def test_what_is_under_way_is_bounded(chaos_proxy: Callable[..., ChaosProxy]) -> None:
    with socket.create_server((LOOPBACK, 0)) as deaf:
        proxy = chaos_proxy(deaf.getsockname())
        with socket.create_connection((proxy.host, proxy.port), PATIENCE) as client:
            client.settimeout(0)
            sent = 0
            while select.select([], [client], [], MOMENT)[1]:
                sent += client.send(bytes(1 << 20))
                assert sent < 100 << 20


def test_silence_keeps_what_is_said_until_it_ends(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client = connect()
    say(client, b"before ")
    proxy.blackhole = True
    assert proxy.blackhole
    client.sendall(b"during ")
    other = connect()  # the kernel answers for the dead
    other.sendall(b"other")
    assert silent(client)
    assert silent(other, 0)
    assert echo.got == b"before "
    proxy.blackhole = False
    assert client.recv(99) == b"during "
    assert other.recv(99) == b"other"


def test_in_silence_not_even_an_end_is_heard(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client = connect()
    say(client, b"x")
    proxy.blackhole = True
    client.close()
    time.sleep(MOMENT)
    assert echo.ends == []
    proxy.blackhole = False
    wait_for(lambda: echo.ends == ["end"], "the end of the connection")


def test_kill_when_keeps_the_bytes_from_the_server(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client, bystander = connect(), connect()
    say(bystander, b"y")
    trigger = proxy.kill_when(b"COMMIT")
    say(client, b"INSERT")
    assert not trigger.fired
    client.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        client.recv(99)
    assert trigger.fired
    wait_for(lambda: echo.ends == ["ConnectionResetError"], "the server's reset")
    assert echo.got == b"yINSERT"
    assert say(bystander, b"COMMIT") == b"COMMIT"  # once is enough


def test_kill_when_sees_what_comes_in_two_packets(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client = connect()
    trigger = proxy.kill_when(b"COMMIT")
    assert say(client, b"COM") == b"COM"
    assert say(client, b"M") == b"M"
    client.sendall(b"COM")
    assert say(client, b"") == b""
    client.sendall(b"MIT")
    assert trigger.wait()


def test_a_kill_can_wait_for_the_nth_time(proxy: ChaosProxy, connect: Connect) -> None:
    first, second = connect(), connect()
    trigger = proxy.kill_when(b"COMMIT", times=3)
    assert say(first, b"COMMIT") == b"COMMIT"
    assert say(second, b"COMMIT") == b"COMMIT"
    assert not trigger.fired
    second.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        second.recv(99)
    assert say(first, b"x") == b"x"


def test_kill_after_lets_the_server_do_it_and_keeps_the_answer(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    client = connect()
    trigger = proxy.kill_after(b"COMMIT")
    client.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        client.recv(99)
    assert trigger.fired
    assert echo.got == b"COMMIT"


def test_reset_all_cuts_every_connection_and_later_ones_work(
    proxy: ChaosProxy, connect: Connect, echo: Echo
) -> None:
    clients = [connect() for _ in range(3)]
    for client in clients:
        say(client, b"x")
    proxy.reset_all()
    assert proxy.open_connections == 0
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(99)
    wait_for(lambda: echo.ends == ["ConnectionResetError"] * 3, "the server's resets")
    assert say(connect(), b"x") == b"x"


def test_refused_clients_are_reset_and_others_stay(proxy: ChaosProxy, connect: Connect) -> None:
    client = connect()
    say(client, b"x")
    proxy.refuse = True
    with pytest.raises(ConnectionResetError):
        connect().recv(99)
    assert proxy.connections == 1
    assert say(client, b"x") == b"x"
    proxy.refuse = False
    assert say(connect(), b"x") == b"x"


def test_half_open_clients_speak_to_nobody(proxy: ChaosProxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    say(client, b"before")
    proxy.half_open()
    wait_for(lambda: len(echo.ends) == 1, "the end of the server's connection")
    for _ in range(50):
        client.sendall(b"after" * 1000)  # swallowed: no buffer fills up
    assert silent(client)
    assert echo.got == b"before"
    assert say(connect(), b"x") == b"x"
    client.close()
    wait_for(lambda: proxy.open_connections == 1, "the end of the client's connection")


def test_a_server_that_is_not_there_is_a_reset(
    chaos_proxy: Callable[..., ChaosProxy],
) -> None:
    proxy = chaos_proxy((LOOPBACK, free_port()))
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection((proxy.host, proxy.port), PATIENCE) as client,
    ):
        client.recv(99)


def test_a_reset_of_the_server_is_one_of_the_client(
    chaos_proxy: Callable[..., ChaosProxy], echo: Echo, proxy: ChaosProxy
) -> None:
    outer = chaos_proxy((proxy.host, proxy.port))
    with socket.create_connection((outer.host, outer.port), PATIENCE) as client:
        say(client, b"x")
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            client.recv(99)


def test_a_closed_proxy_is_gone(echo: Echo) -> None:
    with ChaosProxy(echo.address) as proxy:
        client = socket.create_connection((proxy.host, proxy.port), PATIENCE)
        say(client, b"x")
    assert client.recv(99) == b""
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port), PATIENCE)
    proxy.close()
    assert not [thread for thread in threading.enumerate() if str(proxy.port) in thread.name]


def test_a_url_keeps_all_but_the_address(proxy: ChaosProxy) -> None:
    url = "postgresql+asyncpg://a:p%40%3A%2F@db.example:5432/shop?x=1"
    port = proxy.port
    assert proxy.through(url) == f"postgresql+asyncpg://a:p%40%3A%2F@127.0.0.1:{port}/shop?x=1"


# --- with a database behind it ------------------------------------------------------------------


@pytest.fixture
def database_proxy(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> ChaosProxy:
    return chaos_proxy(postgres_database.owner_url)


async def connection_to(proxy: ChaosProxy) -> asyncpg.Connection:
    return await asyncpg.connect(proxy.url.replace("+asyncpg", ""), timeout=PATIENCE)


@pytest.mark.anyio
@pytest.mark.parametrize(("kill", "rows"), [("kill_when", 0), ("kill_after", 1)])
async def test_a_commit_that_is_cut_off(
    kill: str, rows: int, postgres_database: PostgresDatabase, database_proxy: ChaosProxy
) -> None:
    await postgres_database.admin("CREATE TABLE public.notes (a int)")
    await postgres_database.admin(f"GRANT ALL ON public.notes TO {postgres_database.owner}")
    connection = await connection_to(database_proxy)
    trigger = getattr(database_proxy, kill)(b"COMMIT")
    await connection.execute("BEGIN; INSERT INTO notes VALUES (1)")
    with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
        await connection.execute("COMMIT")
    assert trigger.fired
    assert await postgres_database.fetchval("SELECT count(*) FROM public.notes") == rows


@pytest.mark.anyio
async def test_a_database_that_says_nothing_for_a_while(database_proxy: ChaosProxy) -> None:
    connection = await connection_to(database_proxy)
    database_proxy.blackhole = True
    question = asyncio.ensure_future(connection.fetchval("SELECT 7"))
    assert not (await asyncio.wait([question], timeout=MOMENT))[0]
    database_proxy.blackhole = False
    assert await question == 7
    await connection.close()


@pytest.mark.anyio
async def test_a_half_open_connection_looks_open(
    database_proxy: ChaosProxy, postgres_database: PostgresDatabase
) -> None:
    connection = await connection_to(database_proxy)
    database_proxy.half_open()
    assert not connection.is_closed()
    with pytest.raises(TimeoutError):
        await connection.execute("SELECT 1", timeout=MOMENT)
    connection.terminate()
    backends = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
    while await postgres_database.fetchval(backends, postgres_database.owner):
        await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_server_that_is_paused_and_killed_behind_the_proxy(
    postgres_victim: Postgres, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(postgres_victim.url())
    connection = await connection_to(proxy)
    postgres_victim.pause()
    question = asyncio.ensure_future(connection.fetchval("SELECT 7"))
    assert not (await asyncio.wait([question], timeout=MOMENT))[0]
    postgres_victim.resume()
    assert await question == 7
    postgres_victim.kill()
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 7")
    connection.terminate()
