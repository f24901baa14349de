"""What a handler does past SQLAlchemy is committed as it seems, and reaches nobody else."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ARRAY, Enum, TypeDecorator, column, func, select, text, values
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.postgres import Note, opened, provisioned
from support.services.databases import fresh_database
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio


NO = False


class Mood(enum.Enum):
    GOOD = "good"


class MoodText(TypeDecorator[Any]):
    impl = Enum(Mood, name="mood")
    cache_ok = True


class Base(DeclarativeBase):
    pass


class Diary(Base):
    __tablename__ = "diary"

    id: Mapped[int] = mapped_column(primary_key=True)
    moods: Mapped[list[Any]] = mapped_column(ARRAY(Enum(Mood, name="mood")))


class Log(DeclarativeBase):
    pass


class Page(Log):
    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    mood: Mapped[Any] = mapped_column(MoodText)


async def driver_of(opened_: Any) -> Any:
    connection = await opened_.connection() if isinstance(opened_, AsyncSession) else opened_
    return (await connection.get_raw_connection()).driver_connection


async def texts(isolation: Any, tenant: Any) -> list[str]:
    async with isolation.session(tenant) as session:
        return sorted(await session.scalars(select(Note.text)))


# -- committed as it seems -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_what_only_the_driver_was_told_is_committed(
    postgres_database: PostgresDatabase, kind: str
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with getattr(isolation, kind)(acme) as held:
            driver = await driver_of(held)
            await driver.copy_records_to_table(
                "notes", records=[(1, "copied")], columns=["id", "text"]
            )
            await held.commit()
        async with getattr(isolation, kind)(acme) as held:
            await (await driver_of(held)).execute("INSERT INTO notes VALUES (2, 'said')")
        with pytest.raises(LookupError):
            async with getattr(isolation, kind)(acme) as held:
                await (await driver_of(held)).execute("INSERT INTO notes VALUES (3, 'lost')")
                raise LookupError
        assert await texts(isolation, acme) == ["copied", "said"]


async def test_nobody_can_make_a_failed_COMMIT_look_well(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        await postgres_database.admin(
            f'ALTER TABLE "{acme.placement.name}".notes'
            " ADD UNIQUE (text) DEFERRABLE INITIALLY DEFERRED"
        )
        with pytest.raises(DBAPIError):
            async with isolation.session(acme) as session:
                for statement in ("SET tenancy.committed = 'on'", "COMMIT", "BEGIN"):
                    await session.execute(text(statement))
                await session.execute(text(f'SET search_path = "{acme.placement.name}"'))
                session.add_all([Note(text="twice"), Note(text="twice")])
        assert await texts(isolation, acme) == []


@pytest.mark.parametrize("pooled", [False, True])
async def test_a_trigger_that_refuses_the_COMMIT_is_no_unknown(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], pooled: bool
) -> None:
    url = None
    if pooled:
        url = postgres_database.url(postgres_database.app, via=pgbouncer(default_pool_size=1))
    async with opened(postgres_database, url=url) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        place = f'"{acme.placement.name}"'
        await postgres_database.admin(
            f"CREATE FUNCTION {place}.no() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'not today'; END $$",
            f"CREATE CONSTRAINT TRIGGER no AFTER INSERT ON {place}.notes"
            f" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {place}.no()",
        )
        with pytest.raises(DBAPIError, match="not today"):
            async with isolation.session(acme) as session:
                session.add(Note(text="lost"))
        assert await texts(isolation, acme) == []


# -- and reaching nobody ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        select(func.set_config("search_path", "", NO)),
        select(values(column("a"), name="v").data([(func.set_config("search_path", "", NO),)])),
        select(Note.id).prefix_with("set_config('search_path', '%s', false),"),
    ],
)
async def test_P1_a_declared_read_leaves_the_next_ones_names_alone(
    postgres_database: PostgresDatabase, query: Any
) -> None:
    async with opened(postgres_database, settings={"schema_mode": "qualified"}) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            session.add(Note(text="acme's"))
        async with isolation.session(acme, read_only=True) as session:
            await session.execute(query)
            await session.execute(text(f'SET search_path = "{acme.placement.name}"'))
            driver = await driver_of(session)
            await driver.execute("SET default_transaction_read_only = off")
        with pytest.raises(DBAPIError, match="does not exist"):
            async with isolation.session(beta, read_only=True) as session:
                await session.execute(text("SELECT text FROM notes"))


@pytest.mark.parametrize("mode", ["search_path", "qualified"])
@pytest.mark.parametrize("read_only", [False, True])
async def test_P1_what_the_driver_was_told_after_a_COMMIT_is_cleaned(
    postgres_database: PostgresDatabase, mode: str, read_only: bool
) -> None:
    probe = text("SELECT pg_catalog.current_setting('statement_timeout')")
    async with opened(postgres_database, settings={"schema_mode": mode}) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.connection(acme, read_only=read_only) as connection:
            await connection.execute(select(Note.id))
            await connection.commit()
            await (await driver_of(connection)).execute("SET statement_timeout = '7s'")
        async with isolation.connection(beta, read_only=read_only) as connection:
            assert await connection.scalar(probe) == "0"


@pytest.mark.parametrize("method", ["fetch", "executemany"])
async def test_P1_the_driver_is_heard_whatever_its_argument_is_called(
    postgres_database: PostgresDatabase, method: str
) -> None:
    setting = "SELECT pg_catalog.set_config('search_path', {}, false)"
    async with opened(postgres_database, settings={"schema_mode": "qualified"}) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.connection(acme, read_only=True) as connection:
            driver = await driver_of(connection)
            if method == "fetch":
                await driver.fetch(query=setting.format(f"'{acme.placement.name}'"))
            else:
                await driver.executemany(
                    command=setting.format("$1"), args=[(acme.placement.name,)]
                )
        with pytest.raises(DBAPIError, match="does not exist"):
            async with isolation.connection(beta, read_only=True) as connection:
                await connection.execute(text("SELECT text FROM notes"))


@pytest.mark.parametrize("remark", ["", "/* of the day */ ", "-- of the day\n"])
async def test_P1_numbers_and_statements_of_one_tenant_are_not_the_nexts(
    postgres_database: PostgresDatabase, remark: str
) -> None:
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            session.add(Note(text="acme's"))
            await session.flush()
            await session.execute(text(remark + "PREPARE q AS SELECT 'acme''s secret'"))
        for statement in ("SELECT pg_catalog.lastval()", "EXECUTE q"):
            with pytest.raises((DBAPIError, BackendUnavailable), match=r"not yet defined|26000"):
                async with isolation.session(beta) as session:
                    await session.execute(text(statement))


async def test_P1_what_the_driver_remembers_goes_with_its_connection(
    postgres_database: PostgresDatabase,
) -> None:
    heard: list[Any] = []
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            driver = await driver_of(session)
            await driver.add_listener("news", lambda *args: heard.append(args))
            await driver.set_type_codec(
                "text", schema="pg_catalog", encoder=str, decoder=lambda value: f"acme:{value}"
            )
        async with isolation.session(beta) as session:
            assert await session.scalar(text("SELECT 'plain'::text")) == "plain"
            await session.execute(text("LISTEN news"))
            await session.execute(text("NOTIFY news, 'beta''s'"))
        assert heard == []
        assert driver.is_closed()


async def test_P1_statements_that_were_dropped_do_not_fail_for_ever(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for tenant in (acme, beta):
            assert await texts(isolation, tenant) == []
        async with isolation.session(acme) as session:
            await session.execute(text("DEALLOCATE ALL"))
        for tenant in (acme, beta, acme):
            assert await texts(isolation, tenant) == []


# -- types, and words for what happened ------------------------------------------------------------


@pytest.mark.parametrize("model", [Diary, Page])
async def test_types_inside_of_others_are_tenants_own_as_well(
    postgres_database: PostgresDatabase, model: Any
) -> None:
    async with opened(postgres_database, metadata=model.metadata) as isolation:
        tenants = await provisioned(isolation, "acme", "beta")
        for number in range(6):
            async with isolation.session(tenants[number % 2]) as session:
                given = {"moods": [Mood.GOOD]} if model is Diary else {"mood": Mood.GOOD}
                session.add(model(**given))
                await session.flush()
                assert (await session.scalars(select(model))).all()


async def test_a_lock_that_was_not_to_be_waited_for_is_the_callers_news(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(
        postgres_database, database_pool_size=2, max_database_connections=4
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            session.add(Note(id=1, text="there"))
        async with isolation.session(acme) as one:
            await one.scalars(select(Note).with_for_update())
            with pytest.raises(DBAPIError, match="could not obtain lock"):
                async with isolation.session(acme) as other:
                    await other.scalars(select(Note).with_for_update(nowait=True))


async def test_a_write_in_a_session_that_was_made_to_read_is_the_callers_mistake(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(DBAPIError, match="read-only transaction"):
            async with isolation.session(acme) as session:
                await session.connection(execution_options={"postgresql_readonly": True})
                session.add(Note(text="lost"))
                await session.flush()


async def test_a_tenant_without_its_role_is_told_so_and_costs_no_connection(
    postgres_server: Postgres,
) -> None:
    pid = text("SELECT pg_catalog.pg_backend_pid()")
    with fresh_database(postgres_server, createrole=True) as database:
        async with opened(database, settings={"schema_roles": True}) as isolation:
            (acme,) = await provisioned(isolation, "acme")
            pids = []
            for _ in range(2):
                async with isolation.session(acme) as session:
                    pids.append(await session.scalar(pid))
                with pytest.raises(IsolationError, match="not provisioned"):
                    async with isolation.session(make_tenant("ghost", isolation="schema")) as held:
                        await held.execute(text("SELECT 1"))
            assert len(set(pids)) == 1
            await isolation.destroy(acme)
