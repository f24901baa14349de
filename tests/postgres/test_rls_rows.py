"""Threats L3, L4, L9, L12, L13 and L15: no tenant reads, writes or removes another's rows."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError

from support.scoped import Line, Note, two_tenants
from tenancy_core.errors import CrossTenantWrite, IsolationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from tenancy_core.tenant import Tenant
    from tenancy_postgres import RlsIsolation

    Shop = tuple[RlsIsolation, Tenant, Tenant]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(postgres_database: PostgresDatabase) -> AsyncIterator[Shop]:
    """The strategy on one connection, and two tenants with a note of the same number."""
    async with two_tenants(
        postgres_database, database_pool_size=1, max_database_connections=3
    ) as found:
        yield found


async def everything(database: PostgresDatabase) -> set[tuple[str, str]]:
    """Return whose notes there are, as nobody but the superuser sees them."""
    return {*await database.fetch("SELECT tenant_id::text, text FROM notes")}


def as_it_was(acme: Tenant, beta: Tenant) -> set[tuple[str, str]]:
    return {(str(one.id), f"{one.identifier}'s") for one in (acme, beta)}


async def add_a_line_each(isolation: RlsIsolation, *tenants: Tenant) -> None:
    """Give the note of each tenant a line, with the tenant's name."""
    for one in tenants:
        async with isolation.session(one) as session:
            session.add(Line(note_id=1, text=one.identifier))


# -- no tenant -------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["never set", "used before", "set to nothing"])
async def test_L3_without_a_tenant_there_are_no_rows_and_no_writes(
    shop: Shop, postgres_database: PostgresDatabase, before: str
) -> None:
    _, acme, beta = shop
    async with postgres_database.connection(postgres_database.app) as connection:
        if before == "used before":
            async with connection.transaction():
                await connection.execute(f"SET LOCAL app.tenant_id = '{acme.id}'")
                assert len(await connection.fetch("SELECT * FROM notes")) == 1
            assert await connection.fetchval("SELECT current_setting('app.tenant_id')") == ""
        elif before == "set to nothing":
            await connection.execute("SET app.tenant_id = ''")
        for _ in range(7):  # from the sixth on with the plan that was kept
            assert await connection.fetch("SELECT * FROM notes") == []
        for statement in ("UPDATE notes SET text = 'x'", "DELETE FROM notes"):
            assert (await connection.execute(statement)).endswith(" 0")
        for statement, *values in (
            ("INSERT INTO notes (text) VALUES ('x')",),
            ("INSERT INTO notes (tenant_id, text) VALUES ($1, 'x')", acme.id),
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement, *values)
    assert await everything(postgres_database) == as_it_was(acme, beta)


