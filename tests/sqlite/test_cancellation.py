"""Cancelled at any moment: no slot is lost, nothing half-written stays, nobody is locked out."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from sqlalchemy import event, select, text

from support.notes import Base, Note, read, write
from support.real_connections import RealConnections, count_connections
from support.waiting import until
from tenancy_core import Tenancy, current_tenant
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.sql.sqlite import TransactionalConnection
from tenancy_core.testing.suite import strike

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio

NAMES = [f"t{number}" for number in range(6)]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


@pytest.fixture
async def tenancy(
    real: RealConnections, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Tenancy]:
    """Six tenants that share four connections and three engines with the store."""
    config = make_config(max_database_connections=4, max_cached_engines=3)
    async with Tenancy(config, metadata=Base.metadata) as opened:
        for name in NAMES:
            await opened.tenants.create(name)
        yield opened
    await until(lambda: real.now == 0)


def slow(session_text: str = "SELECT 1") -> str:
    """Return SQL that keeps the driver's thread busy for a while and can be found by its tag."""
    rows = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 200000)"
    return f"{rows} SELECT max(n) FROM c /* {session_text} */"  # noqa: S608 - our own words


async def settled(tenancy: Tenancy, real: RealConnections) -> None:
    """Wait until nothing is in use, and see that nothing was lost."""
    connections = tenancy.parts.connections
    await until(lambda: connections.open == connections.idle == real.now)
    assert connections.waiting == 0
    assert real.most <= connections.ceiling == 4
    engines = tenancy.parts.isolation._engines
    assert all(not entry.users for entry in engines._entries.values())
    assert len(engines) <= 3
    gates = tenancy.parts.isolation._gates
    assert not [name for name, gate in gates._gates.items() if gate._lock.locked()]


async def unlocked(tmp_path: Path) -> None:
    """See that no transaction was left open on any file: another writer gets in at once."""

    def begin(path: Path) -> None:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")

    for path in (*tmp_path.rglob("tenants/*.db"), *tmp_path.rglob("control.db")):
        await anyio.to_thread.run_sync(begin, path)


# -- one at a time ---------------------------------------------------------------------------------


async def test_P13_a_cancelled_write_is_rolled_back_before_its_connection_is_used_again(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path
) -> None:
    async with tenancy.scope("t0"):
        await write(tenancy, "kept")
        began = asyncio.Event()

        async def work() -> None:
            async with tenancy.session() as session:
                session.add(Note(text="lost"))
                await session.flush()
                began.set()
                # The statement goes on in the driver's thread when nobody waits for it any more.
                await session.execute(text(f"INSERT INTO notes (text) {slow()}"))

        for _ in range(5):
            began.clear()
            task = asyncio.create_task(work())
            await began.wait()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await read(tenancy) == ["kept"]
            async with tenancy.session() as session:
                assert (await session.scalars(select(Note.text))).all() == ["kept"]
    await settled(tenancy, real)
    await unlocked(tmp_path)


@pytest.mark.parametrize("moment", ["PRAGMA", "BEGIN", "INSERT", "UPDATE", "commit", "rollback"])
async def test_P2_cancelled_when_a_statement_has_just_been_sent(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path, moment: str
) -> None:
    """Strikes when the driver's thread works and the task waits for it."""
    async with tenancy.scope("t0") as tenant:
        assert await read(tenancy) == []
        engines = tenancy.parts.isolation._engines
        engine = engines._entries[tenant.placement.name].engine.sync_engine
        task: asyncio.Task[None] | None = None

        def cancel(*_: object) -> None:
            if task is not None:
                task.cancel()

        def statement(_connection: object, _cursor: object, sql: str, *_: object) -> None:
            if sql.startswith(moment):
                cancel()

        event.listen(engine, "before_cursor_execute", statement)
        if moment in ("commit", "rollback"):
            event.listen(engine, moment, cancel)

        async def work() -> None:
            async with tenancy.session() as session:
                note = Note(text="one")
                session.add(note)
                await session.flush()
                note.text = "two"
                await session.flush()
                if moment == "rollback":
                    raise LookupError

        for _ in range(3):
            # The pooled connection is one of a reader: the next session begins with the PRAGMA.
            await read(tenancy)
            task = asyncio.create_task(work())
            with pytest.raises(asyncio.CancelledError):
                await task
            task = None
            # Whether a commit took place when its answer was not waited for, nobody can know.
            if moment != "commit":
                assert await read(tenancy) == []
        await write(tenancy, "next")
        assert (await read(tenancy))[-1] == "next"
    await settled(tenancy, real)
    await unlocked(tmp_path)


