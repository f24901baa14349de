"""Counts the SQLite connections that are really open, below everything that could miscount."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class RealConnections:
    """How many connections this process has open.

    Attributes:
        now: At this moment.
        most: The most there were at any moment.
        opened: How many were opened.
    """

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.opened = 0
        self._lock = threading.Lock()

    def _begin(self) -> None:
        with self._lock:
            self.now += 1
            self.opened += 1
            self.most = max(self.most, self.now)

    def _end(self) -> None:
        with self._lock:
            self.now -= 1

    def counted(self, factory: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
        """Return the class with counting around opening and closing."""
        counts = self

        class Counted(factory):  # made at run time
            def __init__(self, *args: Any, **options: Any) -> None:
                counts._begin()
                # Closed, or dropped: whatever comes first.
                self.__end = weakref.finalize(self, counts._end)
                try:
                    super().__init__(*args, **options)
                except BaseException:
                    self.__end()
                    raise

            def close(self) -> None:
                super().close()
                self.__end()

        return Counted


def count_connections(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    """Count every connection that is opened from now on."""
    counts = RealConnections()
    connect = sqlite3.connect

    def counting(
        *args: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **options: Any
    ) -> sqlite3.Connection:
        return connect(*args, factory=counts.counted(factory), **options)

    monkeypatch.setattr(sqlite3, "connect", counting)
    return counts
