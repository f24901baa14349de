"""What does not answer is left alone for a while, and asked again by one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.util import await_only

from support.waiting import until
from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError
from tenancy_core.sql import Breaker, ConnectionBudget, close_engine, make_engine
from tenancy_core.sql.breaker import is_unreachable, require_closed, watch
from tenancy_core.sql.sqlite import file_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Coded(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__()
        self.sqlstate = sqlstate


def caused(outer: Exception, cause: BaseException) -> Exception:
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "unreachable"),
    [
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (Coded("08006"), True),
        (Coded("57P03"), True),
        (Coded("53300"), True),
        (OperationalError("", None, ConnectionResetError()), True),
        (caused(BackendUnavailable("x"), OSError()), True),
        (Coded("28P01"), False),
        (Coded("3D000"), False),
        (Coded("57014"), False),
        (BackendUnavailable("x"), False),
        (caused(ConfigurationError("x"), OSError()), False),
        (caused(IsolationError("x"), OSError()), False),
        (ValueError(), False),
    ],
)
def test_only_what_means_that_nobody_answers_counts(error: Exception, *, unreachable: bool) -> None:
    assert is_unreachable(error) is unreachable


def attempt(outcome: object, *breakers: Breaker, source: int = 1) -> Any:
    """Open a connection, or fail to."""

    def connect() -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return watch(breakers, connect, source)()


def fail(error: BaseException, *breakers: Breaker, source: int = 1) -> None:
    with pytest.raises(type(error)):
        attempt(error, *breakers, source=source)


def test_three_failures_in_a_row_open_it_for_a_second_and_then_for_twice_as_long() -> None:
    clock = Clock()
    breaker = Breaker("the server", clock=clock)
    for _ in range(2):
        fail(ConnectionRefusedError(), breaker)
    attempt("connection", breaker)
    for _ in range(3):
        assert not breaker.is_open
        fail(ConnectionRefusedError(), breaker)
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        assert breaker.retry_after == pytest.approx(seconds)
        clock.now += seconds * 0.75
        with pytest.raises(BackendUnavailable, match="cannot be reached") as caught:
            attempt("connection", breaker)
        assert caught.value.retry_after == pytest.approx(seconds / 4)
        clock.now += seconds * 0.25
        fail(ConnectionRefusedError(), breaker)
    clock.now += 30
    attempt("connection", breaker)
    assert not breaker.is_open
    # And it begins anew.
    for _ in range(3):
        fail(ConnectionRefusedError(), breaker)
    assert breaker.retry_after == pytest.approx(1)


def test_P11_one_time_out_is_enough() -> None:
    breaker = Breaker("the server", clock=Clock())
    fail(caused(BackendUnavailable("x"), TimeoutError()), breaker)
    assert breaker.is_open


def test_while_one_probes_the_others_are_refused() -> None:
    clock = Clock()
    breaker = Breaker("the server", clock=clock)
    fail(TimeoutError(), breaker)
    clock.now += 1
    probe = watch((breaker,), lambda: "connection", 1)
    with pytest.raises(BackendUnavailable) as caught:
        require_closed([breaker])
    assert caught.value.retry_after == 1
    assert probe() == "connection"
    require_closed([breaker])


@pytest.mark.parametrize(
    ("outcome", "is_open"),
    [
        (Coded("28P01"), False),  # an answer
        (asyncio.CancelledError(), True),
        (IsolationError("no credential"), True),
    ],
)
def test_a_probe_that_finds_nothing_out_leaves_it_to_the_next(
    outcome: BaseException, *, is_open: bool
) -> None:
    clock = Clock()
    breaker = Breaker("the server", clock=clock)
    fail(TimeoutError(), breaker)
    clock.now += 1
    fail(outcome, breaker)
    assert breaker.is_open is is_open
    attempt("connection", breaker)
    assert not breaker.is_open


def test_who_began_before_it_opened_neither_prolongs_nor_ends_the_probe() -> None:
    clock = Clock()
    breaker = Breaker("the server", clock=clock)
    late = watch((breaker,), lambda: 1 / 0, 1)
    fail(TimeoutError(), breaker)
    with pytest.raises(ZeroDivisionError):
        late()
    fail_late = breaker.retry_after
    breaker.fail(at_once=True, source=1)
    assert breaker.retry_after == fail_late


def test_P11_a_database_that_hangs_says_nothing_of_its_server() -> None:
    clock = Clock()
    server = Breaker("the server", sources=3, clock=clock)
    tenants = {number: Breaker(f"tenant {number}", clock=clock) for number in range(1, 5)}
    for _ in range(10):
        clock.now += 60
        fail(TimeoutError(), tenants[1], server, source=1)
    assert tenants[1].is_open
    assert not server.is_open
    attempt("connection", tenants[2], server, source=2)
    for number in (1, 3, 4):
        clock.now += 60
        assert not server.is_open
        fail(TimeoutError(), tenants[number], server, source=number)
    assert server.is_open
    # None of them takes itself for the probe where another refuses.
    clock.now += 1
    tenants[2].fail(at_once=True, source=2)
    with pytest.raises(BackendUnavailable):
        watch((server, tenants[2]), lambda: None, 2)
    assert server.retry_after == 0


def refused_to_one(code: str, function: str) -> Exception:
    error = Coded(code)
    error.server_source_function = function  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        refused_to_one("53300", "InitializeSessionUserId"),
        refused_to_one("53300", "CheckMyDatabase"),
        refused_to_one("08P01", "PgBouncer"),
    ],
)
def test_P11_what_is_refused_to_one_says_nothing_of_the_server(error: Exception) -> None:
    clock = Clock()
    server = Breaker("the server", sources=2, clock=clock)
    alone = Breaker("the one role of all tenants", clock=clock)
    for number in range(9):
        with suppress(BackendUnavailable, Coded):
            attempt(error, server, source=number)
        with suppress(BackendUnavailable, Coded):
            attempt(error, alone)
    assert not server.is_open
    assert alone.is_open
    # Nor does it keep the probe from the others, or count for one.
    for number in (1, 2, 1):
        fail(ConnectionRefusedError(), server, source=number)
    clock.now += 1
    fail(error, server, source=1)
    attempt("connection", server, source=3)
    assert not server.is_open


def test_the_log_says_when_it_opens_and_when_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tenancy")
    clock = Clock()
    breaker = Breaker("the tenants' database server", clock=clock)
    for _ in range(3):
        fail(TimeoutError(), breaker)
        clock.now += 60
    attempt("connection", breaker)
    attempt("connection", breaker)
    assert [record.getMessage() for record in caplog.records] == [
        "the tenants' database server cannot be reached: no connection is opened for a while",
        "the tenants' database server can be reached again",
    ]


# -- in a pool -------------------------------------------------------------------------------------


class Server:
    """An engine whose connections fail to open while there is an error."""

    def __init__(self, engine: AsyncEngine, breaker: Breaker, clock: Clock) -> None:
        self.engine = engine
        self.breaker = breaker
        self.clock = clock
        self.error: Exception | None = None
        self.hang: asyncio.Event | None = None
        self.attempts = 0

        @event.listens_for(engine.sync_engine, "do_connect")
        def _open(*_: Any) -> None:
            self.attempts += 1
            if self.hang is not None:
                await_only(self.hang.wait())
            if self.error is not None:
                raise self.error


def budget_of(server: Server) -> ConnectionBudget:
    pool: Any = server.engine.pool
    budget: ConnectionBudget = pool._budget
    return budget


@pytest.fixture
async def server(
    tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Server]:
    clock = Clock()
    breaker = Breaker("the server", clock=clock)
    budget = ConnectionBudget(4)
    engine = make_engine(file_url(tmp_path / "t.db"), make_config(), budget, breakers=(breaker,))
    yield Server(engine, breaker, clock)
    await close_engine(engine)
    assert budget.open == 0
    assert not budget.holders


async def test_P11_while_it_is_open_nothing_is_opened_and_what_is_idle_is_used(
    server: Server,
) -> None:
    async with server.engine.connect():
        server.error = TimeoutError()
        with pytest.raises(TimeoutError):
            await server.engine.connect()
        for _ in range(5):
            with pytest.raises(BackendUnavailable) as caught:
                await server.engine.connect()
            assert caught.value.retry_after == 1
    assert server.attempts == 2
    async with server.engine.connect():
        pass
    server.clock.now += 1
    server.error = None
    async with server.engine.connect(), server.engine.connect():
        assert server.attempts == 3
    assert not server.breaker.is_open


async def test_P11_those_who_wait_are_refused_once_it_is_known_that_nobody_answers(
    server: Server,
) -> None:
    async def connect() -> None:
        async with server.engine.connect():
            pass

    server.error, server.hang = TimeoutError(), asyncio.Event()
    tasks = [asyncio.create_task(connect()) for _ in range(50)]
    await until(lambda: server.attempts == 3)
    server.hang.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(TimeoutError) == 3
    assert kinds.count(BackendUnavailable) == 47
    assert server.attempts == 3


async def test_P11_those_that_a_full_server_has_let_in_are_waited_for(server: Server) -> None:
    async def connect() -> None:
        async with server.engine.connect():
            await asyncio.sleep(0)

    async with server.engine.connect():
        server.error = Coded("53300")
        for _ in range(3):
            with pytest.raises(Coded):
                await server.engine.connect()
        assert server.breaker.is_open
        tasks = [asyncio.create_task(connect()) for _ in range(20)]
        await until(lambda: budget_of(server).waiting == 20)
    await asyncio.gather(*tasks)
    assert server.attempts == 4


async def test_P11_those_of_a_server_that_is_gone_are_not_waited_for(server: Server) -> None:
    async with server.engine.connect():
        server.error = Coded("53300")
        for _ in range(2):
            with pytest.raises(Coded):
                await server.engine.connect()
        server.error = ConnectionRefusedError()
        with pytest.raises(ConnectionRefusedError):
            await server.engine.connect()
        with pytest.raises(BackendUnavailable):
            await server.engine.connect()


async def test_P11_nobody_waits_where_the_last_connection_of_a_full_server_is_gone(
    server: Server,
) -> None:
    async with server.engine.connect() as connection:
        server.error = Coded("53300")
        for _ in range(3):
            with pytest.raises(Coded):
                await server.engine.connect()
        waiting = asyncio.create_task(server.engine.connect().start())
        await until(lambda: budget_of(server).waiting == 1)
        await connection.invalidate()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await waiting


async def test_a_connection_that_is_replaced_asks_as_well(server: Server) -> None:
    async with server.engine.connect() as connection:
        record = connection.sync_connection.connection._connection_record  # type: ignore[union-attr]
    assert record is not None
    record.invalidate(soft=True)
    server.breaker.fail(at_once=True, source=1)
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await server.engine.connect()
    assert server.attempts == 1
    server.clock.now += 1
    async with server.engine.connect():
        assert server.attempts == 2


async def test_another_pools_connection_is_not_closed_for_one_that_cannot_be_opened(
    server: Server, tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    pool: Any = server.engine.pool
    other = make_engine(file_url(tmp_path / "other.db"), make_config(), pool._budget)
    held = [await other.connect() for _ in range(3)]
    for connection in held:
        await connection.close()
    server.breaker.fail(at_once=True, source=1)
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await server.engine.connect()
    assert other.pool.status().startswith("open: 3, idle: 3")
    await close_engine(other)
