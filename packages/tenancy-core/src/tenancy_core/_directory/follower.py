"""Follows the store's change sequence, so that a change made elsewhere is seen here in time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from tenancy_core._directory.directory import Directory
    from tenancy_core.contract import TenantStore

__all__ = ["ChangeFollower"]

_log = logging.getLogger("tenancy")

PATIENCE: Final = 10.0
"""Seconds for one poll. A link to the store that is silent would hold up the polls after it, and
whoever listens to a bus, which asks as well."""


class ChangeFollower:
    """Asks the store every few seconds what changed, and forgets it.

    Args:
        store: Whose sequence is followed.
        directory: What forgets.
        interval: The setting ``invalidation_poll_seconds``.
    """

    __slots__ = ("_directory", "_failing", "_interval", "_lock", "_seen", "_store", "_unsure")

    def __init__(self, store: TenantStore, directory: Directory, interval: float) -> None:
        self._store = store
        self._directory = directory
        self._interval = interval
        self._seen = 0
        self._unsure = False
        self._failing = False
        # Whoever listens to a bus asks as well, at times of its own.
        self._lock = anyio.Lock()

    async def start(self) -> None:
        """Note where the sequence is. Call it before the first tenant is cached.

        The shared cache forgets everybody: a process that was killed between a commit and telling
        it, and had nobody beside it who asks what changed, has left old records there.
        """
        self._seen = await self._store.last_change()
        self._unsure = True
        try:
            await self._forget_what_was_before()
        except BackendUnavailable as error:
            _log.warning("the shared cache is told by the next poll: %s", error)

    async def _forget_what_was_before(self) -> None:
        await self._directory.forget_shared()
        self._unsure = False

    async def run(self) -> None:
        """Follow until cancelled; a store that is down is asked again."""
        while True:
            await anyio.sleep(self._interval)
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001 - the next round asks again
                if not self._failing:
                    _log.warning(
                        "cannot follow changes of tenants (%s); trying again every %g s",
                        type(error).__name__,
                        self._interval,
                    )
                self._failing = True
            else:
                self._failing = False

    async def poll(self) -> None:
        """Forget what changed since the last call.

        Raises:
            BackendUnavailable: The store or the shared cache could not be asked. What is known to
                have changed is forgotten here all the same, and told again by the next call.
            TimeoutError: One of them did not answer; the next call goes on from there.
        """
        async with self._lock:
            with anyio.fail_after(PATIENCE):
                await self._poll()

    async def _poll(self) -> None:
        if self._unsure:
            await self._forget_what_was_before()
        while changes := await self._store.changes(after=self._seen):
            if changes[0].sequence != self._seen + 1:
                # The sequence was cut behind us: what was in the gap is unknown.
                await self._directory.forget_everybody()
            failure: BackendUnavailable | None = None
            for tenant_id in dict.fromkeys(change.tenant_id for change in changes):
                try:
                    await self._directory.forget(tenant_id)
                except BackendUnavailable as error:
                    failure = error
            if failure is not None:
                raise failure
            self._seen = changes[-1].sequence
        if (newest := await self._store.last_change()) < self._seen:
            # An older state was restored: its next changes have numbers that were seen before.
            await self._directory.forget_everybody()
            self._seen = newest
