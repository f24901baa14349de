"""The tenant store on SQLAlchemy: first boot, other processes, and a database that is not there."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from support.notes import Base
from support.processes import Crew, crew
from support.real_connections import RealConnections, count_connections
from tenancy_core import Tenancy
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql import ConnectionBudget, tables
from tenancy_core.sql.sqlite import StoreConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio

_SOMEBODY = UUID(int=7)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


PROGRAM = """
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.sql import ConnectionBudget
from uuid import uuid4

async def work(what, path):
    return await {"boot": boot, "create": create}[what](path)

async def boot(path):
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{path}")
    async with SqlTenantStore(config, ConnectionBudget(4)) as store:
        await store.last_change()
        async with store.transaction() as transaction:
            return await transaction.enqueue(uuid4())

async def create(folder):
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        try:
            return (await tenancy.tenants.create("acme")).id
        except Exception as error:
            return type(error).__name__
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew(8, PROGRAM, tmp_path_factory.mktemp("workers")) as started:
        yield started


async def test_eight_processes_that_boot_for_the_first_time_at_once_make_one_set_of_tables(
    workers: Crew, tmp_path: Path
) -> None:
    for turn in range(6):
        path = tmp_path / f"new-folder-{turn}" / "control.db"
        answers = workers.all_at_once(f"boot {path}")
        assert sorted(answers) == [f"done {number}" for number in range(1, 9)]
        with closing(sqlite3.connect(path)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            assert {row[0] for row in names} == set(tables.METADATA.tables)
            counters = connection.execute("SELECT name, value FROM tenancy_counters").fetchall()
        assert sorted(counters) == [("changes", 8), ("schema", tables.SCHEMA)]


def test_connections_that_start_a_new_file_at_once_all_get_their_write_ahead_log(
    tmp_path: Path,
) -> None:
    """Where two change to it at once, SQLite refuses one of them, and does not wait."""
    at_once = threading.Barrier(4)

    def start(path: Path) -> str:
        at_once.wait(60)
        with closing(StoreConnection(str(path), timeout=60)) as connection:
            [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
            return str(mode)

    with ThreadPoolExecutor(4) as threads:
        for turn in range(150):
            assert set(threads.map(start, [tmp_path / f"{turn}.db"] * 4)) == {"wal"}


def test_a_file_that_stays_locked_is_given_up_at_the_time_out(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("CREATE TABLE notes (text)")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            StoreConnection(str(path), timeout=0.05)


async def test_C2_eight_processes_that_create_one_tenant_at_once_make_one(
    workers: Crew, tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    for turn in range(6):
        folder = tmp_path / f"boot-{turn}"
        answers = workers.all_at_once(f"create {folder}")
        config = make_config(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            (acme,) = (await tenancy.tenants.list()).items
            assert acme.active
            actions = [event.action for event in await tenancy.parts.store.audit(acme.id)]
        # Whoever came too late was told so; the others got the same tenant.
        assert {*answers} - {"done TenantExists"} == {f"done {acme.id}"}
        assert actions == ["tenant.created", "tenant.provisioned"]
        assert len(list((folder / "tenants").glob("*.db"))) == 1


async def test_a_store_keeps_what_it_has_when_it_is_opened_again(
    make_config: Callable[..., TenancyConfig], real: RealConnections
) -> None:
    store = SqlTenantStore(make_config(), ConnectionBudget(4))
    for expected in (1, 2, 3):
        async with store, store.transaction() as transaction:
            assert await transaction.enqueue(_SOMEBODY) == expected
        assert real.now == 0
        with pytest.raises(BackendUnavailable):
            await store.last_change()


async def test_readers_of_the_store_wait_for_no_writer(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with SqlTenantStore(make_config(), ConnectionBudget(4)) as store:
        async with store.transaction() as transaction:
            await transaction.enqueue(_SOMEBODY)
            assert await store.last_change() == 0
            assert (await store.list()).items == ()
        assert await store.last_change() == 1


async def test_a_store_that_is_locked_by_somebody_else_is_unavailable_for_writes_only(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    config = make_config(database_pool_timeout=0.05)
    async with SqlTenantStore(config, ConnectionBudget(4)) as store:
        with closing(sqlite3.connect(tmp_path / "data/control.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendUnavailable, match="tenant store"):
                await store.transaction().__aenter__()
            assert await store.last_change() == 0
            other.execute("ROLLBACK")
        async with store.transaction() as transaction:
            await transaction.enqueue(_SOMEBODY)


async def test_a_store_that_cannot_be_opened_is_unavailable(
    make_config: Callable[..., TenancyConfig], tmp_path: Path, real: RealConnections
) -> None:
    (tmp_path / "data" / "control.db").mkdir(parents=True)
    store = SqlTenantStore(make_config(), ConnectionBudget(4))
    with pytest.raises(BackendUnavailable, match="tenant store"):
        await store.__aenter__()
    await store.__aexit__(None, None, None)
    assert real.now == 0


async def test_every_commit_of_the_store_is_flushed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with (
        SqlTenantStore(make_config(), ConnectionBudget(4)) as store,
        store._database.engine.connect() as connection,
    ):
        for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == expected


def test_its_connections_are_set_up_whatever_sqlite_was_built_with(tmp_path: Path) -> None:
    class BuiltByOthers(StoreConnection):
        def write_ahead(self) -> None:
            self.execute("PRAGMA synchronous = OFF")
            self.execute("PRAGMA foreign_keys = OFF")
            super().write_ahead()

    with closing(BuiltByOthers(str(tmp_path / "any.db"))) as connection:
        for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert connection.execute(f"PRAGMA {pragma}").fetchone() == (expected,)


def failing(code: int) -> type[StoreConnection]:
    class Failing(StoreConnection):
        tries = 0

        def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement:
                type(self).tries += 1
                super().execute("BEGIN IMMEDIATE")
                error = sqlite3.OperationalError("as the disk says")
                error.sqlite_errorcode = code
                raise error
            return super().execute(statement, *parameters)

    return Failing


def test_only_a_lock_is_waited_for_and_whoever_fails_keeps_none(tmp_path: Path) -> None:
    path = str(tmp_path / "any.db")
    factory: Any = failing(sqlite3.SQLITE_IOERR)
    with pytest.raises(sqlite3.OperationalError, match="as the disk says") as caught:
        factory(path, timeout=60)
    assert factory.tries == 1
    # While the exception, and with it the connection, is still there.
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
    assert caught.tb is not None


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"no database at all" * 100, ConfigurationError, "SQLITE_NOTADB"),
        (None, BackendUnavailable, "SQLITE_BUSY"),
    ],
)
async def test_a_file_that_does_not_open_is_told_at_once(
    make_config: Callable[..., TenancyConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    error: type[Exception],
    words: str,
) -> None:
    """A lock was waited for already when SQLite says so; it is not waited for ten times."""
    path = tmp_path / "control.db"
    config = make_config(database_url=f"sqlite+aiosqlite:///{path}", database_pool_timeout=0.1)
    monkeypatch.setattr("tenancy_core._stores.sql.layout._PAUSE", 3600)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        if content is None:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("CREATE TABLE notes (text)")
        else:
            path.write_bytes(content)
        with pytest.raises(error, match=words):
            async with SqlTenantStore(config, ConnectionBudget(4)):
                pass
