"""Tenants' logins, where a pooler stands before their databases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text

from support.databases import KeptSecrets, database_isolation, template_url
from support.postgres import Base, opened, provisioned
from support.waiting import WITHIN, until
from tenancy_core.errors import BackendUnavailable
from tenancy_postgres.database.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from tenancy_core import Tenant

pytestmark = pytest.mark.anyio

FOR_EVER = {"query_wait_timeout": 0}
"""Whoever waits in the pooler is not sent away."""


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


async def test_P11_two_tenants_whose_logins_are_refused_shut_nobody_else_out(
    database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """A pooler says of a wrong password what it says where no server answers."""
    bouncer = pgbouncer(default_pool_size=2, auth_database="postgres")
    url = template_url(database, via=bouncer)
    async with database_isolation(
        database, Base.metadata, database_url_template=url, max_database_connections=40
    ) as isolation:
        acme, beta, gamma = await provisioned(isolation, "acme", "beta", "gamma")
        async with isolation.session(gamma) as session:
            assert await who(session) == gamma.placement.name
        for tenant in (acme, beta):
            async with isolation.session(tenant) as session:
                await session.execute(text("ALTER ROLE CURRENT_USER PASSWORD 'mine'"))
            await isolation._engines.renew(tenant.placement.name)
        for tenant in (acme, beta, acme, beta):
            with pytest.raises(BackendUnavailable):
                async with isolation.session(tenant) as session:
                    await who(session)
        # It needs a connection of its own.
        await isolation._engines.renew(gamma.placement.name)
        async with isolation.session(gamma) as session:
            assert await who(session) == gamma.placement.name


async def test_P11_a_first_tenant_that_waits_in_the_pooler_holds_up_nobody_else(
    database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(default_pool_size=1, auth_database="postgres", options=FOR_EVER)
    same: dict[str, Any] = {
        "secrets": KeptSecrets(),
        "database_url_template": template_url(database, via=bouncer),
        "database_connect_timeout": 1,
        "database_pool_timeout": WITHIN * 10,
    }
    async with database_isolation(database, Base.metadata, **same) as one:
        acme, beta = await provisioned(one, "acme", "beta")
        async with one.session(acme) as held:
            await who(held)
            async with database_isolation(database, Base.metadata, **same) as fresh:

                async def ask(tenant: Tenant) -> str:
                    async with fresh.session(tenant) as session:
                        return await who(session)

                first = asyncio.create_task(ask(acme))
                server: Any = fresh.servers["default"]
                await until(server._acquaintance.turn.locked)
                async with asyncio.timeout(WITHIN):
                    assert await ask(beta) == beta.placement.name
                first.cancel()
                await asyncio.wait([first])


async def test_P11_opening_before_a_pooler_that_is_paused_ends(
    database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(pool_mode="transaction", options=FOR_EVER)
    console = await asyncpg.connect(
        host=bouncer.host,
        port=bouncer.port,
        user=bouncer.user,
        password=bouncer.password,
        database="pgbouncer",
        statement_cache_size=0,
    )
    await console.execute(f"PAUSE {database.name}")
    await console.close()
    async with asyncio.timeout(WITHIN):
        with pytest.raises(BackendUnavailable):
            async with opened(
                database,
                url=database.url(database.app, via=bouncer),
                database_connect_timeout=1,
            ):
                pass
