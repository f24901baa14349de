"""One transaction of the store: everything in it is written, or nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID, uuid4

import anyio
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from tenancy_core._background import settle
from tenancy_core._stores.sql.reach import reach
from tenancy_core._stores.sql.rows import event_columns, tenant_columns, tenant_of
from tenancy_core.contract import AuditHead, Reservation
from tenancy_core.errors import (
    BackendUnavailable,
    CommitUnknown,
    IdentifierCollision,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.sql import tables
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core._stores.sql.database import Database
    from tenancy_core.contract import AuditEvent, JournalStep, RefusalCount
    from tenancy_core.tenant import Tenant

__all__ = ["SqlTransaction"]

_log = logging.getLogger("tenancy")

_CHANGES_KEPT: Final = 10_000
"""Older entries of the change sequence are dropped; a follower that far behind forgets all."""

_READ_BACK_TRIES: Final = 5
_READ_BACK_PAUSE: Final = 0.5
"""Seconds between two tries; a server that restarts is back within a few."""
_READ_BACK_PATIENCE: Final = 5.0
"""Seconds that a try may take: the server may not have noticed yet that the link is gone, and
holds the row that is waited for."""


class SqlTransaction:
    """Implements :class:`~tenancy_core.contract.StoreTransaction`."""

    __slots__ = ("_connection", "_database", "_erases", "_marker")

    _connection: AsyncConnection

    def __init__(self, database: Database) -> None:
        self._database = database
        self._marker: UUID | None = None
        self._erases = False

    async def __aenter__(self) -> Self:
        async with reach:
            connection = await self._database.engine.connect()
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
        lost: DBAPIError | OSError | None = None
        async with reach:
            try:
                if kind is None:
                    await self._connection.commit()
            except (DBAPIError, OSError) as failure:
                if not (isinstance(failure, OSError) or failure.connection_invalidated):
                    raise
                lost = failure
            finally:
                await settle(self._connection.close())
        if lost is not None and not await self._was_committed(lost):
            raise BackendUnavailable(
                f"The connection to the tenant store was lost ({type(lost).__name__}) before the "
                "change was committed; nothing was changed."
            ) from lost
        if kind is None and self._erases:
            await self._database.scrub()

    async def _was_committed(self, lost: Exception) -> bool:
        """Read back what became of a COMMIT whose answer was lost.

        The transaction held the counter's row. Whoever gets that row now comes after its end, and
        sees its entry in the change sequence or knows that there will be none.
        """
        counter = select(tables.counters.c.value).where(tables.counters.c.name == "changes")
        entry = select(tables.changes.c.sequence).where(
            tables.changes.c.transaction_id == self._marker
        )
        for left in reversed(range(_READ_BACK_TRIES if self._marker is not None else 0)):
            try:
                with anyio.fail_after(_READ_BACK_PATIENCE):
                    async with self._database.engine.begin() as connection:
                        await connection.execute(counter.with_for_update())
                        return (await connection.execute(entry)).first() is not None
            except (DBAPIError, OSError, BackendUnavailable) as failure:
                _log.warning("a lost commit cannot be read back yet: %s", type(failure).__name__)
            if left:
                await anyio.sleep(_READ_BACK_PAUSE)
        raise CommitUnknown(
            "The answer to a COMMIT was lost, and the tenant store cannot say what became of it. "
            "Read the tenant again before you repeat the change."
        ) from lost

    # -- tenants -------------------------------------------------------------------------------

    async def create(self, tenant: Tenant, /) -> None:
        """See the contract."""
        heads = tables.audit_heads
        async with reach:
            try:
                # The savepoint keeps the transaction usable for telling what collided.
                async with self._connection.begin_nested():
                    await self._connection.execute(
                        insert(tables.tenants).values(id=tenant.id, **tenant_columns(tenant))
                    )
                    # A log outlives its tenant: whoever comes back under an old id goes on with it.
                    known = select(heads.c.sequence).where(heads.c.tenant_id == tenant.id)
                    if (await self._connection.execute(known)).first() is None:
                        await self._connection.execute(
                            insert(heads).values(tenant_id=tenant.id, sequence=0, seal=b"")
                        )
            except IntegrityError:
                await self._explain_collision(tenant)
                raise

    async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
        """See the contract."""
        columns = tables.tenants.c
        async with reach:
            try:
                async with self._connection.begin_nested():
                    result = await self._connection.execute(
                        update(tables.tenants)
                        .where(columns.id == tenant.id, columns.version == expected_version)
                        .values(**tenant_columns(tenant))
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
        async with reach:
            for column in (
                tables.secrets.c.tenant_id,
                tables.journal.c.tenant_id,
                tables.tenants.c.id,
            ):
                await self._delete(column.table, column == tenant_id)

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """See the contract."""
        query = select(tables.tenants).where(tables.tenants.c.id == tenant_id)
        async with reach:
            row = (await self._connection.execute(query)).first()
        return None if row is None else tenant_of(row)

    async def count(self) -> int:
        """See the contract."""
        query = select(func.count()).where(tables.tenants.c.status != TenantStatus.ERASED.value)
        async with reach:
            found: int = (await self._connection.execute(query)).scalar_one()
        return found

    # -- identifiers that were given up --------------------------------------------------------

    async def reserve(self, digest: str, reservation: Reservation, /) -> None:
        """See the contract."""
        table = tables.reservations
        async with reach:
            await self._delete(table, table.c.digest == digest)
            await self._connection.execute(
                insert(table).values(
                    digest=digest, tenant_id=reservation.tenant_id, since=reservation.since
                )
            )

    async def reserved(self, digest: str, /) -> Reservation | None:
        """See the contract."""
        columns = tables.reservations.c
        query = select(columns.tenant_id, columns.since).where(columns.digest == digest)
        async with reach:
            row = (await self._connection.execute(query)).first()
        return None if row is None else Reservation(row.tenant_id, row.since)

    async def release(self, digest: str, /) -> None:
        """See the contract."""
        async with reach:
            await self._delete(tables.reservations, tables.reservations.c.digest == digest)

    # -- secrets -------------------------------------------------------------------------------

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """See the contract."""
        columns = tables.secrets.c
        query = select(columns.value).where(columns.tenant_id == tenant_id, columns.name == name)
        async with reach:
            found: bytes | None = (await self._connection.execute(query)).scalar()
        return found

    async def put_secret(self, tenant_id: UUID, name: str, value: bytes, /) -> None:
        """See the contract."""
        columns = tables.secrets.c
        change = (
            update(tables.secrets)
            .where(columns.tenant_id == tenant_id, columns.name == name)
            .values(value=value)
        )
        async with reach:
            if (await self._connection.execute(change)).rowcount == 0:
                await self._connection.execute(
                    insert(tables.secrets).values(tenant_id=tenant_id, name=name, value=value)
                )

    async def delete_secret(self, tenant_id: UUID, name: str, /) -> None:
        """See the contract."""
        columns = tables.secrets.c
        async with reach:
            await self._delete(tables.secrets, columns.tenant_id == tenant_id, columns.name == name)

    async def delete_secrets(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        async with reach:
            await self._delete(tables.secrets, tables.secrets.c.tenant_id == tenant_id)

    # -- the audit log -------------------------------------------------------------------------

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """See the contract."""
        columns = tables.audit_heads.c
        query = select(columns.sequence, columns.seal).where(columns.tenant_id == tenant_id)
        async with reach:
            row = (await self._connection.execute(query.with_for_update())).first()
        if row is None:
            raise TenantNotFound("There is no tenant to write an audit event for.")
        return AuditHead(row.sequence, row.seal)

    async def append_audit(self, event: AuditEvent, /) -> None:
        """See the contract."""
        columns = tables.audit_heads.c
        async with reach:
            moved = await self._connection.execute(
                update(tables.audit_heads)
                .where(columns.tenant_id == event.tenant_id, columns.sequence == event.sequence - 1)
                .values(sequence=event.sequence, seal=event.seal)
            )
            if moved.rowcount != 1:
                head = await self.audit_head(event.tenant_id)
                raise ValueError(
                    f"The next event of this log has sequence {head.sequence + 1}, "
                    f"not {event.sequence}."
                )
            await self._connection.execute(insert(tables.audit_log).values(**event_columns(event)))

    async def redact_audit(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        self._erases = True
        async with reach:
            await self._connection.execute(
                update(tables.audit_log)
                .where(tables.audit_log.c.tenant_id == tenant_id)
                .values(actor=None, reason=None, personal=None, salt=None)
            )

    async def enqueue_delivery(self, event: AuditEvent, /) -> None:
        """See the contract."""
        async with reach:
            await self._connection.execute(
                insert(tables.outbox).values(
                    tenant_id=event.tenant_id,
                    sequence=event.sequence,
                    occurred_at=event.occurred_at,
                )
            )

    async def delivered(self, tenant_id: UUID, sequence: int, /) -> None:
        """See the contract."""
        columns = tables.outbox.c
        async with reach:
            await self._delete(
                tables.outbox, columns.tenant_id == tenant_id, columns.sequence == sequence
            )

    async def count_refusals(self, counts: Sequence[RefusalCount], /) -> None:
        """See the contract."""
        columns = tables.refusals.c
        # In one order everywhere, so that two processes never wait for one another.
        for one in sorted(counts, key=lambda one: (str(one.tenant_id or ""), one.minute, one.code)):
            key = {
                "tenant": str(one.tenant_id or ""),
                "minute": one.minute,
                "code": one.code,
            }
            add = (
                update(tables.refusals)
                .where(*(columns[name] == value for name, value in key.items()))
                .values(count=columns["count"] + one.count)
            )
            async with reach:
                if (await self._connection.execute(add)).rowcount == 1:
                    continue
                try:
                    async with self._connection.begin_nested():
                        await self._connection.execute(
                            insert(tables.refusals).values(**key, count=one.count)
                        )
                except IntegrityError:  # somebody else was first
                    await self._connection.execute(add)

    # -- operations that can be killed ---------------------------------------------------------

    async def journal(self, tenant_id: UUID, step: JournalStep, /) -> None:
        """See the contract."""
        done = await self.journaled(tenant_id, step.operation)
        if step.step in done:
            return
        async with reach:
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
        async with reach:
            return (await self._connection.execute(query)).scalars().all()

    async def close_journal(self, tenant_id: UUID, operation: str, /) -> None:
        """See the contract."""
        columns = tables.journal.c
        async with reach:
            await self._delete(
                tables.journal, columns.tenant_id == tenant_id, columns.operation == operation
            )

    # -- the change sequence -------------------------------------------------------------------

    async def enqueue(self, tenant_id: UUID, /) -> int:
        """See the contract."""
        columns = tables.counters.c
        if self._marker is None:
            self._marker = uuid4()
        async with reach:
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
                insert(tables.changes).values(
                    sequence=sequence, tenant_id=tenant_id, transaction_id=self._marker
                )
            )
            await self._delete(
                tables.changes, tables.changes.c.sequence <= sequence - _CHANGES_KEPT
            )
        return sequence

    async def _delete(self, table: Table, *conditions: ColumnElement[bool]) -> None:
        await self._connection.execute(delete(table).where(*conditions))
