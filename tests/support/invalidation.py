"""Waiting for a process to hear of a change, by what it is told and not by the time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support.waiting import WITHIN, until

if TYPE_CHECKING:
    from uuid import UUID

    from tenancy_core import Tenancy


def never() -> float:
    """A clock that stands still: what is cached never expires by itself."""
    return 0.0


async def connected(tenancy: Tenancy) -> None:
    """Wait until a process listens."""
    listener = tenancy.parts.listener
    assert listener is not None
    await until(lambda: listener.connected)


class Ears:
    """Who was forgotten in a process from now on, in order; None is everybody."""

    def __init__(self, tenancy: Tenancy) -> None:
        self.heard: list[UUID | None] = []
        self._came = asyncio.Event()
        tenancy.parts.directory.on_change(self._hear)

    async def _hear(self, tenant_id: UUID | None) -> None:
        self.heard.append(tenant_id)
        self._came.set()

    async def hears(self, tenant_id: UUID | None) -> None:
        """Wait until this one was forgotten, and strike it off the list."""
        async with asyncio.timeout(WITHIN):
            while tenant_id not in self.heard:
                self._came.clear()
                await self._came.wait()
        self.heard.remove(tenant_id)
