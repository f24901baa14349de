"""What every isolation strategy does: a session is one tenant's, and all or nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenancy_core.errors import (
    AlreadyProvisioning,
    BackendUnavailable,
    IsolationError,
    TenancyError,
)
from tenancy_core.testing.fakes import make_tenant
from tenancy_core.testing.suite import MOST_WAITS, Suite, requires, run_together, strike

if TYPE_CHECKING:
    from collections.abc import (
        Mapping,
        Sequence,
    )

    from sqlalchemy import MetaData

    from tenancy_core.contract import IsolationStrategy
    from tenancy_core.tenant import Tenant

__all__ = ["IsolationSuite", "SuiteNote"]

TABLE: Final = "tenancy_suite_notes"


class _Base(DeclarativeBase):
    pass


class SuiteNote(_Base):
    """A line of text: the table that the suite works on."""

    __tablename__ = TABLE

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class IsolationSuite(Suite, published=True):
    """Conformance of an :class:`~tenancy_core.contract.IsolationStrategy`.

    A subclass gives the fixture ``isolation``: open, on a database without tenants, and made with
    the tables in :attr:`metadata`. It gives every session one of few connections, so that they
    are used again: four are a good number. It runs on asyncio, as SQLAlchemy does.

    Attributes:
        isolation_name: The name under which the strategy is registered.
        model: The mapped class that the tests read and write: columns ``id`` (integer) and
            ``text`` (unique within a tenant), table ``tenancy_suite_notes``. A strategy that needs
            a further column on each table gives a class of its own, and :meth:`key` if that column
            is part of the primary key.
    """

    isolation_name: ClassVar[str] = "database"
    model: ClassVar[type[Any]] = SuiteNote

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "cleans_connections": "what a handler left on a connection does not reach the next; give "
        "`leavings` as well",
        "concurrent_sessions": "two sessions can be open at the same time, whatever tenants' they "
        "are; a pooler with one connection gives that to one only",
        "concurrent_writers": "two sessions of one tenant can write at the same time",
        "own_place": "each tenant has a schema, database or file of its own, so that one which is "
        "not provisioned is known to be missing",
        "refuses_autocommit": "a session cannot be switched to AUTOCOMMIT",
        "server_enforced": "raw SQL that names another tenant's place is refused; give `attacks` "
        "as well",
        "transactional_ddl": "CREATE TABLE is rolled back with its transaction",
    }

    @property
    def metadata(self) -> MetaData:
        """The tables that a tenant of these tests has."""
        found: MetaData = self.model.metadata
        return found

    @pytest.fixture
    def isolation(self) -> IsolationStrategy:
        """Give the strategy that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `isolation`.")

    def tenant_for(self, identifier: str) -> Tenant:
        """Return the record of a new tenant, not provisioned yet."""
        return make_tenant(identifier, isolation=self.isolation_name)

    def table_of(self, tenant: Tenant) -> str:  # noqa: ARG002 - for those that need it
        """Return how raw SQL in a session of a tenant names the table of the tests."""
        return TABLE

    def key(self, tenant: Tenant, number: int) -> dict[str, Any]:  # noqa: ARG002 - for keys that hold the tenant
        """Return the primary key of a row, by attribute: of ``number``, and more if there is more.

        Args:
            tenant: Whose row it is.
            number: Its ``id``.
        """
        return {"id": number}

    def attacks(self, victim: Tenant) -> Sequence[Sequence[str]]:
        """Return SQL that reaches for the table of the victim, by whatever name it has.

        Returns:
            Attacks; each is statements that run one after the other on one connection.
        """
        raise NotImplementedError(
            f"{type(self).__name__} declares `server_enforced` and has to define `attacks`."
        )

    def leavings(self) -> Sequence[tuple[str, str]]:
        """Return pairs of SQL: what leaves something on a connection, and what would show it.

        The second one gives the same rows, or the same error, as on a new connection.
        """
        raise NotImplementedError(
            f"{type(self).__name__} declares `cleans_connections` and has to define `leavings`."
        )

    @pytest.fixture
    async def acme(self, isolation: IsolationStrategy) -> Tenant:
        """A tenant, provisioned."""
        return await self._provisioned(isolation, "acme")

    @pytest.fixture
    async def beta(self, isolation: IsolationStrategy) -> Tenant:
        """Another tenant, provisioned."""
        return await self._provisioned(isolation, "beta")

    # -- one transaction ---------------------------------------------------------------------------

    async def test_leaving_the_block_commits(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """What a session wrote is there for the next one, of whatever kind."""
        async with isolation.session(acme) as session:
            assert isinstance(session, AsyncSession)
            session.add(self.model(text="by session"))
        async with isolation.connection(acme) as connection:
            assert isinstance(connection, AsyncConnection)
            await connection.execute(insert(self.model).values(text="by connection"))
        for read_only in (False, True):
            assert await self._texts(isolation, acme, read_only=read_only) == [
                "by connection",
                "by session",
            ]

    @pytest.mark.parametrize("kind", ["session", "connection"])
    async def test_an_exception_rolls_back(
        self, isolation: IsolationStrategy, acme: Tenant, kind: str
    ) -> None:
        """Of a block that raises nothing is kept, and its exception comes out as it was."""
        error = LookupError("the handler's own")
        with pytest.raises(LookupError) as caught:
            async with getattr(isolation, kind)(acme) as opened:
                await opened.execute(insert(self.model).values(text="lost"))
                raise error
        assert caught.value is error
        assert await self._texts(isolation, acme) == []
        await self._write(isolation, acme, "next")
        assert await self._texts(isolation, acme) == ["next"]

    async def test_a_statement_that_fails_rolls_back(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """After an error of the database nothing of its block is kept, and the next one works."""
        await self._write(isolation, acme, "there")
        with pytest.raises(SQLAlchemyError):
            async with isolation.session(acme) as session:
                session.add(self.model(text="lost"))
                await session.flush()
                session.add(self.model(text="there"))
                await session.flush()
        assert await self._texts(isolation, acme) == ["there"]

    @requires("concurrent_sessions")
    async def test_what_is_not_committed_is_seen_by_nobody(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A reader does not see, and does not wait for, what a writer has not committed."""
        async with isolation.session(acme) as session:
            session.add(self.model(text="later"))
            await session.flush()
            assert await self._texts(isolation, acme, read_only=True) == []
        assert await self._texts(isolation, acme, read_only=True) == ["later"]

    async def test_savepoints_nest(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """A savepoint that is rolled back takes its own writes, and not the tenant."""
        await self._write(isolation, beta, "beta's")
        async with isolation.session(acme) as session:
            session.add(self.model(text="outer"))
            with suppress(LookupError):
                async with session.begin_nested():
                    session.add(self.model(text="lost"))
                    await session.flush()
                    async with session.begin_nested():
                        session.add(self.model(text="lost as well"))
                        await session.flush()
                    raise LookupError
            async with session.begin_nested():
                session.add(self.model(text="inner"))
            assert await _all(session, self.model) == ["inner", "outer"]
        assert await self._texts(isolation, acme) == ["inner", "outer"]
        assert await self._texts(isolation, beta) == ["beta's"]

    async def test_a_session_stays_its_tenants_after_commit_and_rollback(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Every transaction of a session is the same tenant's, not only the first."""
        await self._write(isolation, beta, "beta's")
        async with isolation.session(acme) as session:
            for number in range(3):
                session.add(self.model(text=f"kept {number}"))
                await session.commit()
                assert "beta's" not in await _all(session, self.model)
                session.add(self.model(text=f"lost {number}"))
                await session.flush()
                await session.rollback()
                assert await _all(session, self.model) == [f"kept {n}" for n in range(number + 1)]
        assert await self._texts(isolation, acme) == ["kept 0", "kept 1", "kept 2"]
        assert await self._texts(isolation, beta) == ["beta's"]

    async def test_a_connection_stays_its_tenants_after_commit_and_rollback(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Every transaction of a connection is the same tenant's, not only the first."""
        async with isolation.connection(beta) as connection:
            await connection.execute(insert(self.model).values(text="beta's"))
        async with isolation.connection(acme) as connection:
            for number in range(3):
                kept = [f"kept {n}" for n in range(number + 1)]
                await connection.execute(insert(self.model).values(text=kept[-1]))
                await connection.commit()
                assert await _all(connection, self.model) == kept
                await connection.execute(insert(self.model).values(text=f"lost {number}"))
                await connection.rollback()
                assert await _all(connection, self.model) == kept
        assert await self._texts(isolation, acme) == ["kept 0", "kept 1", "kept 2"]
        assert await self._texts(isolation, beta) == ["beta's"]

    async def test_a_session_that_was_left_is_closed_for_good(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A session that is used after its block raises; it does not open another transaction."""
        async with isolation.session(acme) as session:
            await _all(session, self.model)
        with pytest.raises(SQLAlchemyError):
            await session.execute(insert(self.model).values(text="lost"))
        with pytest.raises(SQLAlchemyError):
            session.add(self.model(text="lost"))
            await session.commit()
        async with isolation.connection(acme) as connection:
            await connection.execute(select(self.model.text))
        with pytest.raises(SQLAlchemyError):
            await connection.execute(insert(self.model).values(text="lost"))
        assert await self._texts(isolation, acme) == []

    async def test_nothing_is_done_before_the_block_is_entered(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """``session`` and ``connection`` only prepare: one that is not entered holds nothing."""
        for _ in range(50):
            isolation.session(acme)
            isolation.connection(acme)
        await self._write(isolation, acme, "next")
        assert await self._texts(isolation, acme) == ["next"]

    @requires("transactional_ddl")
    async def test_ddl_is_part_of_the_transaction(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A table that was created in a block that raised is not there."""
        with pytest.raises(LookupError):
            async with isolation.connection(acme) as connection:
                await connection.execute(text("CREATE TABLE tenancy_suite_lost (id INTEGER)"))
                raise LookupError
        with pytest.raises(SQLAlchemyError):
            async with isolation.connection(acme) as connection:
                await connection.execute(text("SELECT id FROM tenancy_suite_lost"))

    @requires("refuses_autocommit")
    async def test_L6_autocommit_is_refused(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """AUTOCOMMIT ends what is local to a transaction, so asking for it is an IsolationError."""
        with pytest.raises(IsolationError):
            async with isolation.session(acme) as session:
                await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
                await session.execute(select(self.model.text))
        assert await self._texts(isolation, acme) == []

    # -- one tenant --------------------------------------------------------------------------------

    async def test_another_tenants_rows_are_not_seen(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Through the ORM, the core and raw SQL, a session sees its own tenant's rows only."""
        await self._write(isolation, acme, "acme 1", "acme 2")
        await self._write(isolation, beta, "beta 1")
        for tenant, expected in ((acme, ["acme 1", "acme 2"]), (beta, ["beta 1"])):
            for read_only in (False, True):
                async with isolation.session(tenant, read_only=read_only) as session:
                    notes = await session.scalars(select(self.model))
                    assert sorted(note.text for note in notes) == expected
                    place = self.table_of(tenant)
                    rows = await session.execute(text(f"SELECT text FROM {place}"))  # noqa: S608 - ours
                    assert sorted(row.text for row in rows) == expected
                async with isolation.connection(tenant, read_only=read_only) as connection:
                    count = select(func.count()).select_from(self.model)
                    assert (await connection.execute(count)).scalar_one() == len(expected)

    async def test_another_tenants_rows_are_not_changed(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """UPDATE and DELETE without a WHERE, in the ORM and in raw SQL, stay within the tenant."""
        await self._write(isolation, beta, "beta's")
        place = self.table_of(acme)
        statements = (
            update(self.model).values(text="changed"),
            text(f"UPDATE {place} SET text = 'changed again'"),  # noqa: S608 - ours
            delete(self.model),
            text(f"DELETE FROM {place}"),  # noqa: S608 - ours
        )
        for statement in statements:
            await self._write(isolation, acme, "acme's")
            async with isolation.session(acme) as session:
                await session.execute(statement)
            assert await self._texts(isolation, beta) == ["beta's"]
            async with isolation.connection(acme) as connection:
                await connection.execute(delete(self.model))

    async def test_no_row_is_planted_with_another_tenant(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """A row that is written under another tenant's key, or moved to it, does not get there.

        It is refused, or it is the writer's own row: a key need not hold the tenant where each has
        a place of its own.
        """
        async with isolation.session(beta) as session:
            session.add(self.model(**self.key(beta, 1), text="beta's"))
        for kind in ("session", "connection"):
            for write in (insert, update):
                async with getattr(isolation, kind)(acme) as opened:
                    await opened.execute(delete(self.model))
                    # Under a key of its own it can: what is refused below is not its form.
                    own = insert(self.model).values(**self.key(acme, 1), text="acme's")
                    await opened.execute(own)
                assert await self._texts(isolation, acme) == ["acme's"]
                with suppress(SQLAlchemyError, TenancyError):
                    async with getattr(isolation, kind)(acme) as opened:
                        planted = write(self.model).values(**self.key(beta, 7), text="planted")
                        await opened.execute(planted)
                assert await self._texts(isolation, beta) == ["beta's"]
        with suppress(SQLAlchemyError, TenancyError):
            async with isolation.session(acme) as session:
                session.add(self.model(**self.key(beta, 8), text="planted by the ORM"))
        assert await self._texts(isolation, beta) == ["beta's"]

    @requires("concurrent_sessions")
    async def test_L15_no_object_crosses_to_another_tenants_session(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """``get`` and ``merge`` of a key that two tenants have meet the session's own row."""
        for tenant in (acme, beta):
            async with isolation.session(tenant) as session:
                session.add(self.model(id=1, text=tenant.identifier))
        async with isolation.session(acme) as one, isolation.session(beta) as other:
            mine = await one.get(self.model, self.key(acme, 1))
            theirs = await other.get(self.model, self.key(beta, 1))
            assert mine is not None
            assert theirs is not None
            assert (mine.text, theirs.text) == ("acme", "beta")
            assert mine is not theirs
            merged = await other.merge(self.model(**self.key(beta, 1), text="merged"))
            assert merged is theirs
        assert await self._texts(isolation, acme) == ["acme"]
        assert await self._texts(isolation, beta) == ["merged"]

    async def test_L13_tenants_take_turns_on_the_same_connections(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Two hundred sessions in turn, with the same statements, each see their own tenant."""
        for tenant in (acme, beta):
            await self._write(isolation, tenant, tenant.identifier)
        for turn in range(200):
            tenant = (acme, beta)[turn % 2]
            async with isolation.session(tenant, read_only=turn % 3 == 0) as session:
                assert await _all(session, self.model) == [tenant.identifier]

    async def test_many_tenants_at_once_are_not_mixed_up(
        self, isolation: IsolationStrategy
    ) -> None:
        """Sessions of eight tenants, interleaved over few connections, each see their own rows."""
        tenants = [await self._provisioned(isolation, f"tenant-{number}") for number in range(8)]

        async def work(number: int) -> None:
            tenant = tenants[number % len(tenants)]
            words = f"{tenant.identifier}:{number}"
            async with isolation.session(tenant) as session:
                session.add(self.model(text=words))
                await session.flush()
                await anyio.lowlevel.checkpoint()
                found = await _all(session, self.model)
                assert words in found
                assert {one.partition(":")[0] for one in found} == {tenant.identifier}
            found = await self._texts(isolation, tenant, read_only=True)
            assert {one.partition(":")[0] for one in found} == {tenant.identifier}

        await run_together(partial(work, number) for number in range(96))
        for number, tenant in enumerate(tenants):
            expected = sorted(f"{tenant.identifier}:{n}" for n in range(number, 96, len(tenants)))
            assert await self._texts(isolation, tenant) == expected

    @requires("concurrent_sessions", "concurrent_writers")
    async def test_two_sessions_of_a_tenant_write_at_the_same_time(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A writer does not wait until another writer of its tenant has committed."""
        async with isolation.session(acme) as one, isolation.session(acme) as other:
            for number, session in enumerate((one, other, one, other)):
                session.add(self.model(text=f"line {number}"))
                await session.flush()
        assert await self._texts(isolation, acme) == [f"line {number}" for number in range(4)]

    @requires("server_enforced")
    async def test_sql_that_names_another_tenants_place_is_refused(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Reaching for another tenant's table by its full name reads nothing and writes nothing."""
        await self._write(isolation, beta, "beta's secret")
        attacks = self.attacks(beta)
        assert attacks
        for attack in attacks:
            for read_only in (False, True):
                with suppress(SQLAlchemyError, TenancyError):
                    async with isolation.connection(acme, read_only=read_only) as connection:
                        for statement in attack:
                            found = await connection.exec_driver_sql(statement)
                            rows: list[Any] = [*found.all()] if found.returns_rows else []
                            assert "beta's secret" not in repr(rows), statement
        assert await self._texts(isolation, beta) == ["beta's secret"]

    @requires("cleans_connections")
    async def test_P1_what_was_left_on_a_connection_reaches_nobody(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Settings, temporary tables and locks of one block are not there for the next."""
        leavings = self.leavings()
        assert leavings
        for leave, probe in leavings:
            for tenant in (acme, beta):
                expected = await self._answer(isolation, tenant, probe)
                for fails in (False, True):
                    with suppress(LookupError):
                        async with isolation.connection(acme) as connection:
                            await connection.exec_driver_sql(leave)
                            if fails:
                                raise LookupError
                    # As often as there are connections that it may have been.
                    for _ in range(5):
                        assert await self._answer(isolation, tenant, probe) == expected, leave

    # -- reading -----------------------------------------------------------------------------------

    async def test_read_only_refuses_to_write(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """With ``read_only=True`` every kind of write raises, and nothing is written."""
        await self._write(isolation, acme, "there")
        writes = (
            insert(self.model).values(text="lost"),
            update(self.model).values(text="changed"),
            delete(self.model),
            text(f"DELETE FROM {self.table_of(acme)}"),  # noqa: S608 - ours
            text("CREATE TABLE tenancy_suite_lost (id INTEGER)"),
        )
        for statement in writes:
            for kind in ("session", "connection"):
                with pytest.raises((SQLAlchemyError, TenancyError)):
                    async with getattr(isolation, kind)(acme, read_only=True) as opened:
                        await opened.execute(statement)
        with pytest.raises((SQLAlchemyError, TenancyError)):
            async with isolation.session(acme, read_only=True) as session:
                session.add(self.model(text="lost"))
        assert await self._texts(isolation, acme) == ["there"]

    async def test_read_only_does_not_stick_to_a_connection(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A connection that was used for reading can be written on, and the other way round."""
        for number in range(12):
            await self._texts(isolation, acme, read_only=True)
            await self._write(isolation, acme, f"line {number:02}")
            with pytest.raises((SQLAlchemyError, TenancyError)):
                async with isolation.session(acme, read_only=True) as session:
                    await session.execute(delete(self.model))
        assert len(await self._texts(isolation, acme, read_only=True)) == 12

    # -- the place ---------------------------------------------------------------------------------

    async def test_provisioning_again_keeps_the_data(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A second ``provision`` completes the first, and takes nothing away."""
        assert await isolation.exists(acme)
        await self._write(isolation, acme, "kept")
        for _ in range(2):
            await isolation.provision(acme)
        assert await isolation.exists(acme)
        assert await self._texts(isolation, acme) == ["kept"]

    async def test_C2_provisioning_twice_at_once_makes_one_place(
        self, isolation: IsolationStrategy
    ) -> None:
        """Of several at once all succeed, or all but one are told AlreadyProvisioning."""
        tenant = self.tenant_for("acme")
        outcomes: list[str] = []

        async def provision() -> None:
            try:
                await isolation.provision(tenant)
            except AlreadyProvisioning:
                outcomes.append("told")
            else:
                outcomes.append("done")

        await run_together([provision] * 5)
        assert "done" in outcomes
        assert await isolation.exists(tenant)
        await self._write(isolation, tenant, "kept")
        assert await self._texts(isolation, tenant) == ["kept"]

    @requires("own_place")
    async def test_without_a_place_there_is_no_session(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A tenant that is not provisioned is refused, and gets no empty place on the way."""
        tenant = self.tenant_for("nobody")
        assert not await isolation.exists(tenant)
        for kind in ("session", "connection"):
            for read_only in (False, True):
                with pytest.raises((BackendUnavailable, IsolationError)):
                    async with getattr(isolation, kind)(tenant, read_only=read_only) as opened:
                        await opened.execute(select(self.model.text))
                assert not await isolation.exists(tenant)
        await self._write(isolation, acme, "served")
        await isolation.provision(tenant)
        assert await isolation.exists(tenant)
        assert await self._texts(isolation, tenant) == []

    async def test_destroying_removes_the_data_and_nobody_elses(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """After ``destroy`` nothing is there, nor after provisioning again; others stay."""
        await self._write(isolation, acme, "acme's")
        await self._write(isolation, beta, "beta's")
        for _ in range(2):
            await isolation.destroy(acme)
            if "own_place" in self.capabilities:
                assert not await isolation.exists(acme)
        assert await isolation.exists(beta)
        assert await self._texts(isolation, beta) == ["beta's"]
        await isolation.provision(acme)
        assert await self._texts(isolation, acme) == []
        await self._write(isolation, acme, "new")
        assert await self._texts(isolation, acme) == ["new"]

    async def test_destroying_spares_those_whose_names_begin_alike(
        self, isolation: IsolationStrategy
    ) -> None:
        """``destroy`` of tenant-1 takes nothing of tenant-10, nor the other way round."""
        names = ("tenant-1", "tenant-10")
        short, long = [await self._provisioned(isolation, name) for name in names]
        for tenant in (short, long):
            await self._write(isolation, tenant, tenant.identifier)
        for gone, stays in ((short, long), (long, short)):
            await isolation.destroy(gone)
            assert await isolation.exists(stays)
            assert await self._texts(isolation, stays) == [stays.identifier]
            await isolation.provision(gone)
            assert await self._texts(isolation, gone) == []
            assert await self._texts(isolation, stays) == [stays.identifier]
            await self._write(isolation, gone, gone.identifier)

    async def test_destroying_what_was_never_there_is_no_error(
        self, isolation: IsolationStrategy
    ) -> None:
        """``destroy`` is idempotent from the start."""
        tenant = self.tenant_for("nobody")
        await isolation.destroy(tenant)
        await isolation.provision(tenant)
        assert await self._texts(isolation, tenant) == []

    @requires("own_place")
    async def test_C5_what_was_destroyed_does_not_reappear(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """Connections that were open before ``destroy`` neither serve nor bring back anything."""
        await run_together(
            partial(self._write, isolation, acme, f"line {number}") for number in range(6)
        )
        await isolation.destroy(acme)
        for read_only in (False, True):
            with pytest.raises((BackendUnavailable, IsolationError)):
                await self._texts(isolation, acme, read_only=read_only)
        with pytest.raises((BackendUnavailable, IsolationError)):
            await self._write(isolation, acme, "into the void")
        assert not await isolation.exists(acme)
        await isolation.provision(acme)
        assert await self._texts(isolation, acme) == []

    async def test_a_tenant_of_another_strategy_is_refused(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """A tenant whose record names another strategy is an IsolationError, whatever is asked."""
        await self._write(isolation, acme, "kept")
        foreign = replace(acme, isolation=f"not-{self.isolation_name}")
        for kind in ("session", "connection"):
            with pytest.raises(IsolationError):
                async with getattr(isolation, kind)(foreign) as opened:
                    await opened.execute(select(self.model.text))
        for kind in ("provision", "exists", "destroy"):
            with pytest.raises(IsolationError):
                await getattr(isolation, kind)(foreign)
        assert await self._texts(isolation, acme) == ["kept"]

    # -- cancelled ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("how", ["once", "again and again"])
    @pytest.mark.parametrize("kind", ["session", "connection"])
    async def test_P2_a_writer_cancelled_at_any_moment_leaves_nothing(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant, kind: str, how: str
    ) -> None:
        """Wherever it is struck, its transaction is rolled back before its connection is reused."""
        await self._write(isolation, beta, "beta's")
        for point in range(MOST_WAITS):
            left: list[str] = []

            # Texts of its own: a COMMIT that nobody waits for may take place later.
            both = [f"{point}: half {number}" for number in range(2)]

            async def work(left: list[str] = left, both: list[str] = both) -> None:
                async with getattr(isolation, kind)(acme) as opened:
                    for half in both:
                        await opened.execute(insert(self.model).values(text=half))
                    await opened.execute(select(self.model.text))
                    left.append("the body")
                left.append("the block")

            struck = await strike(work(), point, insist=how != "once")
            texts = await self._texts(isolation, acme)
            found = [one for one in texts if one.startswith(f"{point}:")]
            # Whether a commit took place when its answer was not waited for, nobody can know.
            allowed: tuple[list[list[str]], ...] = ([[]], [[], both], [both])
            assert found in allowed[len(left)], (
                f"It was struck when it waited for the {point + 1}. time."
            )
            async with isolation.session(acme) as session:
                await session.execute(delete(self.model))
            if not struck:
                break
        else:
            raise AssertionError(f"A transaction still waited after {MOST_WAITS} times.")
        assert await self._texts(isolation, beta) == ["beta's"]
        await self._everybody_is_served(isolation, acme, beta)

    async def test_P2_a_reader_cancelled_at_any_moment_holds_nothing(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """Wherever it is struck, its connection is given back, and the next one is served."""
        await self._write(isolation, acme, "there")
        for point in range(MOST_WAITS):
            struck = await strike(
                self._texts(isolation, acme, read_only=True), point, insist=point % 2 == 0
            )
            assert await self._texts(isolation, acme, read_only=True) == ["there"]
            if not struck:
                break
        await self._everybody_is_served(isolation, acme, beta)

    async def test_P3_rows_that_are_left_half_way_hold_nothing(
        self, isolation: IsolationStrategy, acme: Tenant, beta: Tenant
    ) -> None:
        """A stream of rows that its reader leaves gives its connection back."""
        await self._write(isolation, acme, *[f"line {number}" for number in range(200)])
        for _ in range(8):
            with pytest.raises(LookupError):
                async with isolation.session(acme, read_only=True) as session:
                    rows = await session.stream(select(self.model).execution_options(yield_per=10))
                    async for _row in rows:
                        raise LookupError
        await self._everybody_is_served(isolation, acme, beta)

    async def test_C1_provisioning_that_was_cancelled_can_be_completed(
        self, isolation: IsolationStrategy
    ) -> None:
        """Wherever ``provision`` is struck, running it again makes the place complete."""
        for point in range(MOST_WAITS):
            tenant = self.tenant_for(f"tenant-{point}")
            struck = await strike(isolation.provision(tenant), point, insist=point % 2 == 0)
            if await isolation.exists(tenant):
                assert await self._texts(isolation, tenant) == []
            await isolation.provision(tenant)
            assert await isolation.exists(tenant)
            await self._write(isolation, tenant, "kept")
            assert await self._texts(isolation, tenant) == ["kept"]
            await isolation.destroy(tenant)
            if not struck:
                return
        raise AssertionError(f"provision still waited after {MOST_WAITS} times.")

    # -- what it says ------------------------------------------------------------------------------

    async def test_L12_errors_do_not_tell_the_data(
        self, isolation: IsolationStrategy, acme: Tenant
    ) -> None:
        """The parameters of a statement that failed are not in the text of its error."""
        canary = "canary-7f3a91"
        async with isolation.session(acme) as session:
            session.add(self.model(id=7, text="there"))
        for kind in ("session", "connection"):
            with pytest.raises(SQLAlchemyError) as caught:
                async with getattr(isolation, kind)(acme) as opened:
                    await opened.execute(insert(self.model).values(id=7, text=canary))
            assert canary not in f"{caught.value!s} {caught.value!r}"

    # -- helpers -----------------------------------------------------------------------------------

    async def _provisioned(self, isolation: IsolationStrategy, identifier: str) -> Tenant:
        tenant = self.tenant_for(identifier)
        await isolation.provision(tenant)
        return tenant

    async def _write(self, isolation: IsolationStrategy, tenant: Tenant, *texts: str) -> None:
        async with isolation.session(tenant) as session:
            session.add_all([self.model(text=one) for one in texts])

    async def _texts(
        self, isolation: IsolationStrategy, tenant: Tenant, *, read_only: bool = False
    ) -> list[str]:
        async with isolation.session(tenant, read_only=read_only) as session:
            return await _all(session, self.model)

    async def _answer(self, isolation: IsolationStrategy, tenant: Tenant, probe: str) -> str:
        try:
            async with isolation.connection(tenant) as connection:
                return repr((await connection.exec_driver_sql(probe)).all())
        except SQLAlchemyError as error:
            return type(error).__name__

    async def _everybody_is_served(self, isolation: IsolationStrategy, *tenants: Tenant) -> None:
        """See that no connection was lost: many at once, of every tenant, come through."""
        await run_together(
            partial(self._texts, isolation, tenant, read_only=number % 2 == 0)
            for number in range(24)
            for tenant in tenants
        )


async def _all(opened: AsyncSession | AsyncConnection, model: type[Any]) -> list[str]:
    return sorted(await opened.scalars(select(model.text)))
