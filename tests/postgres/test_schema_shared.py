"""What all tenants share beside their schemas, where it cannot be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, MetaData, String, Table

from support.postgres import opened, provisioned
from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql.postgres import LOCK_PROVISION

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio

SHARED = MetaData()
countries = Table("countries", SHARED, Column("code", String(2), primary_key=True), schema="shared")


async def test_a_role_that_may_not_make_what_is_shared_is_told_what_it_lacks(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, metadata=SHARED) as isolation:
        database, role = postgres_database.name, postgres_database.control
        await postgres_database.admin(f'REVOKE CREATE ON DATABASE "{database}" FROM "{role}"')
        with pytest.raises(ConfigurationError, match="GRANT CREATE ON DATABASE"):
            await provisioned(isolation, "acme")


async def test_nobody_waits_for_ever_for_who_makes_what_is_shared(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, metadata=SHARED, database_pool_timeout=0.5) as isolation:
        async with postgres_database.connection() as somebody, somebody.transaction():
            await somebody.execute("SELECT pg_advisory_xact_lock($1, $2)", *LOCK_PROVISION)
            with pytest.raises(BackendUnavailable, match="lock"):
                await provisioned(isolation, "acme")
        await provisioned(isolation, "acme")
