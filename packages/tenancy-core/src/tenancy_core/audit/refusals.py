"""Counts refused requests until the store has the counts. They are no part of the chain."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tenancy_core.contract import RefusalCount

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tenancy_core.contract import TenantStore
    from tenancy_core.tenant import Tenant

__all__ = ["OTHER", "REFUSALS_LIMIT", "RefusalBuffer"]

REFUSALS_LIMIT: Final = 1_000
"""Most counts of tenant, code and minute that wait in a process; what is beyond is ``other``."""

OTHER: Final = "other"
"""Code of what was counted while the buffer was full, without a tenant."""

_CODE_LIMIT: Final = 32
_OTHER_MINUTES: Final = 60
_MINUTE: Final = 60


class RefusalBuffer:
    """An observer that counts, and writes the counts down when it is told to.

    Args:
        store: Where the counts go.
        clock: Seconds since 1970.
    """

    __slots__ = ("_clock", "_counts", "_others", "_store")

    def __init__(self, store: TenantStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._counts: dict[tuple[UUID | None, str, int], int] = {}
        self._others: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._counts) + len(self._others)

    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:  # noqa: ARG002 - an observer's signature
        """Count a refused request; memory stays bounded whatever is refused."""
        minute = int(self._clock()) // _MINUTE
        if len(code) > _CODE_LIMIT:
            code = OTHER  # a plugin's own; a database would refuse it, and all counts with it
        self._add((None if tenant is None else tenant.id, code, minute), 1)

    def changed(self, tenant: Tenant, action: str, /) -> None:
        """Nothing: the audit log has it."""

    def _add(self, key: tuple[UUID | None, str, int], count: int) -> None:
        counts = self._counts
        if key in counts:
            counts[key] += count
        elif key[1] != OTHER and len(counts) < REFUSALS_LIMIT:
            counts[key] = count
        else:
            minute = key[2]
            if minute not in self._others and len(self._others) >= _OTHER_MINUTES:
                minute = max(self._others)
            self._others[minute] = self._others.get(minute, 0) + count

    async def flush(self) -> None:
        """Write the counts to the store.

        A commit of which nobody knows what became is taken for none: after it, requests may be
        counted twice.

        Raises:
            BackendUnavailable: The store cannot be reached. The counts stay here.
        """
        if not self:
            return
        taken = self._counts
        taken.update({(None, OTHER, minute): count for minute, count in self._others.items()})
        self._counts, self._others = {}, {}
        try:
            async with self._store.transaction() as transaction:
                await transaction.count_refusals(
                    [
                        RefusalCount(tenant_id, code, _start(minute), count)
                        for (tenant_id, code, minute), count in taken.items()
                    ]
                )
        except BaseException:
            for key, count in taken.items():
                self._add(key, count)
            raise


def _start(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * _MINUTE, UTC)
