"""The control tables carry the number of their layout, and a key of their own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import ConnectionBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "layout"),
    [
        ("DELETE FROM tenancy_counters WHERE name = 'schema'", "layout 1,"),
        ("UPDATE tenancy_counters SET value = 99 WHERE name = 'schema'", "layout 99,"),
    ],
)
async def test_tables_of_another_version_are_refused_and_left_alone(
    make_config: Callable[..., TenancyConfig], tmp_path: Path, statement: str, layout: str
) -> None:
    path = tmp_path / "other.db"
    config = make_config(control_database_url=f"sqlite+aiosqlite:///{path}")
    async with SqlTenantStore(config, ConnectionBudget(4)):
        pass
    change(path, statement)
    with pytest.raises(ConfigurationError, match=layout) as caught:
        async with SqlTenantStore(config, ConnectionBudget(4)):
            pass
    assert "TENANCY_CONTROL_DATABASE_URL" in str(caught.value)
    assert str(path) not in str(caught.value)


async def test_the_instance_key_is_made_once_and_differs_between_stores(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    keys = []
    for name in ("one", "one", "two"):
        config = make_config(control_database_url=f"sqlite+aiosqlite:///{tmp_path}/{name}.db")
        async with SqlTenantStore(config, ConnectionBudget(4)) as store:
            keys.append(await store.instance_key())
    assert keys[0] == keys[1] != keys[2]
    assert {len(key) for key in keys} == {32}
