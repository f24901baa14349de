"""Whatever SQL a tenant's session runs, it reaches neither the tenant store nor another tenant."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from support.notes import read, write

if TYPE_CHECKING:
    from pathlib import Path

    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio

ATTEMPTS = [
    "ATTACH DATABASE '{path}' AS other",
    "ATTACH DATABASE 'file:{path}' AS other",
    "ATTACH DATABASE 'file:{path}?mode=ro&immutable=1' AS other",
    "ATTACH DATABASE 'file://localhost{path}?cache=shared' AS other",
    "ATTACH DATABASE ':memory:' AS other",
    "ATTACH DATABASE '' AS other",
    "ATTACH DATABASE :parameter AS other",
    "VACUUM INTO '{folder}/stolen.db'",
    "VACUUM INTO 'file:{folder}/stolen.db?mode=rwc'",
    "VACUUM",
    "SELECT load_extension('{path}')",
    "SELECT load_extension('{path}', 'sqlite3_extension_init')",
    "SELECT readfile('{path}')",
    "SELECT writefile('{folder}/stolen.db', 'x')",
    "SELECT edit('x', 'cat {path}')",
    "CREATE VIRTUAL TABLE other USING csv(filename='{path}')",
    "CREATE VIRTUAL TABLE other USING zipfile('{path}')",
    "SELECT * FROM fsdir('{folder}')",
    "SELECT * FROM tenancy_tenants",
    "SELECT * FROM main.tenancy_secrets",
    "SELECT * FROM control.tenancy_tenants",
]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("target", ["store", "beta"])
async def test_I8_sql_of_a_tenant_reaches_no_other_file(
    tenancy: Tenancy, tmp_path: Path, target: str, *, read_only: bool
) -> None:
    async with tenancy.scope("beta") as beta:
        await write(tenancy, "beta's secret")
    path = tmp_path / "data/control.db"
    if target == "beta":
        (path,) = tmp_path.rglob(f"{beta.placement.name}.db")
    succeeded: list[str] = []
    async with tenancy.scope("acme"):
        for attempt in ATTEMPTS:
            sql = attempt.format(path=path, folder=tmp_path)
            with suppress(DBAPIError):
                async with tenancy.session(read_only=read_only) as session:
                    await session.execute(text(sql), {"parameter": str(path)})
                    succeeded.append(sql)
            async with tenancy.session(read_only=True) as session:
                found = await session.execute(text("SELECT name FROM pragma_database_list"))
                assert set(found.scalars()) <= {"main", "temp"}, sql
        await write(tenancy, "acme's")
        assert await read(tenancy) == ["acme's"]
    assert succeeded == []
    assert not (tmp_path / "stolen.db").exists()
    async with tenancy.scope("beta"):
        assert await read(tenancy) == ["beta's secret"]


async def test_I8_what_a_session_attaches_would_be_there_without_the_guard(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    """Shows that the attempts above are refused by the guard, and not because they are wrong."""
    (path,) = tmp_path.rglob("control.db")
    (acme,) = tmp_path.rglob("tenant_acme_*.db")
    with closing(sqlite3.connect(acme)) as connection:
        connection.execute(f"ATTACH DATABASE '{path}' AS other")
        names = connection.execute("SELECT identifier FROM other.tenancy_tenants ORDER BY 1")
        assert [row[0] for row in names] == ["acme", "beta"]
        connection.execute(f"VACUUM INTO '{tmp_path}/stolen.db'")
    assert (tmp_path / "stolen.db").exists()


async def test_I8_a_connection_keeps_its_guard_while_it_is_pooled(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme"):
        for _ in range(3):
            async with tenancy.connection() as connection:
                with pytest.raises(DBAPIError, match="too many attached databases"):
                    await connection.execute(text("ATTACH DATABASE ':memory:' AS other"))
