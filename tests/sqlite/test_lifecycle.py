"""Files that come and go while sessions are open, and engines that are shared by many."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio.from_thread
import pytest
from sqlalchemy import select

from support.notes import Base, Note, read, write
from support.real_connections import RealConnections, count_connections
from support.waiting import until
from tenancy_core import Tenancy, TenantStatus
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.sql import ConnectionBudget
from tenancy_sqlite import SqliteDatabaseIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig, Tenant

pytestmark = pytest.mark.anyio


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


@pytest.fixture
async def tenancy(
    real: RealConnections, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Tenancy]:
    async with Tenancy(make_config(max_cached_engines=2), metadata=Base.metadata) as opened:
        for name in ("acme", "beta", "gamma", "delta"):
            await opened.tenants.create(name)
        yield opened
    assert real.now == 0


def engines(tenancy: Tenancy) -> Any:
    return tenancy.parts.isolation._engines


def waits_to_write(tenancy: Tenancy, tenant: Tenant) -> bool:
    """Whether somebody stands in the line of the writers of a tenant's file."""
    isolation: Any = tenancy.parts.isolation
    return bool(isolation._gates.of(tenant.placement.name)._lock._waiters)


# -- provisioning ----------------------------------------------------------------------------------


async def test_provisioning_again_changes_nothing(tenancy: Tenancy, tmp_path: Path) -> None:
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        await write(tenancy, "kept")
        async with tenancy.session(read_only=True) as session:
            # Not even while somebody reads.
            await session.scalars(select(Note))
            await tenancy.parts.isolation.provision(acme)
        assert await read(tenancy) == ["kept"]
    assert len(list(tmp_path.rglob(f"{acme.placement.name}.db"))) == 1


async def test_C2_provisioning_at_once_makes_one_file(tenancy: Tenancy, tmp_path: Path) -> None:
    acme = await tenancy.tenants.get("acme")
    isolation = tenancy.parts.isolation
    await isolation.destroy(acme)
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(isolation.provision(acme))
    assert await isolation.exists(acme)
    async with tenancy.scope("acme"):
        await write(tenancy, "first")
        assert await read(tenancy) == ["first"]
    assert tenancy.parts.connections.open == tenancy.parts.connections.idle


