"""Isolation strategies that make one mistake each: a file per tenant, on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import anyio
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenancy_core.config import TenancyConfig
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.sql import (
    ConnectionBudget,
    EngineCache,
    TenantConnectionContext,
    TenantScoped,
    TenantSessionContext,
    close_engine,
    make_engine,
    require_own,
    tenant_unique,
)
from tenancy_core.sql.sqlite import (
    READ_ONLY,
    TransactionalConnection,
    begin_transactions,
    connect_args,
    file_url,
)
from tenancy_core.testing.isolation import IsolationSuite
from tenancy_core.testing.mutants.mutant import mutant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.tenant import Tenant

__all__ = ["HONEST_STRATEGIES", "STRATEGY_MUTANTS"]


class _Wal(TransactionalConnection):
    """Readers do not wait for the writer, nor the writer for them."""

    def __init__(self, database: str, **options: Any) -> None:
        super().__init__(database, **options)
        self.write_ahead()


class HonestFiles:
    """A file per tenant, in steps that the mutants replace."""

    factory: type[sqlite3.Connection] = _Wal

    def __init__(self, root: Path, metadata: MetaData) -> None:
        self.root = root
        self.metadata = metadata
        self.config = TenancyConfig(database_url="sqlite+aiosqlite:///unused.db")
        self.budget = ConnectionBudget(4)
        self.engines = EngineCache(self.engine_of, 3)
        self.lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __aenter__(self) -> Self:
        await self.engines.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engines.__aexit__(None, None, None)

    # -- steps -------------------------------------------------------------------------------------

    def own(self, tenant: Tenant) -> None:
        """Refuse the tenant of another strategy."""
        require_own(tenant, "database")

    def name(self, tenant: Tenant) -> str:
        """Return the name of the tenant's file."""
        return tenant.placement.name

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.root / f"{name}.db"

    def mark(self, name: str) -> Path:
        """Return the file that says that a place is complete."""
        return self.path(name).with_suffix(".complete")

    def ready(self, name: str) -> None:
        """Refuse a place that is not there."""
        if not self.mark(name).exists():
            raise BackendUnavailable("The tenant's file is missing.")

    def engine_of(self, tenant: Tenant) -> AsyncEngine:
        """Return a new engine for a tenant's file."""
        return self.engine(tenant.placement.name)

    def engine(self, name: str) -> AsyncEngine:
        """Return a new engine for a file."""
        engine = make_engine(
            file_url(self.path(name)),
            self.config,
            self.budget,
            connect_args={**connect_args(5), "factory": self.factory},
        )
        begin_transactions(engine)
        return engine

    def how(self, name: str, *, read_only: bool) -> dict[str, Any]:
        """Return what a session is made with."""
        return {"options": {READ_ONLY: True}} if read_only else {"gate": self.lines[name]}

    async def leave(
        self, block: AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> None:
        """Leave a block of the toolkit, which commits or rolls back."""
        await block.__aexit__(None if error is None else type(error), error, None)

    # -- the contract ------------------------------------------------------------------------------

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """See the contract."""
        self.own(tenant)
        name = self.name(tenant)
        how = self.how(name, read_only=read_only)
        # The engine is found by the name of the place.
        placed = _placed(tenant, name)
        return _Block(self, name, TenantSessionContext(self.engines, placed, **how))

    def connection(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """See the contract."""
        self.own(tenant)
        name = self.name(tenant)
        how = self.how(name, read_only=read_only)
        return _Block(
            self, name, TenantConnectionContext(self.engines, _placed(tenant, name), **how)
        )

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract."""
        self.own(tenant)
        name = self.name(tenant)
        engine = self.engine(name)
        try:
            async with self.lines[name], engine.begin() as connection:
                await connection.run_sync(self.metadata.create_all)
        finally:
            await close_engine(engine)
        self.mark(name).touch()

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        self.own(tenant)
        return self.mark(self.name(tenant)).exists()

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract."""
        self.own(tenant)
        name = self.name(tenant)
        async with self.lines[name], self.engines.barred(name, 5):
            self.remove(self.path(name))

    def remove(self, path: Path) -> None:
        """Remove a file, and what SQLite keeps beside it."""
        path.with_suffix(".complete").unlink(missing_ok=True)
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _placed(tenant: Tenant, name: str) -> Tenant:
    return replace(tenant, placement=replace(tenant.placement, name=name))


class _Block:
    """A block of the toolkit, entered and left in the steps of a strategy."""

    def __init__(
        self, strategy: HonestFiles, name: str, block: AbstractAsyncContextManager[Any]
    ) -> None:
        self._strategy = strategy
        self._name = name
        self._block = block

    async def __aenter__(self) -> Any:  # noqa: ANN401 - a session or a connection
        self._strategy.ready(self._name)
        return await self._block.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._strategy.leave(self._block, error)


class StrategyCase(IsolationSuite):
    """The suite on files."""

    capabilities = frozenset({"concurrent_sessions", "own_place", "transactional_ddl"})
    product: ClassVar[type[Any]] = HonestFiles

    @pytest.fixture
    async def isolation(self, tmp_path: Path) -> AsyncIterator[Any]:
        """Open the strategy."""
        async with self.product(tmp_path, self.metadata) as opened:
            yield opened


class _ScopedBase(DeclarativeBase):
    pass


class ScopedNote(TenantScoped, _ScopedBase):
    """The table of the suite, with the tenant in its key."""

    __tablename__ = "tenancy_suite_notes"
    __table_args__ = (tenant_unique("text"),)

    # SQLite does not number the rows of a key that has several columns.
    id: Mapped[int] = mapped_column(primary_key=True, default=partial(next, count(1000)))
    text: Mapped[str]


class ScopedCase(StrategyCase):
    """The suite on files whose tables have the tenant in their keys."""

    model = ScopedNote

    def key(self, tenant: Tenant, number: int) -> dict[str, Any]:
        """See the suite."""
        return {"tenant_id": tenant.id, "id": number}


class _NoAttach(_Wal):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)


class GuardedFiles(HonestFiles):
    """Files that cannot be left by SQL, on connections that nobody used before."""

    factory: type[sqlite3.Connection] = _NoAttach

    def engine(self, name: str) -> AsyncEngine:
        """Refuse AUTOCOMMIT, and use no connection twice."""
        engine = super().engine(name)

        @event.listens_for(engine.sync_engine, "set_connection_execution_options")
        def _refuse(_connection: object, options: dict[str, Any]) -> None:
            if options.get("isolation_level") == "AUTOCOMMIT":
                raise IsolationError("AUTOCOMMIT would end what is local to a transaction.")

        @event.listens_for(engine.sync_engine, "checkin")
        def _drop(_connection: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
            if record.dbapi_connection is not None:
                record.invalidate()

        return engine


class GuardedCase(StrategyCase):
    """The suite on guarded files, with what a server would refuse and clean."""

    capabilities = frozenset(
        {
            "cleans_connections",
            "own_place",
            "refuses_autocommit",
            "server_enforced",
            "transactional_ddl",
        }
    )
    product = GuardedFiles

    @pytest.fixture
    async def isolation(self, tmp_path: Path) -> AsyncIterator[Any]:
        """Open the strategy."""
        self.root = tmp_path
        async with self.product(tmp_path, self.metadata) as opened:
            yield opened

    def attacks(self, victim: Tenant) -> Sequence[Sequence[str]]:
        """See the suite."""
        path = self.root / f"{victim.placement.name}.db"
        return [
            (
                "COMMIT",  # within a transaction nothing can be attached
                f"ATTACH DATABASE '{path}' AS victim",
                "SELECT text FROM victim.tenancy_suite_notes",
            )
        ]

    def leavings(self) -> Sequence[tuple[str, str]]:
        """See the suite."""
        return [
            (
                "CREATE TEMP TABLE tenancy_suite_left (id INTEGER)",
                "SELECT * FROM tenancy_suite_left",
            ),
            ("PRAGMA cache_size = 77", "PRAGMA cache_size"),
        ]


# -- whose data --------------------------------------------------------------------------------


class OneFileForAll(HonestFiles):
    """Has no policy: all tenants share one file."""

    def name(self, tenant: Tenant) -> str:
        """Forget the tenant."""
        del tenant
        return "everybody"


class TakesTurnsWrongly(HonestFiles):
    """Gives now and then the file of the tenant before."""

    _turn = 0
    _last = ""

    def name(self, tenant: Tenant) -> str:
        """Confuse."""
        right = super().name(tenant)
        last, self._last, self._turn = self._last, right, self._turn + 1
        return last if self._turn % 50 == 0 else right


class ForgetsTheTenantAfterCommit(HonestFiles):
    """Scopes the first transaction of a session only."""

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.others: dict[str, Tenant] = {}

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Move to another file after the first commit."""
        honest = super().session(tenant, read_only=read_only)
        name = tenant.placement.name
        others = [other for key, other in self.others.items() if key != name]
        self.others[name] = tenant

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncSession, None]:
            async with honest as session:

                @event.listens_for(session.sync_session, "after_commit")
                def _leave(_session: object) -> None:
                    for other in others:
                        session.sync_session.bind = self.engines.lease(other).engine.sync_engine

                yield session

        return opened()


class ForgetsAConnectionsTenantAfterCommit(HonestFiles):
    """Scopes a connection until the first commit only."""

    moment = "commit"

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.last: Tenant | None = None

    def connection(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """Move to the file of the tenant before."""
        honest = super().connection(tenant, read_only=read_only)
        last, self.last = self.last, tenant
        if last is None or last == tenant:
            return honest
        strange = super().connection(last, read_only=read_only)

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncConnection, None]:
            async with honest as connection, strange as other:
                own = connection.sync_connection

                @event.listens_for(own, self.moment)
                def _leave(_connection: object) -> None:
                    connection.sync_connection = other.sync_connection

                try:
                    yield connection
                finally:
                    event.remove(own, self.moment, _leave)
                    connection.sync_connection = own

        return opened()


class ForgetsAConnectionsTenantAfterRollback(ForgetsAConnectionsTenantAfterCommit):
    """Scopes a connection until the first rollback only."""

    moment = "rollback"


class PutsRowsWhereTheirKeySays(HonestFiles):
    """Checks whose rows are read, and not whose are written."""

    verb = "INSERT"

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.names: dict[object, str] = {}

    async def provision(self, tenant: Tenant, /) -> None:
        """Remember whose keys are whose."""
        await super().provision(tenant)
        self.names[tenant.id.hex] = self.name(tenant)

    def engine(self, name: str) -> AsyncEngine:
        """Write a row to the file of the tenant that is in its key."""
        engine = super().engine(name)

        @event.listens_for(engine.sync_engine, "after_cursor_execute")
        def _plant(_connection: object, _cursor: object, sql: str, values: Any, *_: object) -> None:  # noqa: ANN401 - the driver's
            owner = self.names.get(values[0]) if values else None
            if sql.startswith(self.verb) and owner not in (None, name):
                with closing(sqlite3.connect(self.path(owner))) as other, other:
                    other.execute(
                        "INSERT INTO tenancy_suite_notes (tenant_id, id, text) VALUES (?, ?, ?)",
                        values,
                    )

        return engine


class MovesRowsWhereTheirKeySays(PutsRowsWhereTheirKeySays):
    """Lets a row be given to another tenant by changing its key."""

    verb = "UPDATE"


class MixesUpUnderLoad(HonestFiles):
    """Keeps the tenant on itself while it waits."""

    _now: Tenant

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Wait in between."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncSession, None]:
            self._now = tenant
            await asyncio.sleep(0)
            async with HonestFiles.session(self, self._now, read_only=read_only) as session:
                yield session

        return opened()


class ServesForeigners(HonestFiles):
    """Serves tenants whose data another strategy has."""

    def own(self, tenant: Tenant) -> None:
        """Serve."""


class AttachesFiles(GuardedFiles):
    """Lets SQL attach the file of another tenant."""

    factory = _Wal


class KeepsWhatWasLeft(GuardedFiles):
    """Uses connections again as they are."""

    def engine(self, name: str) -> AsyncEngine:
        """Keep them."""
        return HonestFiles.engine(self, name)


# -- all or nothing ----------------------------------------------------------------------------


class NeverCommits(HonestFiles):
    """Rolls back what a block wrote."""

    async def leave(
        self, block: AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> None:
        """Roll back."""
        await super().leave(block, error or LookupError())


class CommitsOnExceptions(HonestFiles):
    """Commits what a block did before it raised."""

    async def leave(
        self, block: AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> None:
        """Commit."""
        await super().leave(block, None if isinstance(error, LookupError) else error)


class WrapsExceptions(HonestFiles):
    """Raises an error of its own for the one of the handler."""

    async def leave(
        self, block: AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> None:
        """Wrap."""
        await super().leave(block, error)
        if isinstance(error, LookupError):
            raise BackendUnavailable("Something went wrong.") from error


class CommitsWhenCancelled(HonestFiles):
    """Does not roll back what a cancelled task wrote."""

    async def leave(
        self, block: AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> None:
        """Commit."""
        if not isinstance(error, asyncio.CancelledError):
            await super().leave(block, error)
            return
        with anyio.CancelScope(shield=True):
            try:
                await super().leave(block, None)
            except Exception:  # noqa: BLE001 - nothing to commit there
                await super().leave(block, error)


class CommitsEachStatement(HonestFiles):
    """Commits each INSERT."""

    commits = "INSERT"

    def engine(self, name: str) -> AsyncEngine:
        """Listen."""
        engine = super().engine(name)

        @event.listens_for(engine.sync_engine, "after_cursor_execute")
        def _commit(connection: Any, _cursor: object, sql: str, *_: object) -> None:  # noqa: ANN401 - SQLAlchemy's
            if sql.strip().startswith(self.commits):
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine


class CommitsDdl(CommitsEachStatement):
    """Commits DDL at once, as some servers do, and says that it does not."""

    commits = "CREATE"


class ReopensSessions(HonestFiles):
    """Lets a session be used after its block, in a transaction that nobody ends."""

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.made: list[AsyncSession] = []

    async def __aexit__(self, *_: object) -> None:
        for session in self.made:
            await session.close()
        await super().__aexit__()

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Keep SQLAlchemy's default."""
        honest = super().session(tenant, read_only=read_only)

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncSession, None]:
            async with honest as other, AsyncSession(other.bind) as session:
                self.made.append(session)
                yield session
                await session.commit()

        return opened()


class CountsThoseWhoAsk(HonestFiles):
    """Takes a slot when a session is asked for, and not when it is entered."""

    _asked = 0

    def own(self, tenant: Tenant) -> None:
        """Count."""
        super().own(tenant)
        self._asked += 1
        if self._asked > 50:
            raise BackendUnavailable("Too many sessions are open.")


class AllowsAutocommit(GuardedFiles):
    """Does not mind AUTOCOMMIT."""

    def engine(self, name: str) -> AsyncEngine:
        """Allow it."""
        return HonestFiles.engine(self, name)


class IgnoresReadOnly(HonestFiles):
    """Takes no notice of ``read_only``."""

    def how(self, name: str, *, read_only: bool) -> dict[str, Any]:
        """Forget."""
        del read_only
        return super().how(name, read_only=False)


class StaysReadOnly(HonestFiles):
    """Leaves everything read-only once somebody only read."""

    _sticks = False

    def how(self, name: str, *, read_only: bool) -> dict[str, Any]:
        """Stick."""
        self._sticks = self._sticks or read_only
        return super().how(name, read_only=self._sticks)


class MakesReadersWait(HonestFiles):
    """Lets a reader wait for the writer, for as long as it takes."""

    def how(self, name: str, *, read_only: bool) -> dict[str, Any]:
        """Put all into one line."""
        return {**super().how(name, read_only=read_only), "gate": self.lines[name]}


class TellsTheData(HonestFiles):
    """Puts the parameters of a statement into its error."""

    def engine(self, name: str) -> AsyncEngine:
        """Show them."""
        engine = super().engine(name)
        engine.sync_engine.hide_parameters = False
        return engine


# -- the place ---------------------------------------------------------------------------------


class MakesPlacesOnTheWay(HonestFiles):
    """Makes a place for a tenant that was never provisioned."""

    def ready(self, name: str) -> None:
        """Make one."""
        self.mark(name).touch()


class EmptiesOnProvision(HonestFiles):
    """Begins anew whenever a tenant is provisioned."""

    async def provision(self, tenant: Tenant, /) -> None:
        """Remove first."""
        await self.destroy(tenant)
        await super().provision(tenant)


class ProvisionsOnce(HonestFiles):
    """Fails when somebody else is provisioning the same tenant."""

    async def provision(self, tenant: Tenant, /) -> None:
        """Insist on being the first."""
        if await self.exists(tenant):
            return
        self.path(self.name(tenant)).touch(exist_ok=False)
        await super().provision(tenant)


class CannotResume(HonestFiles):
    """Takes a half-made place for a complete one."""

    async def provision(self, tenant: Tenant, /) -> None:
        """Stop where a file is."""
        path = self.path(self.name(tenant))
        if not path.exists():
            path.touch()
            await super().provision(tenant)


class DestroysNothing(HonestFiles):
    """Keeps the data of a tenant that is destroyed."""

    def remove(self, path: Path) -> None:
        """Keep."""


class DestroysEverybody(HonestFiles):
    """Removes the data of all."""

    def remove(self, path: Path) -> None:
        """Remove too much."""
        for other in path.parent.glob("*.db"):
            super().remove(other)


class DestroysLongerNames(HonestFiles):
    """Removes the data of those, too, whose names begin like the one's that is destroyed."""

    def takes(self, gone: str, other: str) -> bool:
        """Compare the beginnings."""
        return other.startswith(gone)

    def remove(self, path: Path) -> None:
        """Compare names without what makes them unique."""
        for other in path.parent.glob("*.db"):
            if self.takes(path.stem.rpartition("_")[0], other.stem.rpartition("_")[0]):
                super().remove(other)


class DestroysShorterNames(DestroysLongerNames):
    """Removes the data of those, too, whose names are the beginning of the one's."""

    def takes(self, gone: str, other: str) -> bool:
        """Compare the beginnings, the other way round."""
        return gone.startswith(other)


class DestroysOnce(HonestFiles):
    """Fails where there is nothing to destroy."""

    def remove(self, path: Path) -> None:
        """Insist."""
        path.unlink()
        super().remove(path)


class BringsBackTheDestroyed(HonestFiles):
    """Keeps a copy of what is destroyed, and serves it again."""

    def ready(self, name: str) -> None:
        """Bring it back."""
        kept = self.path(name).with_suffix(".kept")
        if kept.exists():
            kept.replace(self.path(name))
            self.mark(name).touch()
        super().ready(name)

    def remove(self, path: Path) -> None:
        """Put it aside."""
        if path.exists():
            path.replace(path.with_suffix(".kept"))
        super().remove(path)


# -- cancelled ---------------------------------------------------------------------------------


class LosesItsPlaceInLine(HonestFiles):
    """Keeps the line of writers shut for ever when one of them is cancelled."""

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.lines = defaultdict(_LeakyLock)


class _LeakyLock(asyncio.Lock):
    async def acquire(self) -> Any:  # noqa: ANN401 - always True
        task = asyncio.current_task()
        assert task is not None
        await super().acquire()
        self._holder = task
        return True

    def release(self) -> None:
        if not self._holder.cancelling():
            super().release()


class LosesReaders(HonestFiles):
    """Has four slots, and loses one when a block raises or is cancelled."""

    def __init__(self, root: Path, metadata: MetaData) -> None:
        super().__init__(root, metadata)
        self.slots = asyncio.Semaphore(4)

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Take a slot."""
        honest = super().session(tenant, read_only=read_only)

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncSession, None]:
            await self.slots.acquire()
            async with honest as session:
                yield session
            self.slots.release()

        return opened()


HONEST_STRATEGIES: Final = (StrategyCase, GuardedCase, ScopedCase)

STRATEGY_MUTANTS: Final = (
    mutant(
        StrategyCase,
        OneFileForAll,
        "test_another_tenants_rows_are_not_seen",
        "test_another_tenants_rows_are_not_changed",
        "test_L15_no_object_crosses_to_another_tenants_session",
    ),
    mutant(
        StrategyCase,
        TakesTurnsWrongly,
        "test_L13_tenants_take_turns_on_the_same_connections",
    ),
    mutant(
        StrategyCase,
        ForgetsTheTenantAfterCommit,
        "test_a_session_stays_its_tenants_after_commit_and_rollback",
    ),
    mutant(
        StrategyCase,
        ForgetsAConnectionsTenantAfterCommit,
        "test_a_connection_stays_its_tenants_after_commit_and_rollback",
    ),
    mutant(
        StrategyCase,
        ForgetsAConnectionsTenantAfterRollback,
        "test_a_connection_stays_its_tenants_after_commit_and_rollback",
    ),
    mutant(ScopedCase, PutsRowsWhereTheirKeySays, "test_no_row_is_planted_with_another_tenant"),
    mutant(ScopedCase, MovesRowsWhereTheirKeySays, "test_no_row_is_planted_with_another_tenant"),
    mutant(StrategyCase, MixesUpUnderLoad, "test_many_tenants_at_once_are_not_mixed_up"),
    mutant(StrategyCase, ServesForeigners, "test_a_tenant_of_another_strategy_is_refused"),
    mutant(GuardedCase, AttachesFiles, "test_sql_that_names_another_tenants_place_is_refused"),
    mutant(GuardedCase, KeepsWhatWasLeft, "test_P1_what_was_left_on_a_connection_reaches_nobody"),
    mutant(StrategyCase, NeverCommits, "test_leaving_the_block_commits"),
    mutant(StrategyCase, CommitsOnExceptions, "test_an_exception_rolls_back"),
    mutant(StrategyCase, WrapsExceptions, "test_an_exception_rolls_back"),
    mutant(
        StrategyCase,
        CommitsWhenCancelled,
        "test_P2_a_writer_cancelled_at_any_moment_leaves_nothing",
    ),
    mutant(
        StrategyCase,
        CommitsEachStatement,
        "test_a_statement_that_fails_rolls_back",
        "test_what_is_not_committed_is_seen_by_nobody",
        "test_savepoints_nest",
    ),
    mutant(StrategyCase, CommitsDdl, "test_ddl_is_part_of_the_transaction"),
    mutant(StrategyCase, ReopensSessions, "test_a_session_that_was_left_is_closed_for_good"),
    mutant(StrategyCase, CountsThoseWhoAsk, "test_nothing_is_done_before_the_block_is_entered"),
    mutant(GuardedCase, AllowsAutocommit, "test_L6_autocommit_is_refused"),
    mutant(StrategyCase, IgnoresReadOnly, "test_read_only_refuses_to_write"),
    mutant(StrategyCase, StaysReadOnly, "test_read_only_does_not_stick_to_a_connection"),
    mutant(
        StrategyCase,
        MakesReadersWait,
        "test_what_is_not_committed_is_seen_by_nobody",
        timeout=1.0,
    ),
    mutant(StrategyCase, TellsTheData, "test_L12_errors_do_not_tell_the_data"),
    mutant(StrategyCase, MakesPlacesOnTheWay, "test_without_a_place_there_is_no_session"),
    mutant(StrategyCase, EmptiesOnProvision, "test_provisioning_again_keeps_the_data"),
    mutant(StrategyCase, ProvisionsOnce, "test_C2_provisioning_twice_at_once_makes_one_place"),
    mutant(StrategyCase, CannotResume, "test_C1_provisioning_that_was_cancelled_can_be_completed"),
    mutant(StrategyCase, DestroysNothing, "test_destroying_removes_the_data_and_nobody_elses"),
    mutant(StrategyCase, DestroysEverybody, "test_destroying_removes_the_data_and_nobody_elses"),
    mutant(
        StrategyCase,
        DestroysLongerNames,
        "test_destroying_spares_those_whose_names_begin_alike",
    ),
    mutant(
        StrategyCase,
        DestroysShorterNames,
        "test_destroying_spares_those_whose_names_begin_alike",
    ),
    mutant(StrategyCase, DestroysOnce, "test_destroying_what_was_never_there_is_no_error"),
    mutant(StrategyCase, BringsBackTheDestroyed, "test_C5_what_was_destroyed_does_not_reappear"),
    mutant(
        StrategyCase,
        LosesItsPlaceInLine,
        "test_P2_a_writer_cancelled_at_any_moment_leaves_nothing",
        timeout=2.0,
    ),
    mutant(
        StrategyCase,
        LosesReaders,
        "test_P2_a_reader_cancelled_at_any_moment_holds_nothing",
        "test_P3_rows_that_are_left_half_way_hold_nothing",
        timeout=2.0,
    ),
)
