"""Likely mistakes with tables that belong to tenants: what is said names the way out."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads the annotation

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    asc,
    cast,
    column,
    desc,
    func,
    nulls_first,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, declarative_base, mapped_column
from sqlalchemy.sql.expression import ColumnElement

from tenancy_core import Tenancy
from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import GLOBAL, TenantScoped, tenant_column, tenant_foreign_key
from tenancy_core.sql.flaws import flaws_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig


@pytest.fixture
def base() -> Any:
    class Base(DeclarativeBase):
        pass

    return Base


def only_flaw(metadata: MetaData) -> str:
    (flaw,) = flaws_of(metadata)
    return flaw


def employees(base: Any) -> Any:
    class Employee(TenantScoped, base):
        __tablename__ = "employees"
        __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    return Employee


# -- the tenant's column ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int", "UUID", "Text", "", None, Integer, Uuid()])
def test_a_kind_of_column_that_there_is_not_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r'"uuid" or.* "text"') as caught:
        tenant_column(kind)
    assert f"tenant_column({kind!r})" in str(caught.value)


def test_a_table_cannot_be_one_tenants_and_all_tenants(base: Any) -> None:
    class Memo(TenantScoped, base):
        __tablename__ = "memos"
        __table_args__: ClassVar = {"info": GLOBAL}

        id: Mapped[int] = mapped_column(primary_key=True)

    Table("letters", base.metadata, tenant_column(), info=GLOBAL)
    letters, memos = flaws_of(base.metadata)
    for name, flaw in (("letters", letters), ("memos", memos)):
        assert flaw.startswith(f"Table '{name}' is both")
        assert flaw.endswith("by info=GLOBAL. Drop one of the two.")


def test_a_column_that_only_has_the_name_is_told_from_none(base: Any) -> None:
    class Memo(base):
        __tablename__ = "memos"

        tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
        id: Mapped[int] = mapped_column(primary_key=True)

    flaw = only_flaw(base.metadata)
    assert "'memos' has a column 'tenant_id' which is not tenancy's" in flaw
    assert re.search(r"TenantScoped.*tenant_column\(\).*all tenants share.*info=GLOBAL", flaw)


def test_a_column_in_place_of_the_mixins_is_told(base: Any) -> None:
    class Memo(TenantScoped, base):
        __tablename__ = "memos"

        tenant_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)  # type: ignore[assignment]
        id: Mapped[int] = mapped_column(primary_key=True)

    flaw = only_flaw(base.metadata)
    assert "'memos' has a column 'tenant_id' which is not tenancy's" in flaw
    assert "TenantScoped, without a column of that name in the class" in flaw


def test_what_all_share_may_have_a_column_of_that_name() -> None:
    metadata = MetaData()
    Table("visits", metadata, Column("tenant_id", Uuid), info=GLOBAL)
    assert flaws_of(metadata) == []


# -- what refers to a tenant's rows ----------------------------------------------------------------


def test_an_association_table_is_offered_the_tenant(base: Any) -> None:
    employees(base)
    association = Table("friends", base.metadata, Column("one", ForeignKey("employees.id")))
    without, refers = flaws_of(base.metadata)
    assert without.startswith("Table 'friends' has no tenant.")
    assert re.search(r"the tenant too, with tenant_column\(\).* use tenant_foreign_key\(\)", refers)
    assert "What all tenants share" not in refers
    base.metadata.remove(association)
    Table(
        "friends",
        base.metadata,
        tenant_column(),
        Column("one", Integer, primary_key=True),
        tenant_foreign_key(["one"], "employees"),
    )
    assert flaws_of(base.metadata) == []


def test_the_table_of_a_subclass_is_offered_the_tenant(base: Any) -> None:
    class Boss(employees(base)):
        __tablename__ = "bosses"
        __mapper_args__: ClassVar = {"polymorphic_identity": "boss"}

        id: Mapped[int] = mapped_column(ForeignKey("employees.id"), primary_key=True)

    without, refers = flaws_of(base.metadata)
    assert without.startswith("Table 'bosses' has no tenant.")
    assert "tenant_column(), or with TenantScoped in a class that inherits from no other" in refers


def test_the_table_of_a_subclass_has_the_tenant_as_it_is_offered(base: Any) -> None:
    class Boss(employees(base)):
        __tablename__ = "bosses"
        __table_args__ = (tenant_foreign_key(["id"], "employees"),)
        __mapper_args__: ClassVar = {"polymorphic_identity": "boss"}

        tenant_id = tenant_column()
        id: Mapped[int] = mapped_column(primary_key=True)

    assert flaws_of(base.metadata) == []


# -- keys ------------------------------------------------------------------------------------------


def rooms(*items: Any) -> Table:
    return Table(
        "rooms",
        MetaData(),
        tenant_column("text"),
        Column("id", Integer, primary_key=True),
        Column("slug", String),
        *items,
    )


ORDERED: list[Callable[[Any], Any]] = [
    lambda tenant_id: tenant_id.desc(),
    lambda tenant_id: tenant_id.asc(),
    lambda tenant_id: tenant_id.desc().nulls_last(),
    lambda tenant_id: nulls_first(asc(tenant_id)),
    lambda _tenant_id: desc("tenant_id"),
    lambda _tenant_id: column("tenant_id"),
]
CHANGED: list[Callable[[Any], Any]] = [
    func.lower,
    lambda tenant_id: func.lower(tenant_id).desc(),
    lambda tenant_id: cast(tenant_id, String(1)).desc().nulls_last(),
    lambda tenant_id: tenant_id.collate("loose"),
    lambda tenant_id: func.lower(tenant_id).label("tenant_id").desc(),
    lambda tenant_id: -tenant_id.cast(Integer),
    lambda _tenant_id: text("lower(tenant_id)"),
]


@pytest.mark.parametrize("ordered", ORDERED, ids=range(len(ORDERED)))
def test_the_order_of_the_tenants_column_does_not_matter(ordered: Callable[[Any], Any]) -> None:
    table = rooms()
    Index("rooms_slug", ordered(table.c.tenant_id), table.c.slug, unique=True)
    table.append_constraint(ExcludeConstraint((ordered(table.c.tenant_id), "="), ("slug", "=")))
    assert flaws_of(table.metadata) == []


def test_the_order_may_be_given_by_way_of_a_class(base: Any) -> None:
    class Memo(TenantScoped, base):
        __tablename__ = "memos"
        __table_args__ = (Index("memos_slug", desc("tenant_id"), "slug", unique=True),)

        id: Mapped[int] = mapped_column(primary_key=True)
        slug: Mapped[str]

    Index("memos_lower", Memo.tenant_id.desc(), func.lower(Memo.slug), unique=True)
    table: Any = Memo.__table__
    for tenant_id in (Memo.tenant_id, Memo.tenant_id.desc()):
        table.append_constraint(ExcludeConstraint((tenant_id, "="), (Memo.slug, "=")))
    assert flaws_of(base.metadata) == []


@pytest.mark.parametrize("changed", CHANGED, ids=range(len(CHANGED)))
def test_L9_of_what_is_made_from_the_tenants_column_two_may_have_the_same(
    changed: Callable[[Any], Any],
) -> None:
    table = rooms()
    Index("rooms_slug", changed(table.c.tenant_id), table.c.slug, unique=True)
    assert "The unique index (" in only_flaw(table.metadata)
    table = rooms()
    table.append_constraint(ExcludeConstraint((changed(table.c.tenant_id), "="), ("slug", "=")))
    assert re.search(
        r"The exclusion \(.+, slug\).*Add \(\"tenant_id\", \"=\"\)", only_flaw(table.metadata)
    )


def test_what_only_postgres_can_write_is_judged_as_well() -> None:
    class Own(ColumnElement[str]):
        inherit_cache = True
        type = String()

    @compiles(Own, "postgresql")
    def _own(*_given: Any, **_options: Any) -> str:
        return "own()"

    table = rooms()
    Index("rooms_own", Own(), table.c.tenant_id, unique=True)
    assert flaws_of(table.metadata) == []
    Index("rooms_open", Own(), table.c.slug, unique=True)
    table.append_constraint(ExcludeConstraint((Own(), "=")))
    exclusion, index = flaws_of(table.metadata)
    assert "The exclusion (Own) of" in exclusion
    assert "The unique index (Own, rooms.slug) of" in index


def test_L9_an_exclusion_of_a_function_and_the_column_is_judged_by_the_column() -> None:
    for operators, flaws in (("=", 0), ("<>", 1)):
        table = rooms()
        tenant = table.c.tenant_id
        made = ExcludeConstraint((tenant, operators), (func.left(tenant, 1), "="), ("slug", "="))
        table.append_constraint(made)
        assert len(flaws_of(table.metadata)) == flaws


# -- metadata= -------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Memo(TenantScoped, Base):
    __tablename__ = "memos"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Base, "the class Base; pass Base.metadata."),
        (declarative_base(name="Older"), "the class Older; pass Older.metadata."),
        (Memo, "the class Memo; pass Memo.metadata."),
        (Memo.__table__, "a Table; pass its .metadata."),
        (Base.registry, "a registry; pass its .metadata."),
        (MetaData, "the class MetaData; pass a sqlalchemy.MetaData."),
        (DeclarativeBase, "the class DeclarativeBase; pass a sqlalchemy.MetaData."),
        ("Base.metadata", "a str; pass a sqlalchemy.MetaData, such as Base.metadata."),
        ([Memo], "a list; pass a sqlalchemy.MetaData, such as Base.metadata."),
        ({}, "a dict; pass a sqlalchemy.MetaData, such as Base.metadata."),
    ],
)
def test_what_is_no_metadata_is_refused(
    make_config: Callable[..., TenancyConfig], given: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(make_config(), metadata=given)
    assert str(caught.value) == f"metadata= is {said}"


def test_metadata_of_ones_own_is_taken_and_its_tables_are_not_sorted(
    make_config: Callable[..., TenancyConfig],
) -> None:
    class Tables(MetaData):
        pass

    metadata = Tables()
    for one, other in (("hens", "eggs"), ("eggs", "hens")):
        Table(one, metadata, Column("id", ForeignKey(f"{other}.id"), primary_key=True))
    with warnings.catch_warnings(action="error"):
        Tenancy(make_config(), metadata=metadata)