async def test_provisioning_waits_for_a_writer_and_not_for_ever(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(database_pool_timeout=0.05)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"), tenancy.session() as session:
            session.add(Note(text="kept"))
            await session.flush()
            task = asyncio.create_task(tenancy.parts.isolation.provision(acme))
            with pytest.raises(BackendUnavailable):
                await task


# -- destroying ------------------------------------------------------------------------------------


async def test_destroying_removes_the_file_and_all_that_sqlite_keeps_beside_it(
    tenancy: Tenancy, tmp_path: Path, real: RealConnections
) -> None:
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        await write(tenancy, "gone")
    before = real.now
    for _ in range(2):
        await tenancy.parts.isolation.destroy(acme)
        assert not await tenancy.parts.isolation.exists(acme)
    assert real.now == before - 1
    assert not list(tmp_path.rglob(f"{acme.placement.name}*"))
    async with tenancy.scope("acme"):
        with pytest.raises(IsolationError, match="missing"):
            await read(tenancy)
    # Made again, it is empty.
    await tenancy.parts.isolation.provision(acme)
    async with tenancy.scope("acme"):
        assert await read(tenancy) == []


@pytest.mark.parametrize("read_only", [False, True])
async def test_destroying_waits_for_sessions_that_are_open_and_lets_no_new_one_in(
    tenancy: Tenancy, tmp_path: Path, *, read_only: bool
) -> None:
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        await write(tenancy, "kept")
        async with tenancy.session(read_only=read_only) as session:
            assert (await session.scalars(select(Note.text))).all() == ["kept"]
            task = asyncio.create_task(tenancy.parts.isolation.destroy(acme))
            if read_only:
                await until(lambda: acme.placement.name in engines(tenancy)._barred)
                with pytest.raises(BackendUnavailable, match="removed"):
                    await read(tenancy)
            else:
                await until(lambda: waits_to_write(tenancy, acme))
            assert (await session.scalars(select(Note.text))).all() == ["kept"]
            assert not task.done()
            assert await tenancy.parts.isolation.exists(acme)
        await task
        with pytest.raises(IsolationError, match="missing"):
            await read(tenancy)
    assert not list(tmp_path.rglob(f"{acme.placement.name}*"))


async def test_destroying_gives_up_while_somebody_reads_for_too_long(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(database_pool_timeout=0.05)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            async with tenancy.session(read_only=True) as session:
                await session.scalars(select(Note))
                with pytest.raises(BackendUnavailable, match="in use"):
                    await tenancy.parts.isolation.destroy(acme)
            await write(tenancy, "still there")
            assert await read(tenancy) == ["still there"]


async def test_a_task_that_has_a_session_open_cannot_destroy_its_tenant(tenancy: Tenancy) -> None:
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        async with tenancy.session() as session:
            session.add(Note(text="kept"))
            with pytest.raises(IsolationError, match="one writer"):
                await tenancy.parts.isolation.destroy(acme)
        assert await read(tenancy) == ["kept"]


async def test_a_destruction_that_is_cancelled_while_it_waits_destroys_nothing(
    tenancy: Tenancy,
) -> None:
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        async with tenancy.session(read_only=True) as session:
            await session.scalars(select(Note))
            task = asyncio.create_task(tenancy.parts.isolation.destroy(acme))
            await until(lambda: acme.placement.name in engines(tenancy)._barred)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await write(tenancy, "still there")
        assert await read(tenancy) == ["still there"]


# -- engines ---------------------------------------------------------------------------------------


async def test_P9_a_hundred_first_requests_of_a_tenant_make_one_engine(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = engines(tenancy)._make

    def counting(tenant: Tenant) -> Any:
        made.append(tenant.placement.name)
        return make(tenant)

    monkeypatch.setattr(engines(tenancy), "_make", counting)

    async def request() -> None:
        async with tenancy.scope("acme"):
            await read(tenancy)

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(request())
    acme = await tenancy.tenants.get("acme")
    assert made == [acme.placement.name]


async def test_P7_more_tenants_than_engines_share_them_without_losing_one_in_use(
    tenancy: Tenancy, real: RealConnections
) -> None:
    async def request(name: str, number: int) -> None:
        # Two connections at once: few enough requests that they cannot wait for each other.
        async with tenancy.scope(name), tenancy.session(read_only=True) as session:
            await session.scalars(select(Note))
            await write(tenancy, f"{name}:{number}")
            await session.scalars(select(Note))

    names = ("acme", "beta", "gamma", "delta")
    async with asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(request(names[number % 4], number))
    for name in names:
        async with tenancy.scope(name):
            found = await read(tenancy)
        assert len(found) == 6
        assert {note.partition(":")[0] for note in found} == {name}
    assert len(engines(tenancy)) == 2
    assert tenancy.parts.connections.open == tenancy.parts.connections.idle == real.now


async def test_an_engine_that_was_evicted_is_collected(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the process-wide budget keeps what no tenant uses any more."""
    async with tenancy.scope("acme") as acme:
        await read(tenancy)
        pool = ref(engines(tenancy)._entries[acme.placement.name].engine.pool)
    for name in ("beta", "gamma"):
        async with tenancy.scope(name):
            await read(tenancy)
    assert acme.placement.name not in engines(tenancy)
    await asyncio.sleep(0)
    gc.collect()
    assert pool() is None


# -- two of a kind ---------------------------------------------------------------------------------


async def test_two_services_on_one_folder_lose_nothing(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config()
    async with (
        Tenancy(config, metadata=Base.metadata) as one,
        Tenancy(config, metadata=Base.metadata) as other,
    ):
        await one.tenants.create("acme")

        async def increment(tenancy: Tenancy) -> None:
            async with tenancy.scope("acme"), tenancy.session() as session:
                note = await session.get(Note, 1)
                if note is None:
                    session.add(Note(id=1, text="1"))
                else:
                    note.text = str(int(note.text) + 1)

        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(increment((one, other)[number % 2]))
        for tenancy in (one, other):
            async with tenancy.scope("acme"):
                assert await read(tenancy) == ["40"]


async def test_a_strategy_that_is_passed_can_be_opened_again(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    config = make_config()
    isolation = SqliteDatabaseIsolation(
        config, ConnectionBudget(4), root=tmp_path / "files", metadata=Base.metadata
    )
    tenancy = Tenancy(config, isolation=isolation)
    for turn in range(2):
        async with tenancy:
            if not turn:
                await tenancy.tenants.create("acme")
            async with tenancy.scope("acme"):
                await write(tenancy, str(turn))
                assert await read(tenancy) == ["0", "1"][: turn + 1]


async def test_a_tenant_of_another_strategy_is_refused(tenancy: Tenancy) -> None:
    acme = replace(await tenancy.tenants.get("acme"), isolation="schema")
    isolation = tenancy.parts.isolation
    with pytest.raises(IsolationError, match="'schema'"):
        isolation.session(acme)
    with pytest.raises(IsolationError, match="'schema'"):
        isolation.connection(acme)
    for attempt in (isolation.provision, isolation.exists, isolation.destroy):
        with pytest.raises(IsolationError, match="'schema'"):
            await attempt(acme)


# -- D8 --------------------------------------------------------------------------------------------


class Failing:
    """Somebody's isolation strategy, with a bug."""

    name = "database"

    def __init__(self, where: str) -> None:
        self.where = where

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> Any:
        if self.where == "call":
            raise ZeroDivisionError("secret detail")
        return self._open()

    connection = session

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        if self.where == "enter":
            raise ZeroDivisionError("secret detail")
        yield

    async def provision(self, tenant: Tenant, /) -> None: ...

    async def exists(self, tenant: Tenant, /) -> bool:
        return True

    async def destroy(self, tenant: Tenant, /) -> None: ...


@pytest.mark.parametrize("where", ["call", "enter"])
@pytest.mark.parametrize("what", ["session", "connection"])
async def test_D8_a_strategy_that_fails_is_an_unavailable_database(
    make_config: Callable[..., TenancyConfig], where: str, what: str
) -> None:
    async with Tenancy(make_config(), isolation=Failing(where)) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            with pytest.raises(BackendUnavailable, match="ZeroDivisionError") as failed:
                async with getattr(tenancy, what)():
                    raise AssertionError("entered")
    assert "secret" not in str(failed.value)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


async def test_D8_what_the_code_in_a_session_raises_passes_through(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(), isolation=Failing("nowhere")) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            with pytest.raises(ZeroDivisionError):
                async with tenancy.session():
                    raise ZeroDivisionError


@pytest.mark.parametrize("before", [".db", "-wal", "-shm"])
async def test_C7_who_still_knows_a_tenant_leaves_nothing_behind_while_it_is_erased(
    make_config: Callable[..., TenancyConfig], monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Another worker that opens the file between the steps of its removal writes into no log."""
    outcomes: list[str] = []
    async with (
        Tenancy(make_config(), metadata=Base.metadata) as tenancy,
        Tenancy(make_config(), metadata=Base.metadata) as other,
    ):
        acme = await tenancy.tenants.create("acme")
        await tenancy.tenants.archive("acme")

        async def write_as_other() -> None:
            try:
                async with other.parts.isolation.session(acme) as session:
                    session.add(Note(text="personal"))
            except IsolationError as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("written")

        real = Path.unlink

        def unlink(path: Path, *, missing_ok: bool = False) -> None:
            if path.name.startswith("tenant_acme") and path.name.endswith(before):
                anyio.from_thread.run(write_as_other)
            real(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        assert (await tenancy.tenants.erase("acme")).status is TenantStatus.ERASED
        assert outcomes == ["IsolationError"]
        folder = Path(tenancy.config.control_url.removeprefix("sqlite+aiosqlite:///")).parent
    assert [*(folder / "tenants").iterdir()] == []


async def test_a_file_that_another_process_writes_to_is_not_removed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(database_pool_timeout=0.2)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await tenancy.tenants.archive("acme")
        folder = Path(config.control_url.removeprefix("sqlite+aiosqlite:///")).parent / "tenants"
        path = folder / f"{acme.placement.name}.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as process:
            process.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendUnavailable, match="still being written to"):
                await tenancy.tenants.erase("acme")
            assert path.exists()
        assert [one.outcome for one in await tenancy.tenants.reconcile()] == ["erased"]
        assert [*folder.iterdir()] == []


async def test_a_damaged_file_can_be_erased(make_config: Callable[..., TenancyConfig]) -> None:
    config = make_config()
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await tenancy.tenants.archive("acme")
        folder = Path(config.control_url.removeprefix("sqlite+aiosqlite:///")).parent / "tenants"
        (folder / f"{acme.placement.name}.db").write_bytes(b"no database at all" * 100)
        assert (await tenancy.tenants.erase("acme")).status is TenantStatus.ERASED
        assert [*folder.iterdir()] == []
