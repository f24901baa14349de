"""What the audit log has to do between requests: deliver what is left over, write down counts."""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import anyio

from tenancy_core._background import settle

if TYPE_CHECKING:
    from tenancy_core.audit.outbox import Outbox
    from tenancy_core.audit.refusals import RefusalBuffer

__all__ = ["AuditWorker"]

_CLOSING_SECONDS: Final = 5.0

_log = logging.getLogger("tenancy")


class AuditWorker:
    """Does so every few seconds, in every process.

    Args:
        outbox: What is delivered.
        refusals: What is written down.
        interval: The setting ``invalidation_poll_seconds``.
    """

    __slots__ = ("_failing", "_interval", "_outbox", "_refusals")

    def __init__(self, outbox: Outbox, refusals: RefusalBuffer, interval: float) -> None:
        self._outbox = outbox
        self._refusals = refusals
        self._interval = interval
        self._failing = False

    async def run(self) -> None:
        """Work until cancelled; a store that is down is asked again."""
        while True:
            # Processes that were started together should not all deliver the same events.
            await anyio.sleep(self._interval * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001 - the next round tries again
                if not self._failing:
                    _log.warning(
                        "the audit log's left-overs have to wait (%s); trying again every %g s",
                        type(error).__name__,
                        self._interval,
                    )
                self._failing = True
            else:
                self._failing = False

    async def round(self) -> None:
        """Write down the counts, then deliver what its own process had time to deliver.

        Raises:
            BackendUnavailable: The store cannot be reached.
        """
        # To its end also when the process closes meanwhile: a commit that was interrupted may have
        # taken place, and closing would count everything once more.
        await settle(self._refusals.flush())
        if self._outbox.sinks:
            await self._outbox.drain(datetime.now(UTC) - timedelta(seconds=self._interval))

    async def close(self) -> None:
        """Write down the counts a last time; those that cannot be are logged."""
        try:
            with anyio.fail_after(_CLOSING_SECONDS):
                await self._refusals.flush()
        except Exception as error:  # noqa: BLE001 - closing goes on
            _log.warning(
                "%d counts of refused requests were lost on closing (%s)",
                len(self._refusals),
                type(error).__name__,
            )
