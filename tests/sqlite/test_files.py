"""Tenants' files: a connection reaches its own, and nothing else."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from support.notes import Base, read, write
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.errors import BackendUnavailable, InvalidIdentifier, IsolationError
from tenancy_core.sql.sqlite import (
    READ_ONLY,
    begin_transactions,
    connect_args,
    file_url,
    report_unavailable,
)
from tenancy_core.tenant import Placement, Tenant
from tenancy_sqlite.files import APPLICATION_ID, TenantFiles

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


def file_of(tenancy: Tenancy, tenant: Tenant) -> Path:
    """Where a tenant's file is, by default: in a folder beside the control database."""
    control = Path(tenancy.config.control_url.removeprefix("sqlite+aiosqlite:///"))
    return control.parent / "tenants" / f"{tenant.placement.name}.db"


def placed(tenant: Tenant, name: str) -> Tenant:
    """The record as a broken or hostile store could have it."""
    return replace(tenant, placement=Placement(name=name))


async def note_as(tenancy: Tenancy, tenant: str, words: str) -> None:
    async with tenancy.scope(tenant):
        await write(tenancy, words)


async def notes_of(tenancy: Tenancy, tenant: str) -> list[str]:
    async with tenancy.scope(tenant):
        return await read(tenancy)


# -- names -----------------------------------------------------------------------------------------

