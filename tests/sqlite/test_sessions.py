"""A session is one transaction of one tenant, from its first statement to the end of the block."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError

from support.notes import Base, Note, read, write
from support.real_connections import RealConnections, count_connections
from support.waiting import until
from tenancy_core import Tenancy
from tenancy_core.errors import BackendUnavailable, IsolationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


@pytest.fixture
async def tenancy(
    real: RealConnections, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Tenancy]:
    """One tenant, ``acme``, of which at most one connection is kept."""
    async with Tenancy(make_config(database_pool_size=1), metadata=Base.metadata) as opened:
        await opened.tenants.create("acme")
        async with opened.scope("acme"):
            yield opened


def pooled(tenancy: Tenancy) -> int:
    """Connections in use, of tenants and store."""
    connections = tenancy.parts.connections
    return connections.open - connections.idle


async def test_leaving_the_block_commits(tenancy: Tenancy) -> None:
    await write(tenancy, "kept")
    assert await read(tenancy) == ["kept"]
    assert pooled(tenancy) == 0


async def test_an_exception_rolls_back(tenancy: Tenancy) -> None:
    with pytest.raises(LookupError):
        async with tenancy.session() as session:
            session.add(Note(text="lost"))
            await session.flush()
            raise LookupError
    with pytest.raises(LookupError):
        async with tenancy.connection() as connection:
            await connection.execute(insert(Note).values(text="lost"))
            raise LookupError
    assert await read(tenancy) == []
    assert pooled(tenancy) == 0


async def test_a_connection_is_a_transaction_as_well(tenancy: Tenancy) -> None:
    async with tenancy.connection() as connection:
        await connection.execute(insert(Note).values(text="kept"))
    async with tenancy.connection(read_only=True) as connection:
        assert (await connection.execute(select(Note.text))).scalars().all() == ["kept"]
        with pytest.raises(OperationalError, match="readonly"):
            await connection.execute(insert(Note).values(text="lost"))
    assert await read(tenancy) == ["kept"]


async def test_what_was_committed_inside_the_block_stays(tenancy: Tenancy) -> None:
    with pytest.raises(LookupError):
        async with tenancy.session() as session:
            session.add(Note(text="one"))
            await session.commit()
            session.add(Note(text="two"))
            await session.commit()
            session.add(Note(text="lost"))
            await session.flush()
            raise LookupError
    assert await read(tenancy) == ["one", "two"]


async def test_a_commit_inside_the_block_lets_no_other_writer_in(tenancy: Tenancy) -> None:
    order: list[str] = []

    async def other() -> None:
        async with tenancy.session() as session:
            order.append("other")
            session.add(Note(text="other"))

    async with asyncio.TaskGroup() as group, tenancy.session() as session:
        session.add(Note(text="one"))
        await session.commit()
        group.create_task(other())
        await until(lambda: _waits_at_the_gate(tenancy))
        session.add(Note(text="two"))
        await session.commit()
        order.append("first")
    assert order == ["first", "other"]
    assert await read(tenancy) == ["one", "two", "other"]


async def test_a_rollback_inside_the_block_begins_again(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        session.add(Note(text="lost"))
        await session.flush()
        await session.rollback()
        session.add(Note(text="kept"))
    assert await read(tenancy) == ["kept"]


async def test_a_savepoint_is_rolled_back_alone(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        session.add(Note(text="one"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(Note(text="lost"))
                await session.flush()
                session.add(Note(id=1, text="twice"))
                await session.flush()
        async with session.begin_nested():
            session.add(Note(text="two"))
    assert await read(tenancy) == ["one", "two"]


async def test_tables_made_in_a_session_that_fails_are_gone(tenancy: Tenancy) -> None:
    """Unlike with Python's own transactions, which leave DDL outside."""
    with pytest.raises(LookupError):
        async with tenancy.session() as session:
            await session.execute(text("CREATE TABLE extra (x)"))
            raise LookupError
    async with tenancy.session() as session:
        with pytest.raises(OperationalError, match="no such table"):
            await session.execute(text("SELECT * FROM extra"))