async def test_L3_a_tenant_that_was_set_in_vain_is_an_error_of_ours(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    """A handler that takes its own tenant away reads nothing, and writes nothing."""
    isolation, acme, beta = shop
    with pytest.raises(CrossTenantWrite):
        async with isolation.session(acme) as session:
            await session.execute(text("SET LOCAL app.tenant_id = ''"))
            assert (await session.scalars(select(Note))).all() == []
            session.add(Note(text="x"))
    assert await everything(postgres_database) == as_it_was(acme, beta)


# -- another tenant's rows -------------------------------------------------------------------------

FOREIGN: dict[str, Callable[[Tenant, Tenant], Any]] = {
    "INSERT": lambda acme, beta: insert(Note).values(tenant_id=beta.id, text="x"),
    "INSERT of many": lambda acme, beta: insert(Note).values(
        [{"tenant_id": one.id, "text": "x"} for one in (acme, beta)]
    ),
    "INSERT … SELECT": lambda acme, beta: text(
        "INSERT INTO notes (tenant_id, text) SELECT CAST(:beta AS uuid), text FROM notes"
    ).bindparams(beta=beta.id),
    "UPDATE": lambda acme, beta: update(Note).values(tenant_id=beta.id, id=7),
    "ON CONFLICT DO NOTHING": lambda acme, beta: (
        upsert(Note).values(tenant_id=beta.id, id=1, text="x").on_conflict_do_nothing()
    ),
    "ON CONFLICT DO UPDATE of a foreign row": lambda acme, beta: (
        upsert(Note)
        .values(tenant_id=beta.id, id=1, text="x")
        .on_conflict_do_update(index_elements=["tenant_id", "id"], set_={"text": "taken"})
    ),
    "ON CONFLICT DO UPDATE to a foreign row": lambda acme, beta: (
        upsert(Note)
        .values(id=1, text="x")
        .on_conflict_do_update(index_elements=["tenant_id", "id"], set_={"tenant_id": beta.id})
    ),
    "MERGE … INSERT": lambda acme, beta: text(
        "MERGE INTO notes USING (SELECT 1) AS one ON false "
        "WHEN NOT MATCHED THEN INSERT (tenant_id, id, text) VALUES (:beta, 8, 'x')"
    ).bindparams(beta=beta.id),
    "MERGE … UPDATE": lambda acme, beta: text(
        "MERGE INTO notes USING (SELECT 1 AS id) AS one ON notes.id = one.id "
        "WHEN MATCHED THEN UPDATE SET tenant_id = :beta, id = 9"
    ).bindparams(beta=beta.id),
}


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_L4_a_write_to_another_tenant_takes_the_whole_transaction_along(
    shop: Shop, postgres_database: PostgresDatabase, kind: str, how: str
) -> None:
    isolation, acme, beta = shop
    with pytest.raises(CrossTenantWrite) as caught:
        async with getattr(isolation, kind)(acme) as opened:
            await opened.execute(insert(Note).values(text="before"))
            await opened.execute(FOREIGN[how](acme, beta))
    assert await everything(postgres_database) == as_it_was(acme, beta)
    assert getattr(caught.value.__cause__, "sqlstate", None) == "42501"
    # And the connection serves on.
    async with isolation.session(acme) as session:
        assert [*await session.scalars(select(Note.text))] == ["acme's"]


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_L4_whoever_catches_it_in_a_savepoint_commits_nothing(
    shop: Shop, postgres_database: PostgresDatabase, kind: str, how: str
) -> None:
    isolation, acme, beta = shop
    with pytest.raises(IsolationError, match="Nothing was committed"):
        async with getattr(isolation, kind)(acme) as opened:
            await opened.execute(insert(Note).values(text="before"))
            with suppress(CrossTenantWrite):
                async with opened.begin_nested():
                    await opened.execute(FOREIGN[how](acme, beta))
            await opened.execute(insert(Note).values(text="after"))
    assert await everything(postgres_database) == as_it_was(acme, beta)
    async with isolation.session(acme) as session:
        session.add(Note(text="next"))
    assert len(await everything(postgres_database)) == 3


async def test_L4_objects_of_another_tenant_are_not_written(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    for give in ("add", "merge"):
        with pytest.raises(CrossTenantWrite):
            async with isolation.session(acme) as session:
                foreign = Note(tenant_id=beta.id, id=1, text="taken")
                session.add(foreign) if give == "add" else await session.merge(foreign)
    assert await everything(postgres_database) == as_it_was(acme, beta)


@pytest.mark.parametrize("statement", ["UPDATE notes SET text = 'x' {}", "DELETE FROM notes {}"])
async def test_L4_naming_another_tenants_rows_meets_none(
    shop: Shop, postgres_database: PostgresDatabase, statement: str
) -> None:
    isolation, acme, beta = shop
    async with isolation.session(acme) as session:
        named = statement.format(f"WHERE tenant_id = '{beta.id}' OR tenant_id <> '{acme.id}'")
        met: Any = await session.execute(text(named))
        assert met.rowcount == 0
    assert await everything(postgres_database) == as_it_was(acme, beta)


# -- keys ------------------------------------------------------------------------------------------


async def test_L9_what_one_tenant_deletes_leaves_the_others_untouched(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    await add_a_line_each(isolation, acme, beta)
    async with isolation.session(beta) as session:
        await session.execute(delete(Note).where(Note.id == 1))
    assert await postgres_database.fetch("SELECT text FROM lines") == [("acme",)]
    assert await everything(postgres_database) == {(str(acme.id), "acme's")}


async def test_L9_a_foreign_key_does_not_tell_what_another_tenant_has(shop: Shop) -> None:
    isolation, acme, beta = shop
    async with isolation.session(beta) as session:
        session.add(Note(id=5, text="beta's only"))
    for number in (5, 6):  # there at the other tenant, and nowhere
        with pytest.raises(IntegrityError, match="ForeignKeyViolation"):
            async with isolation.session(acme) as session:
                session.add(Line(note_id=number, text="x"))


async def test_L9_a_unique_key_does_not_tell_what_another_tenant_has(shop: Shop) -> None:
    isolation, acme, _ = shop
    async with isolation.session(acme) as session:
        session.add(Note(text="beta's"))
        await session.flush()
        assert sorted(await session.scalars(select(Note.text))) == ["acme's", "beta's"]


# -- errors ----------------------------------------------------------------------------------------


async def test_L12_our_errors_do_not_tell_the_data(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    isolation, acme, beta = shop
    canary = "canary-51c07e"
    with pytest.raises(CrossTenantWrite) as caught:
        async with isolation.session(acme) as session:
            session.add(Note(tenant_id=beta.id, text=canary))
    told: BaseException | None = caught.value
    while told is not None:
        assert canary not in f"{told!s} {told!r}"
        assert str(beta.id) not in f"{told!s} {told!r}"
        told = told.__cause__
    with pytest.raises(IntegrityError) as other:
        async with isolation.session(acme) as session:
            await session.execute(insert(Note).values(id=1, text=canary))
    assert canary not in f"{other.value!s} {other.value!r}"
    assert canary not in caplog.text


# -- plans and objects that are kept ---------------------------------------------------------------


async def test_L13_a_kept_plan_is_the_next_tenants(shop: Shop) -> None:
    isolation, acme, beta = shop
    backends: set[int] = set()
    for turn in range(500):
        one = (acme, beta)[turn % 2]
        async with isolation.session(one, read_only=turn % 3 == 0) as session:
            found = await session.execute(
                select(Note.tenant_id, Note.text).where(Note.id == 1).order_by(Note.id)
            )
            assert found.all() == [(one.id, f"{one.identifier}'s")]
            if turn % 100 == 99:
                # Each in a statement of its own: the tables of the catalog are no tenant's.
                pid = await session.scalar(text("SELECT pg_catalog.pg_backend_pid()"))
                kept = text(
                    "SELECT max(generic_plans) FROM pg_catalog.pg_prepared_statements"
                    " WHERE statement LIKE '%FROM notes%'"
                )
                assert await session.scalar(kept) > turn / 2
                backends.add(pid)
    assert len(backends) == 1


async def test_L15_the_ORM_reaches_the_sessions_own_rows(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    await add_a_line_each(isolation, acme, beta)
    async with isolation.session(acme) as session:
        note = await session.get_one(Note, (acme.id, 1))
        assert [line.text for line in await note.awaitable_attrs.lines] == ["acme"]
        assert await session.get(Note, (beta.id, 1)) is None
        notes = await session.scalars(select(Note).options(selectinload(Note.lines)))
        assert [[line.text for line in one.lines] for one in notes] == [["acme"]]
        joined = await session.execute(select(Note.text, Line.text).join(Line.note))
        assert joined.all() == [("acme's", "acme")]
        await session.execute(update(Note).values(text="changed"))
        await session.execute(delete(Line))
    assert await everything(postgres_database) == {
        (str(acme.id), "changed"),
        (str(beta.id), "beta's"),
    }
    assert await postgres_database.fetch("SELECT text FROM lines") == [("beta",)]


async def test_L15_an_object_of_one_session_does_not_take_its_row_to_another(
    shop: Shop, postgres_database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    async with isolation.session(beta) as session:
        foreign = await session.get_one(Note, (beta.id, 1))
    # Detached by now; a handler may have kept it.
    foreign.text = "changed"
    with pytest.raises(StaleDataError):
        async with isolation.session(acme) as session:
            session.add(foreign)
    assert await everything(postgres_database) == as_it_was(acme, beta)
