"""The same work gives the same answers, whatever keeps the tenants apart.

One random workload at a time runs on row-level security, on schemas (by search path, and with
qualified names), on databases, on two of them side by side, on SQLite files and on a model in
memory. What each session reads and every error is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from support.databases import database_isolation
from support.hybrid import hybrid, hybrid_database, hybrid_tenant
from support.postgres import opened
from support.scoped import Base, Line, Note, rls
from tenancy_core import TenancyConfig
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_sqlite import SqliteDatabaseIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenant


EXAMPLES = 400 if os.environ.get("TENANCY_TEST_FULL") else 30
TENANTS = ("acme", "beta", "gamma")
PREMIUM = ("beta",)
FEW: dict[str, Any] = {"database_pool_size": 1, "max_database_connections": 6}


class Undone(Exception):
    """Raised by a workload, for what it did to be rolled back."""


# -- workloads -------------------------------------------------------------------------------------

numbers = st.integers(1, 4)
words = st.sampled_from(["a", "b", "c", "%s", "o'hara"])

steps = st.one_of(
    st.tuples(st.just("add"), numbers, words),
    st.tuples(st.just("insert"), numbers, words),
    st.tuples(st.just("change"), numbers, words),
    st.tuples(st.just("change all"), words),
    st.tuples(st.just("remove"), numbers),
    st.tuples(st.just("remove all")),
    st.tuples(st.just("line"), numbers, words),
    st.tuples(st.just("get"), numbers),
    st.tuples(st.just("read")),
    st.tuples(st.just("count")),
    st.tuples(st.just("join")),
)
blocks = st.one_of(
    steps,
    st.tuples(st.just("savepoint"), st.lists(steps, max_size=4), st.booleans()),
)
sessions = st.tuples(
    st.sampled_from(TENANTS),
    st.sampled_from(["session", "session", "read"]),
    st.lists(blocks, max_size=6),
    st.booleans(),
)
workloads = st.lists(sessions, min_size=1, max_size=8)


async def run(isolation: Any, tenants: dict[str, Any], workload: Any) -> list[Any]:
    """Do the work, and return everything that can be seen of it."""
    seen: list[Any] = []
    for tenant in tenants.values():
        async with isolation.session(tenant) as session:
            await session.execute(delete(Line))
            await session.execute(delete(Note))
    for name, kind, work, raises in workload:
        tenant = tenants[name]
        try:
            async with isolation.session(tenant, read_only=kind == "read") as session:
                for step in work:
                    await take(session, tenant, step, seen, reads=kind == "read")
                if raises:
                    raise Undone
        except (IntegrityError, Undone) as error:
            seen.append(type(error).__name__)
        seen.append("end")
    for tenant in tenants.values():
        async with isolation.session(tenant, read_only=True) as session:
            await take(session, tenant, ("read",), seen)
    return seen


async def take(  # noqa: C901, PLR0912 - one case for each kind of step
    session: Any, tenant: Any, step: Any, seen: list[Any], *, reads: bool = False
) -> None:
    match step:
        case ("savepoint", inner, keeps):
            try:
                async with session.begin_nested():
                    for one in inner:
                        await take(session, tenant, one, seen, reads=reads)
                    if not keeps:
                        raise Undone
            except (IntegrityError, Undone) as error:
                seen.append(f"inner {type(error).__name__}")
        case ("get", number):
            key = {"tenant_id": tenant.id, "id": number}
            session.expunge_all()
            note = await session.get(Note, key)
            seen.append(None if note is None else note.text)
        case ("read",):
            notes = await session.execute(select(Note.id, Note.text).order_by(Note.id))
            lines = await session.execute(select(Line.note_id, Line.text))
            seen.append(([tuple(row) for row in notes], sorted(tuple(row) for row in lines)))
        case ("count",):
            seen.append(await session.scalar(select(func.count()).select_from(Note)))
        case ("join",):
            rows = await session.execute(select(Note.text, Line.text).join(Note.lines))
            seen.append(sorted(tuple(row) for row in rows))
        case _ if reads:
            pass
        case ("add", number, word):
            session.expunge_all()
            session.add(Note(id=number, text=word))
            await session.flush()
        case ("insert", number, word):
            await session.execute(insert(Note).values(id=number, text=word))
        case ("change", number, word):
            await session.execute(update(Note).where(Note.id == number).values(text=word))
        case ("change all", word):
            await session.execute(update(Note).values(text=word))
        case ("remove", number):
            await session.execute(delete(Note).where(Note.id == number))
        case ("remove all",):
            await session.execute(delete(Note))
        case ("line", number, word):
            await session.execute(insert(Line).values(note_id=number, text=word))


# -- the model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What one tenant has."""

    notes: dict[int, str] = field(default_factory=dict)
    lines: tuple[tuple[int, str], ...] = ()


class Refused(Exception):
    """A rule of the tables."""