@pytest.mark.parametrize("after", range(24))
async def test_P2_cancelled_after_any_number_of_steps(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path, after: int
) -> None:
    """Strikes after the n-th time that the session had to wait for something."""

    async def work() -> None:
        async with tenancy.scope("t0"), tenancy.session() as session:
            session.add(Note(text="one"))
            await session.flush()
            await session.scalars(select(Note))

    await strike(work(), after, insist=False)
    async with tenancy.scope("t0"):
        await write(tenancy, "next")
        assert (await read(tenancy))[-1] == "next"
    await settled(tenancy, real)
    await unlocked(tmp_path)


async def test_P2_a_cancel_scope_that_insists_still_leaves_everything_clean(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path
) -> None:
    """anyio, and with it Starlette, cancels again and again until the block is left."""
    async with tenancy.scope("t0"):
        for turn in range(10):
            with anyio.CancelScope() as scope:
                async with tenancy.session() as session:
                    session.add(Note(text="lost"))
                    await session.flush()
                    if turn % 2:
                        scope.cancel()
                    else:
                        asyncio.get_running_loop().call_soon(scope.cancel)
                    await session.execute(text(slow()))
            assert scope.cancelled_caught
        assert await read(tenancy) == []
        await write(tenancy, "next")
    await settled(tenancy, real)
    await unlocked(tmp_path)


async def test_P3_a_stream_of_rows_that_is_left_half_way_gives_its_connection_back(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path
) -> None:
    async with tenancy.scope("t0"):
        async with tenancy.session() as session:
            session.add_all([Note(text=str(number)) for number in range(500)])

        async def stream(got: asyncio.Event) -> None:
            async with tenancy.session(read_only=True) as session:
                rows = await session.stream(select(Note).execution_options(yield_per=10))
                async for _ in rows:
                    got.set()
                    await asyncio.sleep(0)

        for _ in range(5):
            got = asyncio.Event()
            task = asyncio.create_task(stream(got))
            await got.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert tenancy.parts.connections.open == tenancy.parts.connections.idle
        async with tenancy.session(read_only=True) as session:
            rows = await session.stream(select(Note).execution_options(yield_per=10))
            assert await rows.first() is not None
        await write(tenancy, "next")
    await settled(tenancy, real)
    await unlocked(tmp_path)


# -- the storm -------------------------------------------------------------------------------------


