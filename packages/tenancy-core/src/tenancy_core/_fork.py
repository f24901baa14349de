"""What a forked child is told: nothing that was open in its parent is its own.

A child inherits sockets, an event loop's ``epoll`` and whatever its parent had in memory. Used,
closed or collected there, they would still act on the parent: its server would be told good-bye,
its event loop would hear no more of a connection. So each room that keeps such things registers a
function here; it makes them unusable in the child and returns them, and they are kept for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["in_child", "lineage", "put_aside"]

Farewell = TypeVar("Farewell", bound="Callable[[], Iterable[object]]")

_log = logging.getLogger("tenancy")


class _Lineage:
    """Which of a line of forked processes this is.

    Attributes:
        generation: How many forks there are between this process and the one that imported this.
    """

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0


lineage: Final = _Lineage()

_farewells: Final[list[Callable[[], Iterable[object]]]] = []
_aside: Final[list[object]] = []


def in_child(farewell: Farewell) -> Farewell:
    """Call a function in every forked child; what it returns is never collected there."""
    _farewells.append(farewell)
    return farewell


def put_aside(*things: object) -> None:
    """Keep things for ever, beyond the end of the interpreter, so that no finalizer runs."""
    _aside.extend(things)


def _forked() -> None:
    lineage.generation += 1
    for farewell in _farewells:
        try:
            for thing in farewell():
                put_aside(thing)
        except Exception:  # noqa: BLE001 - the other rooms are told all the same
            _log.exception("something of the parent process may be in use in this one")
    if _aside:
        _outlive_the_interpreter()


def _outlive_the_interpreter() -> None:
    # At its end the interpreter empties its modules, and would finalize what only they hold. One
    # reference that nobody gives back keeps the list, and everything in it.
    with contextlib.suppress(ImportError):
        import ctypes  # noqa: PLC0415 - in children that need it only

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_aside))


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forked)
