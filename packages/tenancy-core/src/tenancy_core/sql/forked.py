"""What a forked child does with its parent's connections: nothing, and it cannot do otherwise."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

from tenancy_core._fork import in_child
from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["close_file", "keep_from_children", "open_file"]

_pooled: Final[WeakSet[ConnectionPoolEntry]] = WeakSet()
_files: Final[WeakKeyDictionary[sqlite3.Connection, str]] = WeakKeyDictionary()
_parents: Final[set[tuple[int, int]]] = set()


def keep_from_children(record: ConnectionPoolEntry) -> None:
    """Let no forked child speak on a connection of a pool, or let go of it in its driver's way."""
    _pooled.add(record)


def open_file(connection: sqlite3.Connection, path: str) -> None:
    """Take note of an SQLite file before it is opened.

    SQLite keeps in the memory of a process what the process has locked, by file, and a child
    inherits that: it would take locks for its own that only its parent has. A second process then
    takes itself for the only one, and removes the log with what was committed meanwhile
    (https://www.sqlite.org/howtocorrupt.html, section 2.6).

    Raises:
        ConfigurationError: The file was open in the parent when this process was forked.
    """
    if _parents and _identity(path) in _parents:
        raise ConfigurationError(
            "This process was forked from one that had this SQLite file open, and SQLite cannot be "
            "used on both sides of a fork: committed writes could be lost. Close the Tenancy "
            "before the fork, or start the process in another way than by fork (multiprocessing's "
            "start method 'spawn')."
        )
    _files[connection] = path


def close_file(connection: sqlite3.Connection) -> None:
    """Take note that a connection is closed, or was never opened."""
    _files.pop(connection, None)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - in a driver's thread, for every connection
    except OSError:
        return None
    return found.st_dev, found.st_ino


@in_child
def _leave_files() -> Iterator[object]:
    for connection, path in tuple(_files.items()):
        if (identity := _identity(path)) is not None:
            _parents.add(identity)
        yield connection
    _files.clear()


@in_child
def _leave_pooled() -> Iterator[object]:
    for record in tuple(_pooled):
        yield record
        # Who holds a session holds this, which gives its connection back when it is collected.
        held: Any = getattr(record, "fairy_ref", None)
        yield held and held()
        with suppress(Exception):
            _cut(record.driver_connection)
    _pooled.clear()


def _cut(connection: Any) -> None:  # noqa: ANN401 - a driver's
    """Lead this process's end of a connection nowhere; the parent's is another descriptor."""
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return
    descriptor: int = transport.get_extra_info("socket").fileno()
    nowhere, other = socket.socketpair()
    other.close()
    os.dup2(nowhere.fileno(), descriptor, inheritable=False)
    nowhere.close()
