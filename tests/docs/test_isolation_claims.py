"""What the page on isolation says of SQL in a tenant's session on SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from support.notes import read, write

if TYPE_CHECKING:
    from pathlib import Path

    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def folder(tenancy: Tenancy, tmp_path: Path) -> Path:
    """Give each tenant a note, and return the folder of their files."""
    for name in ("acme", "beta"):
        async with tenancy.scope(name):
            await write(tenancy, f"of {name}")
    return tmp_path / "data" / "tenants"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE '{beta}' AS other",
        "ATTACH DATABASE 'file:{beta}?mode=ro' AS other",
        "ATTACH DATABASE '{control}' AS other",
        "ATTACH DATABASE ':memory:' AS other",
        "VACUUM INTO '{copy}'",
        "SELECT load_extension('{beta}')",
    ],
)
async def test_I8_no_statement_reaches_another_file(
    tenancy: Tenancy, folder: Path, tmp_path: Path, statement: str, *, read_only: bool
) -> None:
    async with tenancy.scope("beta") as beta:
        places = {
            "beta": folder / f"{beta.placement.name}.db",
            "control": tmp_path / "data" / "control.db",
            "copy": tmp_path / "copy.db",
        }
    assert places["beta"].is_file()
    assert places["control"].is_file()
    async with tenancy.scope("acme"):
        with pytest.raises(DatabaseError):
            # Outside of a transaction, which both ATTACH and VACUUM ask for.
            await _alone(tenancy, statement.format(**places), read_only=read_only)
        assert await read(tenancy) == ["of acme"]
    assert not places["copy"].exists()


async def _alone(tenancy: Tenancy, statement: str, *, read_only: bool) -> None:
    async with tenancy.connection(read_only=read_only) as connection:
        await connection.exec_driver_sql("COMMIT")
        await connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "injected",
    [
        "' OR 1=1 --",
        "' UNION SELECT name FROM sqlite_master --",
        "' UNION SELECT file FROM pragma_database_list --",
    ],
)
async def test_I8_injected_sql_sees_its_own_file_only(
    tenancy: Tenancy, folder: Path, injected: str
) -> None:
    async with tenancy.scope("acme"), tenancy.session() as session:
        query = f"SELECT text FROM notes WHERE text = '{injected}'"  # noqa: S608 - so it is done
        seen = set(await session.scalars(text(query)))
    assert seen  # the injection itself works
    assert not any("beta" in value for value in seen)


async def test_I8_the_tenant_store_is_not_in_a_tenants_file(tenancy: Tenancy, folder: Path) -> None:
    async with tenancy.scope("acme"), tenancy.session() as session:
        tables = set(await session.scalars(text("SELECT name FROM sqlite_master")))
        assert tables == {"notes"}
        files = list(await session.scalars(text("SELECT file FROM pragma_database_list")))
    assert [file.startswith(f"{folder}/tenant_acme_") for file in files] == [True]