HOSTILE = [
    "../x",
    "..",
    "x?mode=memory",
    "file:x",
    "file::memory:?cache=shared",
    ":memory:",
    "/etc/passwd",
    "/tmp/x.db",  # noqa: S108 - never opened
    "a/b",
    "a\\b",
    "CON",
    "x\x00y",
    "x\n",
    "x.db",
    "",
    " x",
    "~root",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_I8_a_hostile_identifier_is_refused(tenancy: Tenancy, name: str) -> None:
    with pytest.raises(InvalidIdentifier):
        await tenancy.tenants.create(name)


@pytest.mark.parametrize("name", HOSTILE)
async def test_I8_a_hostile_name_in_the_store_is_refused_before_anything_is_opened(
    tenancy: Tenancy, tmp_path: Path, name: str
) -> None:
    tenant = placed(await tenancy.tenants.get("acme"), name)
    before = sorted(tmp_path.rglob("*"))
    isolation = tenancy.parts.isolation
    for attempt in (isolation.provision, isolation.exists, isolation.destroy):
        with pytest.raises(IsolationError):
            await attempt(tenant)
    for read_only in (False, True):
        with pytest.raises(IsolationError):
            async with isolation.session(tenant, read_only=read_only) as session:
                await session.execute(text("SELECT 1"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "identifier", ['a"; drop schema b; --', "a`b", "a%s", "a:x", "a{}", "a\nb", "../../x", "a?b"]
)
async def test_I5_with_a_validator_that_lets_everything_pass_no_file_is_made(
    tenancy: Tenancy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identifier: str
) -> None:
    for module in ("tenancy_core.sql.naming", "tenancy_core.tenants.service"):
        monkeypatch.setattr(f"{module}.validate_identifier", lambda value: value)
    before = {path.name for path in tmp_path.rglob("tenants/*")}
    with pytest.raises(IsolationError):
        await tenancy.tenants.create(identifier, name="Hostile")
    assert {path.name for path in tmp_path.rglob("tenants/*")} == before
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    "folder", ["a?mode=memory", "b@c:d", "e%20f", "g#h", "file:i", "j&k=l", "ⓐ m'n\"", "%s {} :o"]
)
async def test_I9_nothing_in_a_path_is_parsed_as_part_of_a_url(
    tmp_path: Path, make_config: Callable[..., TenancyConfig], folder: str
) -> None:
    root = tmp_path / folder / "tenants"
    config = make_config(sections={"sqlite": {"root": root}})
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await note_as(tenancy, "acme", "kept")
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        assert await notes_of(tenancy, "acme") == ["kept"]
    assert (root / f"{acme.placement.name}.db").is_file()


# -- what is found in its place --------------------------------------------------------------------


async def test_I8_a_link_to_another_tenants_file_is_refused(tenancy: Tenancy) -> None:
    await note_as(tenancy, "beta", "beta's secret")
    acme, beta = [await tenancy.tenants.get(name) for name in ("acme", "beta")]
    await _forget_connections(tenancy)
    file_of(tenancy, acme).unlink()
    file_of(tenancy, acme).symlink_to(file_of(tenancy, beta))
    for attempt in (notes_of(tenancy, "acme"), note_as(tenancy, "acme", "no")):
        with pytest.raises(IsolationError, match="link"):
            await attempt
    isolation = tenancy.parts.isolation
    for provision in (isolation.provision, isolation.exists):
        with pytest.raises(IsolationError, match="link"):
            await provision(acme)
    assert await notes_of(tenancy, "beta") == ["beta's secret"]


async def test_I8_a_link_that_leads_out_of_the_folder_is_refused(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    outside = tmp_path / "outside.db"
    shutil.move(file_of(tenancy, acme), outside)
    file_of(tenancy, acme).symlink_to(outside)
    with pytest.raises(IsolationError, match="link"):
        await notes_of(tenancy, "acme")
    # Also one that leads nowhere: writing through it would make a file elsewhere.
    outside.unlink()
    with pytest.raises(IsolationError, match="link"):
        await tenancy.parts.isolation.provision(acme)
    assert not outside.exists()


async def test_I8_the_folder_itself_may_be_a_link(
    tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    config = make_config(sections={"sqlite": {"root": tmp_path / "link"}})
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        await note_as(tenancy, "acme", "kept")
        assert await notes_of(tenancy, "acme") == ["kept"]


async def test_a_folder_in_place_of_a_file_is_refused(tenancy: Tenancy) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    file_of(tenancy, acme).unlink()
    file_of(tenancy, acme).mkdir()
    with pytest.raises(IsolationError, match="missing"):
        await notes_of(tenancy, "acme")
    assert not await tenancy.parts.isolation.exists(acme)


async def test_a_missing_file_is_never_made_on_the_way_of_a_request(tenancy: Tenancy) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    file_of(tenancy, acme).unlink()
    for attempt in (notes_of(tenancy, "acme"), note_as(tenancy, "acme", "lost")):
        with pytest.raises(IsolationError, match="missing"):
            await attempt
    assert not file_of(tenancy, acme).exists()
    assert not await tenancy.parts.isolation.exists(acme)


async def test_a_half_provisioned_file_is_refused_until_provisioning_is_finished(
    tenancy: Tenancy,
) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    with closing(sqlite3.connect(file_of(tenancy, acme))) as connection:
        connection.execute("PRAGMA application_id = 0")
    isolation = tenancy.parts.isolation
    assert not await isolation.exists(acme)
    with pytest.raises(IsolationError, match="not complete"):
        await notes_of(tenancy, "acme")
    await isolation.provision(acme)
    assert await isolation.exists(acme)
    assert await notes_of(tenancy, "acme") == []


async def test_an_empty_file_is_not_served(tenancy: Tenancy) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    for suffix in ("-wal", "-shm"):
        Path(f"{file_of(tenancy, acme)}{suffix}").unlink(missing_ok=True)
    file_of(tenancy, acme).write_bytes(b"")
    with pytest.raises(IsolationError, match="not complete"):
        await notes_of(tenancy, "acme")


async def test_a_file_that_is_no_database_makes_the_tenant_unavailable(tenancy: Tenancy) -> None:
    acme = await tenancy.tenants.get("acme")
    await _forget_connections(tenancy)
    for suffix in ("-wal", "-shm"):
        Path(f"{file_of(tenancy, acme)}{suffix}").unlink(missing_ok=True)
    file_of(tenancy, acme).write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(BackendUnavailable, match="SQLITE_NOTADB"):
        await notes_of(tenancy, "acme")
    with pytest.raises(BackendUnavailable, match="SQLITE_NOTADB"):
        await tenancy.parts.isolation.exists(acme)


async def test_a_file_that_cannot_be_opened_makes_the_tenant_unavailable(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without the right to read it, which root always has."""
    await _forget_connections(tenancy)
    connect = sqlite3.connect

    def refuse(*args: object, **options: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        error.sqlite_errorname = "SQLITE_CANTOPEN"
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    async with tenancy.parts.isolation.session(await _cached(tenancy, "acme")) as session:
        with pytest.raises(BackendUnavailable, match="SQLITE_CANTOPEN"):
            await session.execute(text("SELECT 1"))
    monkeypatch.setattr(sqlite3, "connect", connect)
    assert await notes_of(tenancy, "acme") == []


# -- pooled connections ----------------------------------------------------------------------------


@pytest.mark.parametrize("ping", [True, False])
async def test_a_file_removed_under_a_pooled_connection_takes_no_more_writes(
    make_config: Callable[..., TenancyConfig], *, ping: bool
) -> None:
    config = make_config(database_pool_pre_ping=ping)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await note_as(tenancy, "acme", "before")
        file_of(tenancy, acme).unlink()
        for _ in range(3):
            with pytest.raises((IsolationError, BackendUnavailable)):
                await note_as(tenancy, "acme", "into the void")
            with pytest.raises((IsolationError, BackendUnavailable)):
                await notes_of(tenancy, "acme")
        with pytest.raises(IsolationError, match="missing"):
            await notes_of(tenancy, "acme")
        assert not file_of(tenancy, acme).exists()


@pytest.mark.parametrize("ping", [True, False])
async def test_a_file_restored_under_a_pooled_connection_is_the_one_that_is_used(
    make_config: Callable[..., TenancyConfig], tmp_path: Path, *, ping: bool
) -> None:
    config = make_config(database_pool_pre_ping=ping)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await note_as(tenancy, "acme", "in the backup")
        path, backup = file_of(tenancy, acme), tmp_path / "backup.db"
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as copy:
            source.backup(copy)
        await note_as(tenancy, "acme", "after the backup")
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        backup.replace(path)
        if not ping:
            # Without a ping, the first to come finds out for everybody.
            with pytest.raises(BackendUnavailable):
                await notes_of(tenancy, "acme")
        assert await notes_of(tenancy, "acme") == ["in the backup"]
        await note_as(tenancy, "acme", "after the restore")
    with closing(sqlite3.connect(path)) as connection:
        found = [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY id")]
    assert found == ["in the backup", "after the restore"]


async def test_I8_a_link_put_in_place_of_the_file_of_a_pooled_connection_is_refused(
    tenancy: Tenancy,
) -> None:
    await note_as(tenancy, "acme", "acme's")
    await note_as(tenancy, "beta", "beta's secret")
    acme, beta = [await tenancy.tenants.get(name) for name in ("acme", "beta")]
    file_of(tenancy, acme).unlink()
    file_of(tenancy, acme).symlink_to(file_of(tenancy, beta))
    with pytest.raises(IsolationError, match="link"):
        await notes_of(tenancy, "acme")


# -- the files themselves --------------------------------------------------------------------------


async def test_files_and_their_folder_are_for_their_owner_only(tenancy: Tenancy) -> None:
    path = file_of(tenancy, await tenancy.tenants.get("acme"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    # So is the control database, which has keys, and what SQLite keeps beside it.
    control = sorted(path.parent.parent.glob("control.db*"))
    assert [file.stat().st_mode & 0o777 for file in control] == [0o600] * 3


async def test_a_file_is_marked_as_complete_in_its_header(tenancy: Tenancy) -> None:
    path = file_of(tenancy, await tenancy.tenants.get("acme"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_every_connection_flushes_commits_and_checks_foreign_keys(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme"), tenancy.session() as session:
        pragmas = {
            name: (await session.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_a_setting_may_save_the_flush_of_every_commit(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(sections={"sqlite": {"synchronous": "normal"}})
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"), tenancy.session() as session:
            assert (await session.execute(text("PRAGMA synchronous"))).scalar() == 1


def test_the_folder_must_be_prepared_before_a_connection_is_opened(tmp_path: Path) -> None:
    """Until then it is not known where it really is, and every path is outside of it."""
    os.chdir(tmp_path)
    files = TenantFiles(Path("relative"))
    Path("relative").mkdir()
    Path("relative/tenant_x.db").touch()
    factory = files.connection_class(synchronous="full", complete=False)
    with pytest.raises(IsolationError):
        factory("relative/tenant_x.db")
    files.prepare()
    factory("relative/tenant_x.db").close()


async def test_a_working_folder_that_changes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db")
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
        await _forget_connections(tenancy)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await note_as(tenancy, "acme", "kept")
        await tenancy.tenants.create("beta")
        await note_as(tenancy, "beta", "kept, too")
    assert not list((tmp_path / "elsewhere").rglob("*"))


async def _forget_connections(tenancy: Tenancy) -> None:
    """Close what is pooled, so that the next session opens the file anew."""
    engines = tenancy.parts.isolation._engines
    await engines.__aexit__(None, None, None)
    await engines.__aenter__()


async def _cached(tenancy: Tenancy, tenant: str) -> Tenant:
    async with tenancy.scope(tenant) as found:
        return found


async def test_what_this_user_may_not_look_at_is_unavailable(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name.startswith("tenant_acme"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(BackendUnavailable, match="PermissionError"):
        await notes_of(tenancy, "acme")
    assert await notes_of(tenancy, "beta") == []


async def test_a_file_that_nobody_may_write_to_is_unavailable_and_a_read_that_writes_a_mistake(
    tmp_path: Path,
) -> None:
    """Both have the code SQLITE_READONLY."""
    engine = create_async_engine(file_url(tmp_path / "any.db"), connect_args=connect_args(60))
    begin_transactions(engine)
    report_unavailable(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (text)"))
    write = text("INSERT INTO notes VALUES ('lost')")
    with pytest.raises(OperationalError, match="readonly"):
        async with engine.connect() as connection:
            await connection.execution_options(**{READ_ONLY: True})
            await connection.execute(write)
    with pytest.raises(BackendUnavailable, match="SQLITE_READONLY"):
        async with engine.begin() as connection:
            await connection.exec_driver_sql("PRAGMA query_only = ON")  # stands for its mode
            await connection.execute(write)
    await engine.dispose()
