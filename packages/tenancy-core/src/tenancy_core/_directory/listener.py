"""Listens to the bus, so that a change made elsewhere is seen here at once."""

from __future__ import annotations

import logging
import random
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from tenancy_core._directory.announcer import MalformedMessageError, parse
from tenancy_core.errors import ConfigurationError, TenancyError

if TYPE_CHECKING:
    from tenancy_core._directory.directory import Directory
    from tenancy_core._directory.follower import ChangeFollower
    from tenancy_core.contract import InvalidationBus

__all__ = ["ChangeListener"]

_log = logging.getLogger("tenancy")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries to subscribe; each is drawn between a half of it and the whole, so
that processes which lost the same server do not come back in one moment."""


class ChangeListener:
    """Forgets whom the bus names, and asks the store for what it may have missed.

    Args:
        bus: Whom it listens to.
        directory: What forgets.
        follower: Asked to poll at the start of each subscription: what was published before is
            heard by nobody.
        origin: What this process's own messages end in; they tell it nothing new.

    Attributes:
        connected: Whether it is subscribed.
        tried: Set once it is known whether a subscription can be had.
        malformed: Messages that told nothing.
    """

    __slots__ = (
        "_bus",
        "_directory",
        "_follower",
        "_origin",
        "_told",
        "connected",
        "malformed",
        "tried",
    )

    def __init__(
        self,
        bus: InvalidationBus,
        directory: Directory,
        follower: ChangeFollower,
        *,
        origin: str,
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._follower = follower
        self._origin = origin
        self._told = False
        self.connected = False
        self.malformed = 0
        self.tried = anyio.Event()

    async def run(self) -> None:
        """Listen until cancelled, or until the bus says that it cannot work here."""
        pause = FIRST_PAUSE
        while True:
            began = monotonic()
            try:
                await self._listen()
            except ConfigurationError as error:
                _log.warning(
                    "other processes' changes are not heard of at once, but when the store is "
                    "asked: %s",
                    error,
                )
                return
            except Exception as error:  # noqa: BLE001 - it is tried again, and the poll goes on
                self._tell(error)
            finally:
                self.connected = False
                self.tried.set()
            # One that works and breaks in turns would be tried without a pause.
            if monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await anyio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen(self) -> None:
        async with self._bus.subscribe() as messages:
            await self._follower.poll()
            self.connected = True
            self.tried.set()
            if self._told:
                _log.info("the invalidation bus is heard again")
                self._told = False
            async for message in messages:
                await self._hear(message)

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        # Others' words may hold a URL.
        why = str(error) if isinstance(error, TenancyError) else type(error).__name__
        _log.warning(
            "the invalidation bus is not heard (%s); changes made elsewhere are seen when the "
            "store is asked, and the bus is tried again",
            why,
        )

    async def _hear(self, message: str) -> None:
        try:
            tenant_id, origin = parse(message)
        except MalformedMessageError:
            self.malformed += 1
            # Not its text: anybody may have sent it.
            _log.debug("a message of %d characters on the invalidation bus", len(message))
            return
        if origin != self._origin:
            await self._directory.forget_here(tenant_id)
