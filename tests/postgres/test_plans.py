"""What a plan allows a tenant's statements, and what operators see of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from support.postgres import Note, opened, provisioned
from tenancy_core import TenancyConfig
from tenancy_core.errors import BackendUnavailable, ConfigurationError

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio

PLANS = {
    "slow": {"statement_timeout": 0.2},
    "waiting": {"lock_timeout": 0.2},
    "dreaming": {"idle_timeout": 0.2},
    "all": {"statement_timeout": 90, "lock_timeout": 0.0015, "idle_timeout": 7},
}

SETTINGS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


async def settings_of(session: Any) -> tuple[str, ...]:
    columns = ", ".join(f"pg_catalog.current_setting('{name}')" for name in SETTINGS)
    return tuple((await session.execute(text(f"SELECT {columns}"))).one())


@pytest.mark.parametrize("mode", ["search_path", "qualified"])
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_tenant_has_its_plans_time_outs_and_the_next_one_has_not(
    postgres_database: PostgresDatabase, mode: str, read_only: bool
) -> None:
    async with opened(postgres_database, plans=PLANS, settings={"schema_mode": mode}) as isolation:
        (pro,) = await provisioned(isolation, "pro", plan="all")
        (free,) = await provisioned(isolation, "free")
        for _ in range(2):
            async with isolation.session(pro, read_only=read_only) as session:
                assert await settings_of(session) == ("90s", "2ms", "7s")
                # Also after a transaction within the session.
                await session.commit()
                assert await settings_of(session) == ("90s", "2ms", "7s")
            async with isolation.session(free, read_only=read_only) as session:
                assert await settings_of(session) == ("0", "0", "0")


async def test_D4_a_statement_that_takes_too_long_is_503(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, plans=PLANS) as isolation:
        (acme,) = await provisioned(isolation, "acme", plan="slow")
        with pytest.raises(BackendUnavailable, match="statement took longer"):
            async with isolation.session(acme) as session:
                await session.execute(text("SELECT pg_catalog.pg_sleep(60)"))
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(Note))).all() == []


async def test_D4_a_lock_that_is_waited_for_too_long_is_503(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, plans=PLANS) as isolation:
        (acme,) = await provisioned(isolation, "acme", plan="waiting")
        async with postgres_database.connection() as blocking, blocking.transaction():
            await blocking.execute(f'LOCK TABLE "{acme.placement.name}".notes')
            with pytest.raises(BackendUnavailable, match="lock was held"):
                async with isolation.session(acme) as session:
                    await session.execute(select(Note))


async def test_D4_a_transaction_that_is_idle_for_too_long_is_ended(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, plans=PLANS) as isolation:
        (acme,) = await provisioned(isolation, "acme", plan="dreaming")
        with pytest.raises(BackendUnavailable, match="cannot be used now"):
            async with isolation.session(acme) as session:
                session.add(Note(text="lost"))
                await session.flush()
                raw = await (await session.connection()).get_raw_connection()
                async with asyncio.timeout(60):
                    while not raw.driver_connection.is_closed():
                        await asyncio.sleep(0.01)
                await session.execute(select(Note))
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(Note))).all() == []


@pytest.mark.parametrize("seconds", [0, -1, 0.0001, 3_000_000, "soon", float("inf")])
@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_timeout"])
def test_a_time_out_that_postgresql_does_not_have_is_refused(name: str, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"TENANCY_PLANS, free, {name}"):
        TenancyConfig(
            database_url="postgresql+asyncpg://app@localhost/app",
            plans={"free": {name: seconds}},
        )


@pytest.mark.parametrize(
    ("name", "shown"), [("tenancy", "tenancy/acme"), ("shop's", "shop's/acme"), ("", "")]
)
async def test_operators_see_whose_statement_it_is(
    postgres_database: PostgresDatabase, name: str, shown: str
) -> None:
    probe = text("SELECT pg_catalog.current_setting('application_name')")
    async with opened(postgres_database, settings={"application_name": name}) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert await session.scalar(probe) == shown