@pytest.mark.storm
@pytest.mark.parametrize("seed", range(3))
async def test_P2_after_a_storm_of_cancellations_nothing_is_lost_locked_or_mixed_up(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    acknowledged: dict[str, list[str]] = {name: [] for name in NAMES}
    attempted: dict[str, set[str]] = {name: set() for name in NAMES}

    async def work(name: str, number: int) -> None:
        words = f"{name}:{number}"
        with suppress(BackendUnavailable):
            async with tenancy.scope(name):
                if number % 5 == 0:
                    assert {note.partition(":")[0] for note in await read(tenancy)} <= {name}
                    return
                if number % 7 == 0:
                    await tenancy.tenants.get(name)
                attempted[name].add(words)
                await write(tenancy, words)
                acknowledged[name].append(words)
        assert current_tenant() is None

    tasks: list[asyncio.Task[None]] = []
    for number in range(200):
        tasks.append(asyncio.create_task(work(chance.choice(NAMES), number)))
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        victim = chance.choice(tasks)
        victim.cancel()
        if chance.random() < 0.2:
            await asyncio.sleep(0)
            victim.cancel()
        if number % 50 == 49:
            # What nobody cancels is done in the end.
            await asyncio.wait(tasks)
    await asyncio.wait(tasks)
    assert not [task for task in tasks if not task.cancelled() and task.exception() is not None]
    assert sum(task.cancelled() for task in tasks) > 20
    assert sum(map(len, acknowledged.values())) > 20

    await settled(tenancy, real)
    await unlocked(tmp_path)
    for name in NAMES:
        async with tenancy.scope(name):
            found = await read(tenancy)
        assert set(acknowledged[name]) <= set(found) <= attempted[name]
        assert len(found) == len(set(found))
    # Every connection can still be used, by all at once.
    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(work(name, 1001))
    assert all(notes[-1].endswith(":1001") for notes in acknowledged.values())


async def test_P2_no_tenant_is_left_behind_by_a_cancelled_scope(tenancy: Tenancy) -> None:
    async def work() -> None:
        async with tenancy.scope("t0"), tenancy.session() as session:
            await session.execute(text(slow()))

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await work()
    assert scope.cancelled_caught
    assert current_tenant() is None


# -- left by nobody --------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("what", ["session", "connection"])
async def test_P3_what_a_cancelled_task_left_open_in_a_generator_is_closed(
    tenancy: Tenancy, real: RealConnections, tmp_path: Path, what: str, *, read_only: bool
) -> None:
    """As Starlette leaves the generator of a streamed body when the client goes away."""
    async with tenancy.scope("t0"):
        await write(tenancy, "kept")

        async def body() -> AsyncIterator[str]:
            async with getattr(tenancy, what)(read_only=read_only) as session:
                if not read_only:
                    await session.execute(text("INSERT INTO notes (text) VALUES ('lost')"))
                while True:
                    found = await session.stream(select(Note.text))
                    async for row in found:
                        yield row.text

        generator = body()

        async def stream(got: asyncio.Event) -> None:
            async for _ in generator:
                got.set()
                await asyncio.Event().wait()

        got = asyncio.Event()
        task = asyncio.create_task(stream(got))
        await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The generator still stands where it stood, and holds its session and its cursor.
        await settled(tenancy, real)
        await unlocked(tmp_path)
        await write(tenancy, "next")
        assert await read(tenancy) == ["kept", "next"]
        await generator.aclose()
        assert await read(tenancy) == ["kept", "next"]


async def test_a_session_whose_task_was_cancelled_does_not_pretend_to_commit(
    tenancy: Tenancy,
) -> None:
    async with tenancy.scope("t0"):
        context = tenancy.session()

        async def open_it() -> None:
            session = await context.__aenter__()
            session.add(Note(text="lost"))
            await session.flush()
            await asyncio.Event().wait()

        task = asyncio.create_task(open_it())
        await until(lambda: tenancy.parts.connections.open > tenancy.parts.connections.idle)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(IsolationError, match="Nothing was committed"):
            await context.__aexit__(None, None, None)
        assert await read(tenancy) == []


async def test_a_session_opened_by_one_task_may_be_closed_by_another(tenancy: Tenancy) -> None:
    """As some test frameworks do with their fixtures."""
    async with tenancy.scope("t0"):
        context = tenancy.session()

        async def set_up() -> None:
            session = await context.__aenter__()
            session.add(Note(text="kept"))
            await session.flush()

        await asyncio.create_task(set_up())
        await asyncio.create_task(context.__aexit__(None, None, None))
        assert await read(tenancy) == ["kept"]


@pytest.mark.parametrize(
    ("factory", "locked"), [(sqlite3.Connection, True), (TransactionalConnection, False)]
)
def test_a_closed_connection_holds_no_lock_however_long_its_cursors_live(
    tmp_path: Path, factory: type[sqlite3.Connection], *, locked: bool
) -> None:
    """SQLite alone keeps it: a statement that is not finished keeps the connection half alive."""
    path = tmp_path / "file.db"
    connection = sqlite3.connect(path, isolation_level=None, factory=factory)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE notes (text)")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO notes VALUES ('a'), ('b'), ('c')")
    cursor = connection.execute("SELECT * FROM notes")
    cursor.fetchone()
    for _ in range(2):
        connection.close()
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        if locked:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        else:
            other.execute("BEGIN IMMEDIATE")
            assert other.execute("SELECT * FROM notes").fetchall() == []
    del cursor
