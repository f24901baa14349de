"""The cache does what tenancy asks of every cache, and keeps its file to itself."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from acme_tenancy.cache import MESSAGES_KEPT, FileCacheBackend
from tenancy_core.errors import BackendUnavailable
from tenancy_core.testing import CacheBackendSuite, FakeClock

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


class TestConformance(CacheBackendSuite):
    """The suite that tenancy-core publishes for caches."""

    capabilities = frozenset({"bus", "shared", "survives_restart"})
    backends = ("asyncio", "trio")

    @pytest.fixture
    async def cache(self, tmp_path: Path) -> AsyncIterator[FileCacheBackend]:
        """Give the cache that is tested."""
        self.clock = FakeClock()
        self.path = tmp_path / "cache.db"
        async with self.another() as cache:
            yield cache

    def another(self) -> FileCacheBackend:
        """Open the same file, as another process would."""
        return FileCacheBackend(self.path, poll_seconds=0.01, clock=self.clock or FakeClock())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the place of a file in a folder that is not there yet."""
    return tmp_path / "run" / "cache.db"


async def test_what_it_makes_is_for_its_owner_only(path: Path) -> None:
    async with FileCacheBackend(path) as cache:
        await cache.set("key", b"value", ttl=60)
        assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IRWXU
        found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert {"cache.db", "cache.db-wal"} <= {*found}
    assert {*found.values()} == {stat.S_IRUSR | stat.S_IWUSR}


async def test_what_has_expired_takes_no_room(path: Path) -> None:
    clock = FakeClock()
    async with FileCacheBackend(path, clock=clock) as cache:
        for number in range(50):
            await cache.set(str(number), b"value", ttl=1)
            clock.advance(1)
        found = await cache.run(
            lambda connection: connection.execute("SELECT count(*) FROM entries").fetchone()
        )
    assert found == (1,)


async def test_a_subscriber_that_missed_messages_is_told(path: Path) -> None:
    async with FileCacheBackend(path) as cache, cache.subscribe() as messages:
        await cache.run(
            lambda connection: connection.executemany(
                "INSERT INTO messages (message) VALUES (?)",
                ((str(number),) for number in range(MESSAGES_KEPT)),
            )
        )
        await cache.publish("last")
        with pytest.raises(BackendUnavailable, match="missed"):
            await anext(messages)
        assert [await anext(messages) for _ in range(MESSAGES_KEPT)][-1] == "last"


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    """Give a file that is no cache."""
    path = tmp_path / "notes.txt"
    path.write_text("no database" * 1000)
    return path


async def test_a_file_that_is_no_cache_is_an_error_that_says_which_setting(
    other_file: Path,
) -> None:
    with pytest.raises(BackendUnavailable, match="TENANCY_ACME_CACHE_PATH"):
        async with FileCacheBackend(other_file):
            pass


async def test_a_cache_that_is_not_open_says_so(path: Path) -> None:
    cache = FileCacheBackend(path)
    with pytest.raises(BackendUnavailable, match="not open"):
        await cache.get("key")
    async with cache:
        await cache.set("key", b"value", ttl=60)
    with pytest.raises(BackendUnavailable, match="not open"):
        await cache.get("key")


async def test_it_is_closed_also_where_its_user_is_cancelled(path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with FileCacheBackend(path) as cache:
            await cache.set("key", b"value", ttl=60)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    # SQLite removes what it keeps beside the file when the last connection is closed.
    assert {file.name for file in path.parent.iterdir()} == {"cache.db"}


OTHER_PROCESS = """
import sys
from pathlib import Path

import anyio

from acme_tenancy import cache as module
from acme_tenancy.cache import FileCacheBackend

module.PATIENCE = 60  # the machine may be busy with other tests


async def main():
    for _ in range(5):
        async with FileCacheBackend(Path(sys.argv[1])) as cache:
            for _ in range(20):
                print(await cache.generation(bump=True))
                await cache.publish("from another process")


anyio.run(main)
"""


async def test_several_processes_open_and_write_one_file_at_once(path: Path) -> None:
    numbers: list[int] = []

    async def run() -> None:
        done = await anyio.run_process(
            [sys.executable, "-W", "error", "-c", OTHER_PROCESS, str(path)],
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()
        numbers.extend(map(int, done.stdout.split()))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run)
    assert sorted(numbers) == list(range(1, 301))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_does_one_thing_at_a_time_however_its_users_leave(path: Path) -> None:
    """What asyncio itself cancels goes on in its thread."""
    at_once: list[int] = []
    now = 0

    def work(_: sqlite3.Connection) -> None:
        nonlocal now
        now += 1
        at_once.append(now)
        time.sleep(0.05)
        now -= 1

    async with FileCacheBackend(path) as cache:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(cache.run(work), 0.01)
        await cache.run(work)
    assert set(at_once) == {1}
