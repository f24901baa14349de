"""Tenants' logins, where a pooler stands before their databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text

from support.databases import KeptSecrets, database_isolation, template_url
from support.postgres import Base, provisioned
from tenancy_postgres.database.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer

pytestmark = pytest.mark.anyio


class LateSecrets(KeptSecrets):
    """What they say may be out of date by the time that it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def get(self, tenant_id: UUID, name: str) -> Any:
        found = await super().get(tenant_id, name)
        if (work := self.meanwhile) is not None:
            self.meanwhile = None
            await work()
        return found


async def who(session: Any) -> str:
    return str(await session.scalar(text("SELECT current_user")))


@pytest.mark.parametrize("prepared", [0, 100])
async def test_P10_other_processes_learn_of_a_rotation_behind_a_pooler(
    database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], prepared: int
) -> None:
    bouncer = pgbouncer(
        default_pool_size=2, auth_database="postgres", max_prepared_statements=prepared
    )
    secrets = KeptSecrets()
    same: dict[str, Any] = {
        "secrets": secrets,
        "database_url_template": template_url(database, via=bouncer),
        "settings": {"prepared_statements": "on" if prepared else "auto"},
    }
    async with (
        database_isolation(database, Base.metadata, **same) as one,
        database_isolation(database, Base.metadata, **same) as other,
    ):
        (acme,) = await provisioned(one, "acme")
        async with other.session(acme) as held:
            assert await who(held) == acme.placement.name
            for _ in range(2):
                await one.rotate_credentials(acme)
                # It needs a connection of its own, and knows the password of before.
                async with other.session(acme) as session:
                    assert await who(session) == acme.placement.name
            assert await who(held) == acme.placement.name


@pytest.mark.parametrize("pooled", [False, True])
async def test_P10_a_rotation_between_reading_the_password_and_using_it(
    database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], pooled: bool
) -> None:
    bouncer = pgbouncer(auth_database="postgres") if pooled else None
    secrets = LateSecrets()
    url = template_url(database, via=bouncer)
    async with database_isolation(
        database, Base.metadata, secrets=secrets, database_url_template=url
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")

        async def rotate() -> None:
            await isolation.rotate_credentials(acme)

        before = await Credentials(secrets).get(acme.id)
        assert before is not None
        secrets.meanwhile = rotate
        async with isolation.session(acme) as session:
            assert await who(session) == acme.placement.name
        assert secrets.meanwhile is None
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host=database.server.host,
                port=database.server.port,
                user=acme.placement.name,
                password=before.password,
                database=acme.placement.name,
                timeout=60,
            )
