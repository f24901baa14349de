"""The tenant store on SQLAlchemy: one implementation for every dialect."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.to_thread
from sqlalchemy import delete, func, insert, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tenancy_core._background import settle
from tenancy_core.contract import AuditEvent, Change, TenantPage
from tenancy_core.errors import (
    BackendUnavailable,
    IdentifierCollision,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.sql import sqlite, tables
from tenancy_core.sql.engines import close_engine, make_engine
from tenancy_core.tenant import Placement, Tenant, TenantStatus, thaw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import JournalStep
    from tenancy_core.sql.budget import ConnectionBudget

__all__ = ["SqlTenantStore"]

_log = logging.getLogger("tenancy")

_CHANGES_KEPT: Final = 10_000
"""Older entries of the change sequence are dropped; a follower that far behind forgets all."""

_FIRST_BOOT_TRIES: Final = 10


class _Reach(AbstractAsyncContextManager[None]):
    """Turns the driver's way of saying "not now" into ``BackendUnavailable``."""

    __slots__ = ()

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, (OperationalError, OSError, PoolTimeoutError)) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            raise BackendUnavailable(
                f"The tenant store cannot be reached ({type(error).__name__})."
            ) from error


_reach: Final = _Reach()


class SqlTenantStore:
    """Implements :class:`~tenancy_core.contract.TenantStore` on a database of its own.

    Entering it creates the tables that are missing; several processes may do so at once.
    """

    def __init__(self, config: TenancyConfig, budget: ConnectionBudget) -> None:
        url = make_url(config.control_url)
        self._sqlite = url.get_backend_name() == "sqlite"
        self._path = Path(url.database) if self._sqlite and url.database else None
        options: dict[str, Any] = {}
        if self._sqlite:
            options["connect_args"] = sqlite.connect_args(config.database_pool_timeout)
        self._make_engine = partial(make_engine, url, config, budget, control=True, **options)
        self._renew_engine()

    def _renew_engine(self) -> None:
        self._closed = False
        self._engine: AsyncEngine = self._make_engine()
        # Reads must not wait for, nor hold up, the one writer that SQLite allows.
        self._reading = self._engine.execution_options(**{sqlite.READ_ONLY: True})
        if self._sqlite:
            sqlite.configure_connections(self._engine)
            sqlite.begin_transactions(self._engine)

    async def __aenter__(self) -> Self:
        if self._path is not None:
            make_folder = partial(self._path.parent.mkdir, parents=True, exist_ok=True)
            await anyio.to_thread.run_sync(make_folder)
        if self._closed:
            self._renew_engine()
        async with _reach:
            await self._create_tables()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        try:
            await settle(close_engine(self._engine))
        except BackendUnavailable:
            _log.warning("a connection to the tenant store was not closed in time")

    async def _create_tables(self) -> None:
        # Several workers boot at once: whoever loses the race to create a table is told that it
        # exists, and finds it there on the next try.
        for left in reversed(range(_FIRST_BOOT_TRIES)):
            try:
                async with self._engine.begin() as connection:
                    await connection.run_sync(tables.METADATA.create_all)
                    row = select(tables.counters.c.value).where(tables.counters.c.name == "changes")
                    if (await connection.execute(row)).first() is None:
                        await connection.execute(
                            insert(tables.counters).values(name="changes", value=0)
                        )
            except (IntegrityError, OperationalError, ProgrammingError):
                if not left:
                    raise
                await anyio.sleep(0.05)
            else:
                return

    # -- reading -------------------------------------------------------------------------------

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """See the contract."""
        return await self._one(tables.tenants.c.identifier == identifier)

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """See the contract."""
        return await self._one(tables.tenants.c.id == tenant_id)

    async def _one(self, condition: Any) -> Tenant | None:  # noqa: ANN401 - an SQL expression
        async with _reach, self._reading.connect() as connection:
            row = (await connection.execute(select(tables.tenants).where(condition))).first()
        return None if row is None else _tenant(row)

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
        async with _reach, self._reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        items = tuple(_tenant(row) for row in rows[:limit])
        return TenantPage(items, items[-1].identifier if len(rows) > limit else None)

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """See the contract."""
        columns = tables.secrets.c
        query = select(columns.value).where(columns.tenant_id == tenant_id, columns.name == name)
        async with _reach, self._reading.connect() as connection:
            value: bytes | None = (await connection.execute(query)).scalar()
        return value

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
        async with _reach, self._reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [
            AuditEvent(
                action=row.action,
                tenant_id=row.tenant_id,
                occurred_at=row.occurred_at,
                actor=row.actor,
                reason=row.reason,
                details=row.details,
                sequence=row.sequence,
            )
            for row in rows
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
        async with _reach, self._reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [Change(row.sequence, row.tenant_id) for row in rows]

    async def last_change(self) -> int:
        """See the contract."""
        columns = tables.counters.c
        query = select(columns.value).where(columns.name == "changes")
        async with _reach, self._reading.connect() as connection:
            value: int = (await connection.execute(query)).scalar_one()
        return value

    # -- writing -------------------------------------------------------------------------------

    def transaction(self) -> _Transaction:
        """See the contract."""
        return _Transaction(self._engine)


class _Transaction:
    __slots__ = ("_connection", "_engine")

    _connection: AsyncConnection

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def __aenter__(self) -> Self:
        async with _reach:
            connection = await self._engine.connect()
            try:
                await connection.begin()
            except BaseException:
                await settle(connection.close())
                raise
        self._connection = connection
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async with _reach:
            try:
                if kind is None:
                    await self._connection.commit()
            finally:
                await settle(self._connection.close())

    async def create(self, tenant: Tenant, /) -> None:
        """See the contract."""
        log = tables.audit_log.c
        # A log outlives its tenant: whoever comes back under an old id goes on with its numbers.
        head = select(func.coalesce(func.max(log.sequence), 0)).where(log.tenant_id == tenant.id)
        async with _reach:
            try:
                # The savepoint keeps the transaction usable for telling what collided.
                async with self._connection.begin_nested():
                    await self._connection.execute(
                        insert(tables.tenants).values(
                            id=tenant.id,
                            audit_sequence=head.scalar_subquery(),
                            **_columns(tenant),
                        )
                    )
            except IntegrityError:
                await self._explain_collision(tenant)
                raise

    async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
        """See the contract."""
        columns = tables.tenants.c
        async with _reach:
            try:
                async with self._connection.begin_nested():
                    result = await self._connection.execute(
                        update(tables.tenants)
                        .where(columns.id == tenant.id, columns.version == expected_version)
                        .values(**_columns(tenant))
                    )
            except IntegrityError:
                await self._explain_collision(tenant)
                raise
        if result.rowcount != 1:
            raise VersionConflict(
                f"Tenant {tenant.identifier!r} is no longer at version {expected_version}."
            )

    async def _explain_collision(self, tenant: Tenant) -> None:
        columns = tables.tenants.c
        query = select(columns.id).where(
            columns.placement_name == tenant.placement.name, columns.id != tenant.id
        )
        if (await self._connection.execute(query)).first() is not None:
            raise IdentifierCollision(
                f"The name {tenant.placement.name!r} derived for {tenant.identifier!r} "
                "is another tenant's."
            ) from None
        raise TenantExists(f"There is already a tenant {tenant.identifier!r}.") from None

    async def delete(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        async with _reach:
            for table, column in (
                (tables.secrets, tables.secrets.c.tenant_id),
                (tables.tenants, tables.tenants.c.id),
            ):
                await self._connection.execute(delete(table).where(column == tenant_id))

    async def append_audit(self, event: AuditEvent, /) -> AuditEvent:
        """See the contract."""
        columns = tables.tenants.c
        async with _reach:
            head = await self._connection.execute(
                update(tables.tenants)
                .where(columns.id == event.tenant_id)
                .values(audit_sequence=columns.audit_sequence + 1)
            )
            if head.rowcount != 1:
                raise TenantNotFound("There is no tenant to write an audit event for.")
            sequence: int = (
                await self._connection.execute(
                    select(columns.audit_sequence).where(columns.id == event.tenant_id)
                )
            ).scalar_one()
            await self._connection.execute(
                insert(tables.audit_log).values(
                    tenant_id=event.tenant_id,
                    sequence=sequence,
                    action=event.action,
                    actor=event.actor,
                    reason=event.reason,
                    details=thaw(event.details),
                    occurred_at=event.occurred_at,
                )
            )
        return replace(event, sequence=sequence)

    async def journal(self, tenant_id: UUID, step: JournalStep, /) -> None:
        """See the contract."""
        done = await self.journaled(tenant_id, step.operation)
        if step.step in done:
            return
        async with _reach:
            await self._connection.execute(
                insert(tables.journal).values(
                    tenant_id=tenant_id,
                    operation=step.operation,
                    step=step.step,
                    position=len(done),
                )
            )

    async def journaled(self, tenant_id: UUID, operation: str, /) -> Sequence[str]:
        """See the contract."""
        columns = tables.journal.c
        query = (
            select(columns.step)
            .where(columns.tenant_id == tenant_id, columns.operation == operation)
            .order_by(columns.position)
        )
        async with _reach:
            return (await self._connection.execute(query)).scalars().all()

    async def enqueue(self, tenant_id: UUID, /) -> int:
        """See the contract."""
        columns = tables.counters.c
        async with _reach:
            await self._connection.execute(
                update(tables.counters)
                .where(columns.name == "changes")
                .values(value=columns.value + 1)
            )
            sequence: int = (
                await self._connection.execute(
                    select(columns.value).where(columns.name == "changes")
                )
            ).scalar_one()
            await self._connection.execute(
                insert(tables.changes).values(sequence=sequence, tenant_id=tenant_id)
            )
            await self._connection.execute(
                delete(tables.changes).where(tables.changes.c.sequence <= sequence - _CHANGES_KEPT)
            )
        return sequence


def _columns(tenant: Tenant) -> dict[str, Any]:
    return {
        "identifier": None if tenant.status is TenantStatus.ERASED else tenant.identifier,
        "name": tenant.name,
        "status": tenant.status.value,
        "plan": tenant.plan,
        "limits": thaw(tenant.limits),
        "isolation": tenant.isolation,
        "placement_server": tenant.placement.server,
        "placement_name": tenant.placement.name,
        "metadata": thaw(tenant.metadata),
        "version": tenant.version,
        "created_at": tenant.created_at,
        "updated_at": tenant.updated_at,
    }


def _tenant(row: Row[Any]) -> Tenant:
    values = row._mapping  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # public, says SQLAlchemy
    return Tenant(
        id=values["id"],
        identifier=values["identifier"] or "",
        name=values["name"],
        status=TenantStatus(values["status"]),
        plan=values["plan"],
        limits=values["limits"],
        isolation=values["isolation"],
        placement=Placement(values["placement_server"], values["placement_name"]),
        metadata=values["metadata"],
        version=values["version"],
        created_at=values["created_at"],
        updated_at=values["updated_at"],
    )
