"""What has to reach the audit sinks: told right after the commit, and again until they have it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tenancy_core.contract import AuditEvent, AuditSink, TenantStore

__all__ = ["SINK_SECONDS", "Outbox"]

SINK_SECONDS: Final = 5.0
"""A call of a sink that takes longer has failed."""

_PAGE: Final = 100
_FAILURES_IN_A_ROW: Final = 10
"""After so many it is left to the next round: a sink is down."""

_REMEMBERED: Final = 1_000
"""Most events that failed; with so many, what is new waits for one of them to be delivered."""

_log = logging.getLogger("tenancy")


class Outbox:
    """Feeds the sinks, each event at least once.

    Args:
        store: Knows which events no sink has confirmed.
        sinks: Every one gets every event.
    """

    __slots__ = ("_failed", "_failing", "_store", "sinks")

    def __init__(self, store: TenantStore, sinks: Sequence[AuditSink]) -> None:
        self.sinks = tuple(sinks)
        self._store = store
        self._failing: set[int] = set()
        self._failed: dict[tuple[UUID, int], None] = {}

    async def deliver(self, event: AuditEvent) -> bool:
        """Feed a committed event to every sink, and note that they have it.

        Returns:
            Whether it is done. If not, the event stays in the outbox; nothing is raised.
        """
        if not self.sinks:
            return True
        taken = [await self._feed(number, event) for number in range(len(self.sinks))]
        if not all(taken):
            return False
        try:
            async with self._store.transaction() as transaction:
                await transaction.delivered(event.tenant_id, event.sequence)
        except Exception as error:  # noqa: BLE001 - the sinks have it; they get it once more
            _log.warning(
                "cannot note that event %d of tenant %s was delivered (%s)",
                event.sequence,
                event.tenant_id,
                type(error).__name__,
            )
            return False
        return True

    async def _feed(self, number: int, event: AuditEvent) -> bool:
        sink = self.sinks[number]
        try:
            with anyio.fail_after(SINK_SECONDS):
                await sink.write(event)
        except Exception as error:  # noqa: BLE001 - the change is committed, and the store has the event
            # Once per outage. Its text stays out of the log: a driver may have put a URL into it.
            if number not in self._failing:
                self._failing.add(number)
                _log.warning(
                    "the audit sink %s did not take event %d of tenant %s (%s); the store has it, "
                    "and it is tried again",
                    type(sink).__name__,
                    event.sequence,
                    event.tenant_id,
                    type(error).__name__,
                )
            return False
        if number in self._failing:
            self._failing.discard(number)
            _log.info("the audit sink %s takes events again", type(sink).__name__)
        return True

    async def drain(self, before: datetime) -> None:
        """Deliver what is left over from before a time, the oldest first.

        What failed earlier comes last, and of that first what was tried least recently: events
        that a sink will never take hold nobody up.

        Raises:
            BackendUnavailable: The store cannot be asked.
        """
        await self._deliver_new(before)
        await self._deliver_failed(before)

    async def _deliver_new(self, before: datetime) -> None:
        done: set[tuple[UUID, int]] = set()
        in_a_row = 0
        while len(self._failed) < _REMEMBERED:
            page = await self._page(before)
            new = {
                key: event
                for key, event in page.items()
                if key not in self._failed and key not in done
            }
            if not new:
                return
            for key, event in new.items():
                if await self.deliver(event):
                    done.add(key)
                    in_a_row = 0
                    continue
                self._failed[key] = None
                in_a_row += 1
                if in_a_row >= _FAILURES_IN_A_ROW:
                    return

    async def _deliver_failed(self, before: datetime) -> None:
        page = await self._page(before) if self._failed else {}
        in_a_row = 0
        for key in tuple(self._failed):
            del self._failed[key]
            event = page.get(key)
            if event is None:
                continue  # another process delivered it
            if await self.deliver(event):
                in_a_row = 0
                continue
            self._failed[key] = None
            in_a_row += 1
            if in_a_row >= _FAILURES_IN_A_ROW:
                return

    async def _page(self, before: datetime) -> dict[tuple[UUID, int], AuditEvent]:
        """Return what waits, the oldest first, so much that not all of it has failed before."""
        limit = _PAGE + len(self._failed)
        found = await self._store.undelivered(before=before, limit=limit)
        return {(event.tenant_id, event.sequence): event for event in found}
