"""The store: how it is opened, and everything that only reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from tenancy_core._stores.sql.database import database_of
from tenancy_core._stores.sql.layout import INSTANCE_KEY
from tenancy_core._stores.sql.reach import reach
from tenancy_core._stores.sql.rows import event_of, tenant_of
from tenancy_core._stores.sql.transaction import SqlTransaction
from tenancy_core.contract import AuditHead, Change, RefusalCount, TenantPage
from tenancy_core.sql import tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy import ColumnElement, Row, Select
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import AuditEvent
    from tenancy_core.sql.budget import ConnectionBudget
    from tenancy_core.tenant import Tenant, TenantStatus

__all__ = ["SqlTenantStore"]


class SqlTenantStore:
    """Implements :class:`~tenancy_core.contract.TenantStore` on a database of its own.

    Entering it creates the tables that are missing; several processes may do so at once.
    """

    def __init__(self, config: TenancyConfig, budget: ConnectionBudget) -> None:
        self._database = database_of(config, budget)

    async def __aenter__(self) -> Self:
        await self._database.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._database.close()

    @property
    def engine(self) -> AsyncEngine:
        """For others' single statements in its database, on its connections.

        Open a transaction for each: where it costs round trips it is not sent.
        """
        return self._database.reading

    # -- reading -------------------------------------------------------------------------------

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """See the contract."""
        return await self._one(tables.tenants.c.identifier == identifier)

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """See the contract."""
        return await self._one(tables.tenants.c.id == tenant_id)

    async def _one(self, condition: ColumnElement[bool]) -> Tenant | None:
        rows = await self._rows(select(tables.tenants).where(condition))
        return tenant_of(rows[0]) if rows else None

    async def _rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
        async with reach:
            try:
                return await self._read(query)
            except DBAPIError as error:
                # A pooler that gives up has waited already, and has too much to do.
                if self._database.pooled or not error.connection_invalidated:
                    raise
            # What was said first over an idle link found it dead: the server was restarted, say.
            # The pool has dropped all that are as old, and reading twice does no harm.
            return await self._read(query)

    async def _read(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
        async with self._database.reading.connect() as connection:
            return (await connection.execute(query)).all()

    async def list(
        self,
        *,
        status: TenantStatus | None = None,
        plan: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TenantPage:
        """See the contract."""
        columns = tables.tenants.c
        query = (
            select(tables.tenants)
            .where(columns.identifier.is_not(None))
            .order_by(columns.identifier)
            .limit(limit + 1)
        )
        if status is not None:
            query = query.where(columns.status == status.value)
        if plan is not None:
            query = query.where(columns.plan == plan)
        if after is not None:
            query = query.where(columns.identifier > after)
        rows = await self._rows(query)
        items = tuple(tenant_of(row) for row in rows[:limit])
        return TenantPage(items, items[-1].identifier if len(rows) > limit else None)

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """See the contract."""
        columns = tables.secrets.c
        query = select(columns.value).where(columns.tenant_id == tenant_id, columns.name == name)
        rows = await self._rows(query)
        return rows[0].value if rows else None

    async def secret_names(self, tenant_id: UUID, /) -> Sequence[str]:
        """See the contract."""
        columns = tables.secrets.c
        query = select(columns.name).where(columns.tenant_id == tenant_id).order_by(columns.name)
        return [row.name for row in await self._rows(query)]

    async def begun(self, operation: str, /) -> Sequence[UUID]:
        """See the contract."""
        columns = tables.journal.c
        query = select(columns.tenant_id).where(columns.operation == operation).distinct()
        return [row.tenant_id for row in await self._rows(query)]

    async def instance_key(self) -> bytes:
        """See the contract."""
        query = select(tables.keys.c.value).where(tables.keys.c.name == INSTANCE_KEY)
        key: bytes = (await self._rows(query))[0].value
        return key

    async def audit(
        self, tenant_id: UUID, /, *, after: int = 0, limit: int = 100
    ) -> Sequence[AuditEvent]:
        """See the contract."""
        columns = tables.audit_log.c
        query = (
            select(tables.audit_log)
            .where(columns.tenant_id == tenant_id, columns.sequence > after)
            .order_by(columns.sequence)
            .limit(limit)
        )
        rows = await self._rows(query)
        return [event_of(row) for row in rows]

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """See the contract."""
        columns = tables.audit_heads.c
        rows = await self._rows(
            select(columns.sequence, columns.seal).where(columns.tenant_id == tenant_id)
        )
        return AuditHead(rows[0].sequence, rows[0].seal) if rows else AuditHead()

    async def undelivered(self, *, before: datetime, limit: int = 100) -> Sequence[AuditEvent]:
        """See the contract."""
        waiting, log = tables.outbox.c, tables.audit_log.c
        query = (
            select(tables.audit_log)
            .join(
                tables.outbox,
                (waiting.tenant_id == log.tenant_id) & (waiting.sequence == log.sequence),
            )
            .where(waiting.occurred_at < before)
            .order_by(waiting.occurred_at, waiting.tenant_id, waiting.sequence)
            .limit(limit)
        )
        return [event_of(row) for row in await self._rows(query)]

    async def refusals(
        self, tenant_id: UUID | None = None, /, *, since: datetime, limit: int = 1000
    ) -> Sequence[RefusalCount]:
        """See the contract."""
        columns = tables.refusals.c
        query = (
            select(tables.refusals)
            .where(columns.tenant == str(tenant_id or ""), columns.minute >= since)
            .order_by(columns.minute.desc(), columns.code)
            .limit(limit)
        )
        return [
            # By its name: a row's own `count` is a method.
            RefusalCount(tenant_id, row.code, row.minute, row._mapping["count"])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # public, says SQLAlchemy
            for row in await self._rows(query)
        ]

    async def changes(self, *, after: int, limit: int = 1000) -> Sequence[Change]:
        """See the contract."""
        columns = tables.changes.c
        query = (
            select(tables.changes)
            .where(columns.sequence > after)
            .order_by(columns.sequence)
            .limit(limit)
        )
        rows = await self._rows(query)
        return [Change(row.sequence, row.tenant_id) for row in rows]

    async def last_change(self) -> int:
        """See the contract."""
        columns = tables.counters.c
        query = select(columns.value).where(columns.name == "changes")
        value: int = (await self._rows(query))[0].value
        return value

    # -- writing -------------------------------------------------------------------------------

    def transaction(self) -> SqlTransaction:
        """See the contract."""
        return SqlTransaction(self._database)