def model(workload: Any) -> list[Any]:
    """Return what has to be seen."""
    seen: list[Any] = []
    state = {name: Rows() for name in TENANTS}
    for name, kind, work, raises in workload:
        rows = state[name]
        try:
            for step in work:
                rows = after(rows, step, seen, reads=kind == "read")
            if raises:
                seen.append("Undone")
            else:
                state[name] = rows
        except Refused:
            seen.append("IntegrityError")
        seen.append("end")
    for name in TENANTS:
        after(state[name], ("read",), seen)
    return seen


def after(  # noqa: C901, PLR0911, PLR0912 - as above
    rows: Rows, step: Any, seen: list[Any], *, reads: bool = False
) -> Rows:
    notes = dict(rows.notes)
    match step:
        case ("savepoint", inner, keeps):
            changed = rows
            try:
                for one in inner:
                    changed = after(changed, one, seen, reads=reads)
            except Refused:
                seen.append("inner IntegrityError")
                return rows
            if keeps:
                return changed
            seen.append("inner Undone")
        case ("get", number):
            seen.append(notes.get(number))
        case ("read",):
            seen.append((sorted(notes.items()), sorted(rows.lines)))
        case ("count",):
            seen.append(len(notes))
        case ("join",):
            seen.append(sorted((notes[number], word) for number, word in rows.lines))
        case _ if reads:
            pass
        case ("add" | "insert", number, word):
            if number in notes or word in notes.values():
                raise Refused
            return replace(rows, notes={**notes, number: word})
        case ("change", number, word):
            if number in notes:
                if word in (text for key, text in notes.items() if key != number):
                    raise Refused
                return replace(rows, notes={**notes, number: word})
        case ("change all", word):
            if len(notes) > 1:
                raise Refused
            return replace(rows, notes=dict.fromkeys(notes, word))
        case ("remove", number):
            notes.pop(number, None)
            return Rows(notes, tuple(line for line in rows.lines if line[0] != number))
        case ("remove all",):
            return Rows()
        case ("line", number, word):
            if number not in notes:
                raise Refused
            return replace(rows, lines=(*rows.lines, (number, word)))
    return rows


# -- the comparison --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def all_strategies(
    database: PostgresDatabase, large: PostgresDatabase, folder: Path
) -> AsyncIterator[dict[str, tuple[Any, dict[str, Any]]]]:
    """Open each strategy with its tenants, for all examples.

    Args:
        database: For the strategies that keep tenants in one database.
        large: For those that make databases, and for two at a time.
        folder: For SQLite.
    """
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
    files = SqliteDatabaseIsolation(
        config, ConnectionBudget(8), root=folder / "tenants", metadata=Base.metadata
    )
    qualified = {"schema_mode": "qualified"}
    async with (
        rls(database, Base.metadata, database_pool_size=1, max_database_connections=3) as by_rows,
        opened(database, metadata=Base.metadata) as by_path,
        opened(database, metadata=Base.metadata, settings=qualified) as by_name,
        database_isolation(large, Base.metadata, **FEW) as by_database,
        hybrid(large, Base.metadata, premium="schema", **FEW) as rows_and_schemas,
        hybrid(large, Base.metadata, premium="database", **FEW) as rows_and_databases,
        files as by_file,
    ):
        found = {}
        for label, isolation in (
            ("rls", by_rows),
            ("schema", by_path),
            ("qualified", by_name),
            ("database", by_database),
            ("rls and schema", rows_and_schemas),
            ("rls and database", rows_and_databases),
            ("sqlite", by_file),
        ):
            tenants = {name: placed(isolation, name) for name in TENANTS}
            for tenant in tenants.values():
                await isolation.provision(tenant)
            found[label] = (isolation, tenants)
        yield found


def placed(isolation: Any, name: str) -> Tenant:
    """Return the record of one of the tenants; under ``hybrid`` some are premium."""
    if isolation.name == "hybrid":
        return hybrid_tenant(isolation, name, premium=name in PREMIUM)
    return make_tenant(name, isolation=isolation.name)


@pytest.mark.storm
def test_the_same_work_gives_the_same_answers(
    postgres_database: PostgresDatabase, postgres_server: Postgres, tmp_path: Path
) -> None:
    with hybrid_database(postgres_server) as large, asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        compared = runner.run(
            stack.enter_async_context(all_strategies(postgres_database, large, tmp_path))
        )
        tiers = {
            tenant.isolation for _, tenants in compared.values() for tenant in tenants.values()
        }
        assert tiers == {"rls", "schema", "database"}

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(workloads)
        def check(workload: Any) -> None:
            expected = model(workload)
            for label, (isolation, tenants) in compared.items():
                seen = runner.run(run(isolation, tenants, workload))
                assert seen == expected, label

        try:
            check()
        finally:
            runner.run(stack.aclose())
