"""Reads a tenant's whole log and says which event is the first that is not as it was written."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tenancy_core.audit.chain import flaw
from tenancy_core.contract import AuditHead
from tenancy_core.errors import BackendUnavailable
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tenancy_core.contract import AuditEvent, TenantStore
    from tenancy_core.crypto import Signer

__all__ = ["UNREADABLE", "AuditReport", "Verification"]

_PAGE: Final = 500

ERASED: Final = "tenant.erased"
"""The event that an erasure ends with; what comes before it has lost its personal fields."""
UNREADABLE: Final = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""What a store may raise for a row in which somebody wrote what it never writes."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What became of verifying a log.

    Attributes:
        events: How many events are right, from the first one on, without a gap.
        first_bad: Sequence of the first event that is wrong or missing; None if none is.
        reason: What is wrong with it; None if nothing is.
        head: The last event that is right. Write it down elsewhere: it is the ``anchor`` of a
            later call.
    """

    events: int
    first_bad: int | None
    reason: str | None
    head: AuditHead

    @property
    def ok(self) -> bool:
        """Whether the log is as it was written, as far as can be seen from here."""
        return self.first_bad is None


class Verification:
    """One walk through one log.

    Args:
        store: Where the log is.
        signer: Has every key that may have sealed it.
        tenant_id: Whose log.
        anchor: A head that was written down elsewhere, or None.
    """

    __slots__ = (
        "_anchor",
        "_erased",
        "_last",
        "_redacted",
        "_redacted_action",
        "_salted",
        "_signer",
        "_store",
        "_tenant_id",
    )

    def __init__(
        self, store: TenantStore, signer: Signer, tenant_id: UUID, anchor: AuditHead | None
    ) -> None:
        self._store = store
        self._signer = signer
        self._tenant_id = tenant_id
        self._anchor = anchor or AuditHead()
        self._last = AuditHead()
        self._erased = False
        self._salted = False
        self._redacted = 0
        self._redacted_action = ""

    async def run(self) -> AuditReport:
        """Walk through the log, also while others append to it.

        Raises:
            BackendUnavailable: The store cannot be asked.
        """
        while True:
            self._last, self._salted = AuditHead(), False
            self._redacted, self._redacted_action = 0, ""
            self._erased = await self._is_erased()
            report = await self._walk()
            # A tenant that is erased meanwhile loses its personal fields between two pages.
            if report.ok or self._erased or not await self._is_erased():
                return report

    async def _is_erased(self) -> bool:
        tenant = await self._store.get(self._tenant_id)
        return tenant is None or tenant.status is TenantStatus.ERASED

    async def _walk(self) -> AuditReport:
        while True:
            # The head first: it is then at least as new as every event that was read before it,
            # and no newer than the page that is read after it.
            head = await self._head()
            page = await self._page()
            if isinstance(page, str):
                return self._bad(self._last.sequence + 1, page)
            for event in page:
                reason = self._flaw(event)
                if reason is not None:
                    return self._bad(self._last.sequence + 1, reason)
                self._last = AuditHead(event.sequence, event.seal)
            if not page:
                return self._end(head)

    def _flaw(self, event: AuditEvent) -> str | None:
        reason = flaw(event, self._last, self._signer, erased=self._erased)
        if reason is not None:
            return reason
        if event.salt is not None:
            self._salted = True
        elif self._salted:
            # Erasing a tenant removes them from all events that there are.
            return "lost its salt, and an event before it did not"
        else:
            self._redacted = self._redacted or event.sequence
            self._redacted_action = event.action
        if event.sequence == self._anchor.sequence and not _same(event.seal, self._anchor.seal):
            return "is not the one of the anchor: the log was written anew up to here"
        return None

    async def _head(self) -> AuditHead | None:
        """Return the log's head; None if somebody wrote there what is none."""
        try:
            head = await self._store.audit_head(self._tenant_id)
        except UNREADABLE:
            return None
        return head if _is_head(head.sequence, head.seal) else None

    def _end(self, head: AuditHead | None) -> AuditReport:
        if self._redacted and self._redacted_action != ERASED:
            # The status of the tenant is not sealed; the event that says so is.
            return self._bad(
                self._redacted, "lost its salt, and no event says that the tenant was erased"
            )
        return self._against(head)

    def _against(self, head: AuditHead | None) -> AuditReport:
        last = self._last
        if head is None:
            return self._bad(max(1, last.sequence), "is the last, and the log's head is unreadable")
        if head.sequence > last.sequence:
            return self._bad(
                last.sequence + 1, f"is missing: the log's head says {head.sequence} events"
            )
        if head.sequence < last.sequence:
            return self._bad(
                head.sequence + 1, f"is behind the log's head, which says {head.sequence} events"
            )
        if not _same(head.seal, last.seal):
            return self._bad(max(1, last.sequence), "has another seal than the log's head")
        if last.sequence < self._anchor.sequence:
            return self._bad(
                last.sequence + 1, f"is missing: the anchor is event {self._anchor.sequence}"
            )
        return AuditReport(last.sequence, None, None, last)

    def _bad(self, sequence: int, reason: str) -> AuditReport:
        return AuditReport(self._last.sequence, sequence, f"Event {sequence} {reason}.", self._last)

    async def _page(self) -> Sequence[AuditEvent] | str:
        """Return the next events, none at the end; or why the very next one cannot be read."""
        after = self._last.sequence
        try:
            return await self._store.audit(self._tenant_id, after=after, limit=_PAGE)
        except (BackendUnavailable, *UNREADABLE):
            # Somewhere in this page; the ones before it are still to be looked at.
            pass
        try:
            return await self._store.audit(self._tenant_id, after=after, limit=1)
        except UNREADABLE:
            return "cannot be read: it holds what was never written there"
        except BackendUnavailable:
            # Some drivers say so of a text that is no UTF-8. A store that is down says it again.
            await self._head()
            return "cannot be read, although the store answers"


def _is_head(sequence: object, seal: object) -> bool:
    return isinstance(sequence, int) and isinstance(seal, bytes)


def _same(left: object, right: object) -> bool:
    return isinstance(left, bytes) and isinstance(right, bytes) and hmac.compare_digest(left, right)
