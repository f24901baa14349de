"""Tells other processes of a change that was made here, and what such a message looks like."""

from __future__ import annotations

import logging
from secrets import token_hex
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

if TYPE_CHECKING:
    from tenancy_core.contract import InvalidationBus

__all__ = ["EVERYBODY", "ChangeAnnouncer", "MalformedMessageError", "parse"]

_log = logging.getLogger("tenancy")

EVERYBODY: Final = "*"
"""The message after which nothing that is cached is believed."""

_PATIENCE: Final = 2.0
"""Seconds that whoever made a change waits at most for others to be told: they ask, too."""

_ID: Final = 36
"""Characters of a UUID in its canonical form."""


class MalformedMessageError(ValueError):
    """A message that this version does not understand; another may have sent it."""


def parse(message: str) -> tuple[UUID | None, str]:
    """Return whose change a message tells of, None for everybody's, and which process sent it.

    Raises:
        MalformedMessageError: It tells nothing.
    """
    who, _, origin = message.partition(" ")
    if who == EVERYBODY:
        return None, origin
    try:
        found = UUID(who) if len(who) == _ID else None
    except ValueError:
        found = None
    if found is None:
        raise MalformedMessageError
    return found, origin


class ChangeAnnouncer:
    """Publishes the id of each tenant that was changed here.

    Args:
        bus: Where to.

    Attributes:
        origin: What this process writes behind the id, to know its own messages by.
    """

    __slots__ = ("_bus", "_failing", "origin")

    def __init__(self, bus: InvalidationBus) -> None:
        self._bus = bus
        self._failing = False
        self.origin = token_hex(8)

    async def announce(self, tenant_id: UUID) -> None:
        """Tell the others. Bounded in time; where it fails, they learn of it by asking."""
        try:
            with anyio.fail_after(_PATIENCE):
                await self._bus.publish(f"{tenant_id} {self.origin}")
        except Exception as error:  # noqa: BLE001 - the change is committed, and everybody asks
            if not self._failing:
                _log.warning(
                    "the invalidation bus takes no messages (%s); other processes learn of changes "
                    "when they ask the store",
                    type(error).__name__,
                )
            self._failing = True
        else:
            self._failing = False
