"""The one place where tasks are started.

Background tasks are kept referenced (the event loop holds tasks weakly), cancelled on leaving,
and one that dies is logged instead of vanishing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import selectors
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

__all__ = [
    "BackgroundTasks",
    "leave_behind",
    "leave_to_parent",
    "on_asyncio",
    "outlast",
    "own_loop",
    "settle",
]

T = TypeVar("T")

_log = logging.getLogger("tenancy")

_left_behind: Final[set[asyncio.Task[None]]] = set()
_parents_loops: Final[list[asyncio.AbstractEventLoop]] = []


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


def on_asyncio() -> bool:
    """Whether the running event loop is one of asyncio, so that tasks can be started."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def settle(work: Coroutine[Any, Any, None]) -> None:
    """Finish a clean-up even if the task is cancelled meanwhile, then let the cancellation go on.

    A clean-up that is itself cancelled would leave a connection half returned to its pool.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            # A cancelled scope of anyio would cancel again in every turn of the event loop.
            with anyio.CancelScope(shield=True):
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


def own_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop, if it is one of asyncio.

    Raises:
        ConfigurationError: This process inherited it, and another one listens to it as well.
    """
    if not on_asyncio():
        return None
    loop = asyncio.get_running_loop()
    if any(loop is inherited for inherited in _parents_loops):
        raise ConfigurationError(
            "This process was forked, and runs an event loop of its parent's, on which a Tenancy "
            "was open. Start a new one here, for instance with asyncio.run."
        )
    return loop


def leave_to_parent(loop: asyncio.AbstractEventLoop) -> Iterator[object]:
    """Part with the event loop of the process that this one was forked from.

    The kernel keeps what a loop listens to in a set that both processes have: what this one took
    out of it, the other would never hear of again. Here the loop gets a set of its own.

    Yields:
        The loop and its tasks. Were they collected, their clean-ups would run in this process.
    """
    _parents_loops.append(loop)
    yield loop
    yield from asyncio.all_tasks(loop)
    selector: Any = getattr(loop, "_selector", None)
    if type(selector).__name__ == "EpollSelector":
        with select.epoll() as own:
            for key in selector.get_map().values():
                reads = select.EPOLLIN if key.events & selectors.EVENT_READ else 0
                writes = select.EPOLLOUT if key.events & selectors.EVENT_WRITE else 0
                with contextlib.suppress(OSError):
                    own.register(key.fd, reads | writes)
            os.dup2(own.fileno(), selector.fileno(), inheritable=False)


def leave_behind(work: Coroutine[Any, Any, None]) -> None:
    """Run a clean-up for which nobody can wait."""
    task = asyncio.get_running_loop().create_task(work)
    _left_behind.add(task)
    task.add_done_callback(_left_behind.discard)


async def outlast(
    work: Coroutine[Any, Any, T],
    left: Callable[[asyncio.Task[T]], Coroutine[Any, Any, None]],
) -> T:
    """Run ``work`` so that a cancellation of the caller neither stops it nor waits for it.

    Args:
        work: What must come to its end.
        left: Called in the moment in which the caller is cancelled, with the task that goes on;
            what it returns then runs in a task of its own and deals with the outcome.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        leave_behind(left(task))
        raise