async def test_a_session_is_closed_for_good_after_its_block(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        pass
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        await session.execute(text("SELECT 1"))
    async with tenancy.connection() as connection:
        pass
    with pytest.raises(InvalidRequestError, match="closed"):
        await connection.execute(text("SELECT 1"))
    assert pooled(tenancy) == 0


async def test_a_session_that_is_closed_inside_its_block_holds_nothing_up(tenancy: Tenancy) -> None:
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        async with tenancy.session() as session:
            session.add(Note(text="never committed"))
            await session.close()
    await write(tenancy, "next")
    assert await read(tenancy) == ["next"]


async def test_a_session_knows_its_tenant(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        assert session.info["tenant"].identifier == "acme"


async def test_nothing_is_opened_for_a_session_that_asks_for_nothing(
    tenancy: Tenancy, real: RealConnections
) -> None:
    before = real.opened
    async with tenancy.session():
        pass
    assert real.opened == before


# -- reading ---------------------------------------------------------------------------------------


async def test_a_read_only_session_refuses_writes(tenancy: Tenancy) -> None:
    for statement in (
        "INSERT INTO notes (text) VALUES ('x')",
        "CREATE TABLE x (y)",
        "DROP TABLE notes",
    ):
        with pytest.raises(OperationalError, match="readonly"):
            async with tenancy.session(read_only=True) as session:
                await session.execute(text(statement))
    assert await read(tenancy) == []


async def test_read_only_does_not_stick_to_a_pooled_connection_nor_does_writing(
    tenancy: Tenancy, real: RealConnections
) -> None:
    await write(tenancy, "0")
    opened = real.opened
    for number in range(1, 6):
        async with tenancy.session(read_only=True) as session:
            assert (await session.scalar(select(Note.text).order_by(Note.id.desc()))) == str(
                number - 1
            )
            with pytest.raises(OperationalError, match="readonly"):
                await session.execute(insert(Note).values(text="lost"))
        await write(tenancy, str(number))
    assert await read(tenancy) == ["0", "1", "2", "3", "4", "5"]
    assert real.opened == opened


async def test_a_reader_sees_one_state_and_waits_for_no_writer(tenancy: Tenancy) -> None:
    await write(tenancy, "one")
    async with tenancy.session(read_only=True) as reader:
        assert len((await reader.scalars(select(Note))).all()) == 1
        await write(tenancy, "two")
        async with tenancy.session() as writer:
            writer.add(Note(text="three"))
            await writer.flush()
            assert len((await reader.scalars(select(Note.id))).all()) == 1
            assert await read(tenancy) == ["one", "two"]
    assert await read(tenancy) == ["one", "two", "three"]


async def test_the_readers_option_cannot_be_taken_off_by_a_statement(tenancy: Tenancy) -> None:
    async with tenancy.session(read_only=True) as session:
        with pytest.raises(OperationalError, match="readonly"):
            await session.execute(
                insert(Note).values(text="x"), execution_options={"tenancy_read_only": False}
            )


# -- writing ---------------------------------------------------------------------------------------


async def test_of_what_writers_read_nothing_changes_before_they_write(tenancy: Tenancy) -> None:
    await write(tenancy, "0")

    async def increment() -> None:
        async with tenancy.session() as session:
            note = await session.get_one(Note, 1)
            await asyncio.sleep(0)
            note.text = str(int(note.text) + 1)

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(increment())
    assert await read(tenancy) == ["40"]


async def test_a_commit_that_fails_is_told_and_rolled_back(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        await session.execute(
            text(
                "CREATE TABLE child (note INTEGER REFERENCES notes (id)"
                " DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        async with tenancy.session() as session:
            session.add(Note(text="lost"))
            await session.execute(text("INSERT INTO child VALUES (999)"))
    assert await read(tenancy) == []
    await write(tenancy, "next")
    assert await read(tenancy) == ["next"]
    assert pooled(tenancy) == 0


async def test_autocommit_asked_for_by_a_handler_does_not_stick_to_the_connection(
    tenancy: Tenancy, real: RealConnections
) -> None:
    opened = real.opened
    async with tenancy.session() as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        session.add(Note(text="one"))
    with pytest.raises(LookupError):
        async with tenancy.session() as session:
            session.add(Note(text="lost"))
            await session.flush()
            raise LookupError
    assert await read(tenancy) == ["one"]
    assert real.opened == opened + 1


async def test_another_process_that_keeps_the_file_makes_the_tenant_unavailable(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    config = make_config(database_pool_timeout=0.05)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        (path,) = tmp_path.rglob(f"{acme.placement.name}.db")
        async with tenancy.scope("acme"):
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                for _ in range(3):
                    with pytest.raises(BackendUnavailable, match="SQLITE_BUSY"):
                        await write(tenancy, "lost")
                assert await read(tenancy) == []
                other.execute("COMMIT")
            await write(tenancy, "kept")
            assert await read(tenancy) == ["kept"]
            assert pooled(tenancy) == 0


# -- the gate --------------------------------------------------------------------------------------


def _waits_at_the_gate(tenancy: Tenancy, count: int = 1) -> bool:
    gates: Any = tenancy.parts.isolation._gates
    (gate,) = gates._gates.values()
    return len(gate._lock._waiters or ()) == count


async def test_writers_go_in_the_order_they_came_and_hold_no_connection_while_they_wait(
    tenancy: Tenancy,
) -> None:
    async def append(number: int) -> None:
        async with tenancy.session() as session:
            session.add(Note(text=str(number)))

    async with asyncio.TaskGroup() as group:  # noqa: SIM117 - the session ends before the tasks
        async with tenancy.session() as session:
            await session.execute(text("SELECT 1"))
            for number in range(20):
                group.create_task(append(number))
                await until(lambda expected=number + 1: _waits_at_the_gate(tenancy, expected))
            assert pooled(tenancy) == 1
    assert await read(tenancy) == [str(number) for number in range(20)]


async def test_a_second_writing_session_of_the_same_task_is_refused_at_once(
    tenancy: Tenancy,
) -> None:
    async with tenancy.session() as session:
        with pytest.raises(IsolationError, match="one writer"):
            await tenancy.session().__aenter__()
        with pytest.raises(IsolationError, match="one writer"):
            await tenancy.connection().__aenter__()
        session.add(Note(text="first"))
        async with tenancy.session(read_only=True) as reader:
            assert (await reader.scalars(select(Note))).all() == []
    await write(tenancy, "second")
    assert await read(tenancy) == ["first", "second"]


async def test_the_sessions_of_two_tenants_do_not_wait_for_each_other(tenancy: Tenancy) -> None:
    await tenancy.tenants.create("beta")
    async with tenancy.session() as session:
        session.add(Note(text="acme's"))
        await session.flush()
        async with (
            tenancy.scope("beta", switch=True, reason="test"),
            tenancy.session() as other,
        ):
            other.add(Note(text="beta's"))
            await other.flush()
    assert await read(tenancy) == ["acme's"]


async def test_a_writer_that_waits_too_long_is_told_so(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(database_pool_timeout=0.05)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            async with tenancy.session() as session, asyncio.TaskGroup() as group:
                await session.execute(text("SELECT 1"))
                late = group.create_task(_refused(tenancy))
                assert "0.05 seconds" in await late
            await write(tenancy, "next")


async def _refused(tenancy: Tenancy) -> str:
    with pytest.raises(BackendUnavailable) as refused:
        await write(tenancy, "late")
    return str(refused.value)


async def test_whoever_comes_while_the_gate_is_on_its_way_to_another_waits_no_longer_than_allowed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """The lock looks open in that moment, and is not."""
    config = make_config(database_pool_timeout=0.05)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            first = tenancy.session()
            await first.__aenter__()
            keep = asyncio.Event()

            async def second() -> None:
                async with tenancy.session():
                    await keep.wait()

            task = asyncio.create_task(second())
            await until(lambda: _waits_at_the_gate(tenancy))
            gates: Any = tenancy.parts.isolation._gates
            (gate,) = gates._gates.values()
            await gate.__aexit__(None, None, None)
            assert not gate._lock.locked()
            # This one runs before the task to which the gate was given.
            with pytest.raises(BackendUnavailable):
                await tenancy.session().__aenter__()
            keep.set()
            await task


async def test_a_writer_that_is_cancelled_while_it_waits_leaves_the_line(tenancy: Tenancy) -> None:
    async with tenancy.session() as session:
        await session.execute(text("SELECT 1"))
        first = asyncio.create_task(write(tenancy, "cancelled"))
        await until(lambda: _waits_at_the_gate(tenancy))
        second = asyncio.create_task(write(tenancy, "second"))
        await until(lambda: _waits_at_the_gate(tenancy, 2))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    await second
    assert await read(tenancy) == ["second"]


async def test_P2_a_writer_that_is_cancelled_when_the_gate_opens_for_it_passes_it_on(
    tenancy: Tenancy,
) -> None:
    async with tenancy.session() as session:
        await session.execute(text("SELECT 1"))
        first = asyncio.create_task(write(tenancy, "cancelled"))
        await until(lambda: _waits_at_the_gate(tenancy))
        second = asyncio.create_task(write(tenancy, "second"))
        await until(lambda: _waits_at_the_gate(tenancy, 2))
        gates: Any = tenancy.parts.isolation._gates
        (gate,) = gates._gates.values()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert gate is not None
    await second
    assert await read(tenancy) == ["second"]


async def test_a_session_that_was_forgotten_does_not_close_the_tenant_for_ever(
    tenancy: Tenancy,
) -> None:
    context = tenancy.session()
    await context.__aenter__()
    del context
    await write(tenancy, "next")
    assert await read(tenancy) == ["next"]
