"""The one place where tasks are started.

Background tasks are kept referenced (the event loop holds tasks weakly), cancelled on leaving,
and one that dies is logged instead of vanishing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

__all__ = ["BackgroundTasks", "settle"]

_log = logging.getLogger("tenancy")


class BackgroundTasks:
    """A set of asyncio tasks that live as long as an ``async with`` block."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run ``work`` until it ends or the block is left."""
        task = asyncio.get_running_loop().create_task(work, name=f"tenancy:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background task %s died", task.get_name(), exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def settle(work: Coroutine[Any, Any, None]) -> None:
    """Finish a clean-up even if the task is cancelled meanwhile, then let the cancellation go on.

    A clean-up that is itself cancelled would leave a connection half returned to its pool.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            if cancelled is None:
                raise
            _log.exception("a clean-up failed while its task was being cancelled")
    if cancelled is not None:
        raise cancelled
