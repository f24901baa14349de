"""Tables whose rows belong to tenants: one model for every database, and what is wrong with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from sqlalchemy.schema import CreateTable

from tenancy_core import Tenancy
from tenancy_core.errors import NoCurrentTenant
from tenancy_core.sql import (
    GLOBAL,
    TenantScoped,
    tenant_column,
    tenant_foreign_key,
    tenant_unique,
)
from tenancy_core.sql.flaws import flaws_of
from tenancy_core.sql.scoped import has_scoped_tables, is_global, scope_column

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig


class Base(DeclarativeBase):
    pass


class Note(TenantScoped, Base):
    __tablename__ = "notes"
    __table_args__ = (tenant_unique("title"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]


class Line(TenantScoped, Base):
    __tablename__ = "lines"
    __table_args__ = (tenant_foreign_key(["note_id"], Note, ondelete="CASCADE"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note_id: Mapped[UUID]


class Currency(Base):
    __tablename__ = "currencies"
    __table_args__: ClassVar = {"info": GLOBAL}

    code: Mapped[str] = mapped_column(primary_key=True)


NOTES: Any = Note.__table__
TEXTS = Table(
    "texts", Base.metadata, tenant_column("text"), Column("id", Integer, primary_key=True)
)


def ddl(table: Any, dialect: Any) -> str:
    return " ".join(str(CreateTable(table).compile(dialect=dialect)).split())


# -- what is declared ------------------------------------------------------------------------------


def test_the_tenant_is_the_first_column_and_the_first_of_the_key() -> None:
    for table in (Note.__table__, Line.__table__, TEXTS):
        assert next(iter(table.columns)).name == "tenant_id"
        assert next(iter(table.primary_key)).name == "tenant_id"
        assert scope_column(table) is table.c.tenant_id
    assert scope_column(Currency.__table__) is None
    assert is_global(Currency.__table__)
    assert not is_global(Note.__table__)


def test_a_copy_of_the_tables_is_scoped_as_well() -> None:
    copied = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(copied)
    assert flaws_of(copied) == []
    assert scope_column(copied.tables["notes"]) is not None
    assert is_global(copied.tables["currencies"])
    assert has_scoped_tables(copied)
    assert not has_scoped_tables(MetaData())


def test_postgres_reads_the_setting_where_nobody_names_the_tenant() -> None:
    dialect: Any = postgresql.dialect()
    value = "nullif(current_setting('app.tenant_id', true), '')"
    assert f"tenant_id UUID DEFAULT ({value})::uuid NOT NULL" in ddl(Note.__table__, dialect)
    assert f"tenant_id TEXT DEFAULT {value} NOT NULL" in ddl(TEXTS, dialect)
    dialect.tenancy_rls_setting = "it's.another"
    assert "current_setting('it''s.another', true)" in ddl(Note.__table__, dialect)
    assert "DEFAULT NULL NOT NULL" in ddl(Note.__table__, sqlite.dialect())


def test_keys_lead_with_the_tenant() -> None:
    (reference,) = Line.__table__.foreign_key_constraints
    assert reference.column_keys == ["tenant_id", "note_id"]
    assert [one.target_fullname for one in reference.elements] == ["notes.tenant_id", "notes.id"]
    by_name = tenant_foreign_key(["parent"], "shop.parents", ["number"], ondelete="CASCADE")
    assert [one.target_fullname for one in by_name.elements] == [
        "shop.parents.tenant_id",
        "shop.parents.number",
    ]
    assert by_name.ondelete == "CASCADE"
    by_default = tenant_foreign_key(["parent_id"], "parents")
    assert by_default.elements[1].target_fullname == "parents.id"
    assert tenant_foreign_key(["note_id"], NOTES).elements[1].target_fullname == "notes.id"
    (unique,) = (one for one in Note.__table__.constraints if isinstance(one, UniqueConstraint))
    assert [column.name for column in unique.columns] == ["tenant_id", "title"]


# -- what is written -------------------------------------------------------------------------------


@pytest.fixture
async def shop(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[Tenancy]:
    async with Tenancy(make_config(), metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme", name="Acme Ltd")
        yield tenancy


@pytest.mark.anyio
async def test_the_session_fills_in_its_tenant(shop: Tenancy) -> None:
    async with shop.scope("acme") as tenant, shop.session() as session:
        note = Note(title="by the ORM")
        session.add(note)
        await session.flush()
        assert note.tenant_id == tenant.id
        await session.execute(insert(Note).values(title="by a statement"))
        await session.execute(insert(Note), [{"title": "one"}, {"title": "other"}])
        await session.execute(insert(TEXTS).values(id=1))
        assert {*await session.scalars(select(Note.tenant_id))} == {tenant.id}
        assert await session.scalar(select(TEXTS.c.tenant_id)) == str(tenant.id)
        assert await session.get(Note, (tenant.id, note.id)) is note
        assert await session.get(Note, {"tenant_id": tenant.id, "id": note.id}) is note


@pytest.mark.anyio
async def test_a_connection_fills_in_its_tenant(shop: Tenancy) -> None:
    async with shop.scope("acme") as tenant, shop.connection() as connection:
        await connection.execute(insert(Note).values(title="by a connection"))
        await connection.execute(insert(TEXTS).from_select(["id"], select(func.length(Note.title))))
        assert (await connection.execute(select(Note.tenant_id))).scalar_one() == tenant.id
        assert (await connection.execute(select(TEXTS.c.tenant_id))).scalar_one() == str(tenant.id)


@pytest.mark.anyio
async def test_raw_sql_that_names_no_tenant_is_refused_where_there_is_no_setting(
    shop: Tenancy,
) -> None:
    async with shop.scope("acme"):
        with pytest.raises(IntegrityError):
            async with shop.session() as session:
                await session.execute(text("INSERT INTO texts (id) VALUES (1)"))


@pytest.mark.anyio
@pytest.mark.parametrize("statement", [insert(Note).values(title="x"), insert(TEXTS).values(id=1)])
async def test_outside_of_a_tenants_session_nobody_is_assumed(statement: Any) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    async with AsyncSession(engine) as session:
        with pytest.raises(NoCurrentTenant, match=r"nobody knows whose it is.*give tenant_id"):
            await session.execute(statement)
    await engine.dispose()


@pytest.mark.anyio
async def test_numbers_are_given_by_the_application_on_sqlite(shop: Tenancy) -> None:
    async with shop.scope("acme"), shop.session() as session:
        note = Note(title="with lines")
        session.add(note)
        await session.flush()
        session.add_all([Line(id=number, note_id=note.id) for number in range(3)])
    async with shop.scope("acme"):
        with pytest.raises(IntegrityError):
            async with shop.session() as session:
                session.add(Line(note_id=note.id))


def test_mapped_dataclasses_can_be_scoped() -> None:
    class Records(MappedAsDataclass, DeclarativeBase):
        pass

    class Record(Records):
        __tablename__ = "records"

        tenant_id = tenant_column()
        id: Mapped[int] = mapped_column(primary_key=True)

    assert flaws_of(Records.metadata) == []
    assert Record(id=1).id == 1


# -- what is wrong ---------------------------------------------------------------------------------


def test_tables_that_keep_to_their_tenant_have_no_flaws() -> None:
    Table(
        "fine",
        metadata := MetaData(),
        tenant_column(),
        Column("id", Integer, primary_key=True),
        Column("parent_id", Integer),
        Column("slug", String),
        Column("room", String),
        tenant_foreign_key(["parent_id"], "fine"),
        Index("fine_lower", "tenant_id", func.lower(text("slug")), unique=True),
        Index("fine_slug", "slug"),
        UniqueConstraint("room", info=GLOBAL),
        Index("fine_room", "room", unique=True, info=GLOBAL),
        ExcludeConstraint(("tenant_id", "="), ("room", "=")),
    )
    assert flaws_of(metadata) == []
    assert flaws_of(Base.metadata) == []


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ([Column("id", Integer, primary_key=True)], r"Table 'bad' has no tenant\..*info=GLOBAL"),
        (
            [tenant_column(primary_key=False), Column("id", Integer, primary_key=True)],
            r"The primary key \(id\) of table 'bad' does not hold the tenant.*Put the tenant first",
        ),
        (
            [tenant_column(), Column("slug", String, unique=True)],
            r"The unique constraint \(slug\) of table 'bad'.*Use tenant_unique\(\)",
        ),
        (
            [tenant_column(), Column("slug", String, unique=True, index=True)],
            r"The unique index \(bad.slug\) of table 'bad'.*Use tenant_unique\(\)",
        ),
        (
            [
                tenant_column(),
                Column("slug", String),
                Index("bad_lower", func.lower(text("tenant_id")), "slug", unique=True),
            ],
            r"The unique index \(lower\(tenant_id\), bad.slug\) of table 'bad'",
        ),
        (
            [tenant_column(), Column("room", String), ExcludeConstraint(("room", "="))],
            r"The exclusion \(room\) of table 'bad'.*Add \(\"tenant_id\", \"=\"\)",
        ),
        (
            [
                tenant_column(),
                Column("room", String),
                ExcludeConstraint(("tenant_id", "<>"), ("room", "=")),
            ],
            r"The exclusion \(tenant_id, room\) of table 'bad'",
        ),
        (
            [tenant_column(), Column("note_id", Integer, ForeignKey("notes.id"))],
            r"The foreign key \(note_id\) of table 'bad' refers to 'notes'.*tenant_foreign_key\(\)",
        ),
        (
            [
                tenant_column(),
                Column("other", Integer),
                ForeignKeyConstraint(["other", "tenant_id"], ["notes.tenant_id", "notes.id"]),
            ],
            r"The foreign key \(other, tenant_id\) of table 'bad' refers to 'notes'",
        ),
        (
            [tenant_column(), Column("note_id", Integer, ForeignKey("nowhere.id"))],
            r"The foreign key \(note_id\) of table 'bad' refers to something that is not among",
        ),
    ],
)
def test_L9_what_would_let_tenants_meet_is_told(columns: list[Any], sentence: str) -> None:
    metadata = MetaData()
    Table("notes", metadata, tenant_column(), Column("id", Integer, primary_key=True))
    Table("bad", metadata, *columns)
    (flaw,) = flaws_of(metadata)
    assert re.search(sentence, flaw), flaw


def test_L9_what_all_share_cannot_refer_to_a_tenants_rows() -> None:
    metadata = MetaData()
    Table("notes", metadata, tenant_column(), Column("id", Integer, primary_key=True))
    Table("shared", metadata, Column("note_id", ForeignKey("notes.id")), info=GLOBAL)
    (flaw,) = flaws_of(metadata)
    assert re.search(r"'shared' refers to 'notes'.*cannot refer to what is one tenant's", flaw), (
        flaw
    )
