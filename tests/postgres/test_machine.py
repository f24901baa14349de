"""Sessions of tenants, interleaved at will: each sees its own, and connections carry nobody."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.databases import database_isolation
from support.hybrid import hybrid, hybrid_database, hybrid_tenant
from support.postgres import opened
from support.scoped import rls
from tenancy_core.sql import TenantScoped
from tenancy_core.testing import make_tenant
from tenancy_core.testing.suite import strike

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.ext.asyncio import AsyncEngine

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenant

FULL = bool(os.environ.get("TENANCY_TEST_FULL"))
TENANTS = ("acme", "beta", "gamma")
PREMIUM = ("beta",)
CONNECTIONS = 3

CARRIED = """
    SELECT ARRAY[
        coalesce(pg_catalog.current_setting('app.tenant_id', true), ''),
        pg_catalog.current_setting('application_name'),
        pg_catalog.current_setting('search_path'),
        pg_catalog.current_setting('role'),
        pg_catalog.current_setting('statement_timeout')]
"""


class Base(DeclarativeBase):
    pass


class Entry(TenantScoped, Base):
    __tablename__ = "entries"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    text: Mapped[str]


class Undone(Exception):
    pass


class Open:
    """A session that is open, and what it should see besides what is committed."""

    def __init__(self, tenant: str, context: Any, session: Any, *, reads: bool) -> None:
        self.tenant = tenant
        self.context = context
        self.session = session
        self.reads = reads
        self.levels: list[list[str]] = [[]]
        self.savepoints: list[Any] = []

    @property
    def pending(self) -> list[str]:
        return [text for level in self.levels for text in level]

    def forget(self) -> None:
        self.levels = [[]]
        self.savepoints = []


class Sessions(RuleBasedStateMachine):
    """What is done with sessions, and what holds after each step."""

    opened: Bundle[Open] = Bundle("opened")

    database: PostgresDatabase
    kind: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.committed: dict[str, list[str]] = {name: [] for name in TENANTS}
        self.unknown: set[str] = set()
        self.now: list[Open] = []
        self.count = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize()
    def start(self) -> None:
        many: dict[str, Any] = {
            "database_pool_size": CONNECTIONS,
            "max_database_connections": CONNECTIONS + 2,
        }
        context: Any
        match self.kind.split(" and "):
            case ["rls"]:
                context = rls(self.database, Base.metadata, database_max_overflow=0, **many)
            case ["database"]:
                context = database_isolation(self.database, Base.metadata, **many)
            case [standard, premium]:
                context = hybrid(
                    self.database, Base.metadata, standard=standard, premium=premium, **many
                )
            case _:
                modes = {"schema_mode": self.kind}
                context = opened(self.database, metadata=Base.metadata, settings=modes, **many)
        self.isolation = self.run(self.stack.enter_async_context(context))
        self.tenants = {name: self.placed(name) for name in TENANTS}
        for tenant in self.tenants.values():
            self.run(self.isolation.provision(tenant))

    def placed(self, name: str) -> Tenant:
        if self.isolation.name == "hybrid":
            return hybrid_tenant(self.isolation, name, premium=name in PREMIUM)
        return make_tenant(name, isolation=self.isolation.name)

    def teardown(self) -> None:
        for one in list(self.now):
            self.run(self.leave_with(one, Undone()))
        self.run(self.clear())
        self.run(self.stack.aclose())
        self.runner.close()

    async def clear(self) -> None:
        for tenant in getattr(self, "tenants", {}).values():
            await self.isolation.destroy(tenant)

    # -- steps -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.now) < CONNECTIONS)
    @rule(target=opened, name=st.sampled_from(TENANTS), reads=st.booleans())
    def open(self, name: str, reads: bool) -> Open:
        context = self.isolation.session(self.tenants[name], read_only=reads)
        one = Open(name, context, self.run(context.__aenter__()), reads=reads)
        self.now.append(one)
        return one

    @rule(one=opened)
    def write(self, one: Open) -> None:
        if one.reads:
            return
        text = self.words(one)
        self.run(self.add(one, text))
        one.levels[-1].append(text)

    def words(self, one: Open) -> str:
        self.count += 1
        return f"{one.tenant}:{self.count}"

    async def add(self, one: Open, text: str) -> None:
        one.session.add(Entry(text=text))
        await one.session.flush()

    @rule(one=opened)
    def read(self, one: Open) -> None:
        found = self.run(self.texts(one))
        assert sorted(set(found) - self.unknown) == sorted(self.committed[one.tenant] + one.pending)
        assert {text.partition(":")[0] for text in found} <= {one.tenant}

    async def texts(self, one: Open) -> list[str]:
        return list(await one.session.scalars(select(Entry.text)))

    @rule(one=opened)
    def begin_savepoint(self, one: Open) -> None:
        one.savepoints.append(self.run(one.session.begin_nested().start()))
        one.levels.append([])

    @rule(one=opened, keeps=st.booleans())
    def end_savepoint(self, one: Open, keeps: bool) -> None:
        if not one.savepoints:
            return
        savepoint = one.savepoints.pop()
        self.run(savepoint.commit() if keeps else savepoint.rollback())
        level = one.levels.pop()
        if keeps:
            one.levels[-1].extend(level)

    @rule(one=opened, keeps=st.booleans())
    def end_transaction(self, one: Open, keeps: bool) -> None:
        """A session may have several transactions, one after the other."""
        if one.savepoints:
            return
        self.run(one.session.commit() if keeps else one.session.rollback())
        if keeps:
            self.committed[one.tenant] += one.pending
        one.forget()

    @rule(one=consumes(opened), raises=st.booleans())
    def leave(self, one: Open, raises: bool) -> None:
        while one.savepoints:
            self.end_savepoint(one, keeps=not raises)
        self.run(self.leave_with(one, Undone() if raises else None))
        if not raises:
            self.committed[one.tenant] += one.pending

    async def leave_with(self, one: Open, error: BaseException | None) -> None:
        self.now.remove(one)
        kind = None if error is None else type(error)
        with suppress(Undone, asyncio.CancelledError):
            await one.context.__aexit__(kind, error, None)

    @rule(one=consumes(opened), point=st.integers(0, 6), insists=st.booleans())
    def cancel(self, one: Open, point: int, insists: bool) -> None:
        """The request is given up while it writes, reads, or commits."""
        text = self.words(one)
        self.unknown |= {text, *one.pending}

        async def work() -> None:
            try:
                if not one.reads:
                    await self.add(one, text)
                await self.texts(one)
                if not one.savepoints:
                    await one.session.commit()
                raise Undone
            except BaseException as error:  # noqa: BLE001 - as an `async with` would
                await self.leave_with(one, error)

        self.run(strike(work(), point, insist=insists))
        if one in self.now:
            self.now.remove(one)

    # -- what holds --------------------------------------------------------------------------------

    @invariant()
    def no_connection_carries_a_tenant(self) -> None:
        if hasattr(self, "isolation"):
            self.run(self.look())

    async def look(self) -> None:
        for engine in engines_of(self.isolation):
            pool: Any = engine.pool
            for record in pool._free:
                if record.dbapi_connection is None:
                    continue
                driver = record.dbapi_connection.driver_connection
                if driver.is_closed():
                    continue
                assert not driver.is_in_transaction()
                tenant, name, path, role, patience = await driver.fetchval(CARRIED)
                assert (tenant, name, role, patience) == ("", "", "none", "0")
                assert path in {"", '""', '"$user", public'}
        # One each for the sessions that wait in a transaction, and no more. The server needs a
        # moment to see that a connection was dropped.
        async with asyncio.timeout(30):
            while await self.waiting() > len(self.now):
                await asyncio.sleep(0.005)

    async def waiting(self) -> int:
        found: int = await self.database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY ($1)"
            " AND state LIKE 'idle in transaction%'",
            [self.database.app, *(tenant.placement.name for tenant in self.tenants.values())],
        )
        return found


def engines_of(isolation: Any) -> list[AsyncEngine]:
    """Return the engines that tenants' sessions have connections of."""
    if isolation.name == "hybrid":
        return [*engines_of(isolation.standard), *engines_of(isolation.premium)]
    if isolation.name == "database":
        cache = isolation._engines
        return [entry.engine for entry in (*cache._entries.values(), *cache._retired)]
    reading = [isolation._reading.engine] if hasattr(isolation, "_reading") else []
    return [isolation._engine, *reading]


def run_machine(database: PostgresDatabase, kind: str, examples: int) -> None:
    machine = type("Machine", (Sessions,), {"database": database, "kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150 if FULL else examples, stateful_step_count=40, deadline=None
        ),
    )


@pytest.mark.storm
@pytest.mark.parametrize("kind", ["rls", "search_path", "qualified"])
def test_sessions_of_several_tenants_at_once(
    postgres_database: PostgresDatabase, kind: str
) -> None:
    run_machine(postgres_database, kind, 15)


@pytest.mark.storm
@pytest.mark.parametrize("kind", ["database", "rls and schema", "rls and database"])
def test_sessions_of_several_tenants_in_several_places_at_once(
    postgres_server: Postgres, kind: str
) -> None:
    with hybrid_database(postgres_server) as database:
        run_machine(database, kind, 10)
