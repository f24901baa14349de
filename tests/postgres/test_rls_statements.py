"""What row-level security costs: statements stay batched, and policies use indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text

from support.scoped import Line, Note, two_tenants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase
    from tenancy_core.tenant import Tenant
    from tenancy_postgres import RlsIsolation

    Shop = tuple[RlsIsolation, Tenant, Tenant]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(postgres_database: PostgresDatabase) -> AsyncIterator[Shop]:
    async with two_tenants(postgres_database) as found:
        yield found


async def test_a_thousand_rows_are_one_statement(shop: Shop) -> None:
    isolation, acme, _ = shop
    statements: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(isolation._engine.sync_engine, "before_cursor_execute", count)
    async with isolation.session(acme) as session:
        notes = [Note(text=f"line {number}") for number in range(1000)]
        session.add_all(notes)
        await session.flush()
        assert len(statements) == 1
        # The numbers that the server gave came back to the right objects.
        found = {row.id: row.text for row in await session.execute(select(Note.id, Note.text))}
        assert all(found[note.id] == note.text for note in notes)
        statements.clear()
        session.add_all([Line(note_id=notes[0].id, text=f"{number}") for number in range(1000)])
        await session.flush()
        assert len(statements) == 1


PLANS = {
    "by its key": ("SELECT * FROM notes WHERE id = 4711", "notes_pkey", 2),
    "by another key": ("SELECT * FROM notes WHERE text = 'line 7'", "notes_tenant_id_text_key", 2),
    "all of a tenant": ("SELECT count(*) FROM notes", "notes_", 1),
    "changed": ("UPDATE notes SET text = 'x' WHERE id = 4711", "notes_pkey", 2),
    "joined": ("SELECT * FROM lines JOIN notes ON notes.id = note_id", "notes_pkey", 2),
}


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


@pytest.mark.parametrize("plan", PLANS)
async def test_a_policy_looks_into_an_index_and_reads_the_setting_once(
    shop: Shop, postgres_database: PostgresDatabase, plan: str
) -> None:
    statement, index, columns = PLANS[plan]
    isolation, acme, _ = shop
    await postgres_database.admin(
        "INSERT INTO notes (tenant_id, text) SELECT md5((n % 500)::text)::uuid, 'line ' || n"
        " FROM generate_series(1, 20000) AS n",
        "ANALYZE notes",
    )
    async with isolation.connection(acme) as connection:
        found = await connection.execute(text(f"EXPLAIN (FORMAT JSON) {statement}"))
        explained: Any = found.scalar_one()
    tree = nodes(explained[0]["Plan"])
    once = [node for node in tree if node.get("Parent Relationship") == "InitPlan"]
    assert once
    looks = [node for node in tree if str(node.get("Index Name", "")).startswith(index)]
    assert looks
    for node in looks:
        condition = node["Index Cond"]
        # The bare column, with what the plan found out once.
        assert "tenant_id = " in condition
        assert "tenant_id)::" not in condition
        assert condition.count(" = ") == columns
    # And nothing asks for the setting row by row.
    for node in tree:
        assert not any("current_setting" in str(node.get(key)) for key in ("Filter", "Index Cond"))
