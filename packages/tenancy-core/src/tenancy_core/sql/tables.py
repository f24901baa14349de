"""The control tables: where the store keeps tenants. No tenant session ever reaches them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.types import JSON, TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

__all__ = [
    "METADATA",
    "NAMESPACE",
    "SCHEMA",
    "audit_heads",
    "audit_log",
    "changes",
    "counters",
    "journal",
    "keys",
    "outbox",
    "refusals",
    "reservations",
    "secrets",
    "tenants",
]

NAMESPACE: Final = "tenancy"
"""The schema that they are in, where a database has schemas."""

SCHEMA: Final = 2
"""Number of this layout. It is kept beside the tables, so that another one is noticed."""


class _UtcDateTime(TypeDecorator[Any]):
    """An aware UTC timestamp, also where the database keeps none (SQLite, MySQL)."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:  # noqa: ANN401 - SQLAlchemy's signature
        if dialect.name == "mysql":
            from sqlalchemy.dialects.mysql import DATETIME  # noqa: PLC0415 - only where it is used

            return dialect.type_descriptor(DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _name(length: int) -> TypeEngine[str]:
    """A short text, compared and sorted by its bytes, whatever the order of the database is."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants: Final = Table(
    "tenancy_tenants",
    METADATA,
    Column("id", Uuid, primary_key=True),
    # NULL once a tenant is erased: its identifier is free again, its row keeps only the id.
    Column("identifier", _name(48), unique=True),
    Column("name", Text, nullable=False),
    Column("status", _name(16), nullable=False),
    Column("plan", _name(64)),
    Column("limits", JSON, nullable=False),
    Column("isolation", _name(32), nullable=False),
    Column("placement_server", _name(64), nullable=False),
    Column("placement_name", _name(63), nullable=False, unique=True),
    Column("metadata", JSON, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", _UtcDateTime, nullable=False),
    Column("updated_at", _UtcDateTime, nullable=False),
    Index(None, "status", "identifier"),
    Index(None, "plan", "identifier"),
)

secrets: Final = Table(
    "tenancy_secrets",
    METADATA,
    Column("tenant_id", Uuid, ForeignKey("tenancy_tenants.id"), primary_key=True),
    Column("name", _name(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

audit_log: Final = Table(
    "tenancy_audit",
    METADATA,
    # No foreign key: the log outlives the tenant.
    Column("tenant_id", Uuid, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("action", _name(64), nullable=False),
    Column("actor", Text),
    Column("reason", Text),
    Column("details", JSON, nullable=False),
    Column("personal", JSON(none_as_null=True)),
    Column("occurred_at", _UtcDateTime, nullable=False),
    Column("salt", LargeBinary(16)),
    Column("digest", LargeBinary(32), nullable=False),
    Column("seal", LargeBinary(64), nullable=False),
)

# Locking this row keeps the sequence free of gaps, and the chain free of forks. It outlives the
# tenant as the log does.
audit_heads: Final = Table(
    "tenancy_audit_heads",
    METADATA,
    Column("tenant_id", Uuid, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("seal", LargeBinary(64), nullable=False),
)

outbox: Final = Table(
    "tenancy_outbox",
    METADATA,
    Column("tenant_id", Uuid, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("occurred_at", _UtcDateTime, nullable=False, index=True),
)

refusals: Final = Table(
    "tenancy_refusals",
    METADATA,
    # 36 characters of an id, or empty: a primary key has no NULL.
    Column("tenant", _name(36), primary_key=True),
    Column("minute", _UtcDateTime, primary_key=True),
    Column("code", _name(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# Identifiers that were given up; only their digest, because the tenant may have been erased.
reservations: Final = Table(
    "tenancy_reservations",
    METADATA,
    Column("digest", _name(64), primary_key=True),
    # NULL where the tenant was erased: nothing links the two any more.
    Column("tenant_id", Uuid),
    Column("since", _UtcDateTime, nullable=False),
)

keys: Final = Table(
    "tenancy_keys",
    METADATA,
    Column("name", _name(32), primary_key=True),
    Column("value", LargeBinary(32), nullable=False),
)

journal: Final = Table(
    "tenancy_journal",
    METADATA,
    Column("tenant_id", Uuid, primary_key=True),
    Column("operation", _name(32), primary_key=True),
    Column("step", _name(64), primary_key=True),
    Column("position", Integer, nullable=False),
)

changes: Final = Table(
    "tenancy_changes",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Uuid, nullable=False),
    # Random, one for each transaction: by it a commit whose answer was lost is read back.
    Column("transaction_id", Uuid, nullable=False),
)

# One row per sequence, incremented inside the transaction that uses the number: its row lock makes
# commits happen in the order of their numbers, so that a follower never misses a late one. (An
# autoincrement column gives numbers before the commit, and a follower would skip them.)
counters: Final = Table(
    "tenancy_counters",
    METADATA,
    Column("name", _name(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
