"""The engines under the sessions: nothing runs on them that is nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import case, func, literal_column, select, text, union_all
from sqlalchemy.orm import aliased

from support.postgres import Note, opened, provisioned
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_postgres.schema.reading import leaves_nothing

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase

ATTACKED = "postgresql+asyncpg://app:hunter2@127.0.0.1:1/app"


@pytest.mark.anyio
async def test_without_a_tenant_no_transaction_begins(postgres_database: PostgresDatabase) -> None:
    async with opened(postgres_database) as isolation:
        with pytest.raises(IsolationError, match="without a tenant"):
            async with isolation._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))


@pytest.mark.anyio
async def test_what_is_nobodys_finds_nothing(postgres_database: PostgresDatabase) -> None:
    """Below SQLAlchemy, after the transaction: the search path is empty there."""
    await postgres_database.admin(
        "CREATE TABLE public.notes (id integer)", "GRANT ALL ON public.notes TO PUBLIC"
    )
    for mode in ("search_path", "qualified"):
        async with opened(postgres_database, settings={"schema_mode": mode}) as isolation:
            (acme,) = await provisioned(isolation, f"acme-{mode[:4]}")
            for read_only in (False, True):
                async with isolation.session(acme, read_only=read_only) as session:
                    raw = await (await session.connection()).get_raw_connection()
                    driver = raw.driver_connection
                    await session.scalars(select(Note))
                    await session.commit()
                    with pytest.raises(Exception, match=r"relation .* does not exist"):
                        await driver.fetch("SELECT * FROM notes")


@pytest.mark.anyio
async def test_a_transaction_that_was_begun_and_not_used_is_begun_anew(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for tenant in (acme, beta, acme):
            async with isolation.session(tenant) as session:
                await session.connection()
                await session.commit()
                await session.connection()
                path = await session.scalar(text("SELECT pg_catalog.current_schema()"))
                assert path == tenant.placement.name


@pytest.mark.anyio
async def test_a_session_that_ran_nothing_leaves_no_transaction_behind(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        for _ in range(2):
            async with isolation.session(acme) as session:
                await session.connection()
            states = await postgres_database.fetch(
                "SELECT state FROM pg_stat_activity WHERE usename = $1", postgres_database.app
            )
            assert states == [("idle",)]


@pytest.mark.anyio
async def test_a_server_that_is_not_there_is_unavailable_at_once(
    postgres_database: PostgresDatabase,
) -> None:
    with pytest.raises(BackendUnavailable, match="ConnectionRefusedError") as caught:
        async with opened(postgres_database, url=ATTACKED):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "statement",
    [
        select(Note),
        select(Note.text).where(Note.id == 1).order_by(Note.text).limit(3),
        select(func.count()).select_from(Note),
        select(func.lower(Note.text), case((Note.id > 1, "a"), else_="b")),
        select(Note.id).join(aliased(Note), Note.id == Note.id),
        union_all(select(Note.id), select(Note.id)),
        select(select(Note.id).scalar_subquery()),
    ],
)
def test_a_plain_query_leaves_nothing_on_its_connection(statement: object) -> None:
    assert leaves_nothing(statement)


@pytest.mark.parametrize(
    "statement",
    [
        None,
        text("SELECT 1"),
        select(text("1")),
        select(literal_column("set_config('search_path', 'public', false)")),
        select(func.set_config("search_path", "public", 0)),
        select(func.pg_advisory_lock(1)),
        select(Note).where(func.pg_catalog.set_config("a.b", "c", 0) == "c"),
        select(Note.id).where(text("pg_advisory_lock(1) IS NULL")),
        select(func.my_own_function(Note.id)),
        text("SELECT id FROM notes").columns(Note.id),
    ],
)
def test_what_nobody_knows_may_leave_something(statement: object) -> None:
    assert not leaves_nothing(statement)
