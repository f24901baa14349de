"""What the tests of PostgreSQL share. Modules that need another database say so themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.services.databases import fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    """A database whose control role may make others, and roles for them."""
    with fresh_database(postgres_server, createrole=True, createdb=True) as database:
        yield database
