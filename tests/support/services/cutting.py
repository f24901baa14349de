"""A proxy that cuts at the n-th message of its clients, wherever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from support.services.postgres_wire import Splitter, describe
from support.services.relay import Relay

if TYPE_CHECKING:
    from support.services.relay import Link

Moment = Literal["before", "delivered", "answered"]


class Cutter(Relay):
    """Counts the messages of a PostgreSQL's clients, over all connections, and cuts at one.

    Args:
        upstream: The server's URL, or host and port.

    Attributes:
        said: The messages since :meth:`cut_at`, a line each.
    """

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self.said: list[str] = []
        self._left: int | None = None
        self._moment: Moment = "before"
        self._words: tuple[str, ...] = ()
        self._whole = False
        self._dead = False
        self._fired = False
        self._dying: Link | None = None
        self._splitters: dict[Link, Splitter] = {}
        super().__init__(upstream)

    @property
    def fired(self) -> bool:
        """Whether it has cut."""
        return self._fired

    def cut_at(
        self, number: int, moment: Moment, *, whole: bool, words: tuple[str, ...] = ()
    ) -> None:
        """Count from 0 again.

        Args:
            number: What to cut at.
            moment: ``before`` the server has it; when it is ``delivered``, and the server is at
                work; or when it has ``answered``, and the answer is lost.
            whole: Every connection is cut and there are no new ones, as if the process had been
                killed; else only the one, and whoever had it can go on with others.
            words: What the SQL of a message begins with that is counted; all are without.
        """

        def begin() -> None:
            self.said = []
            self._left, self._moment, self._whole, self._words = number, moment, whole, words
            self._dead = self._fired = False
            self._dying = None

        self._call(begin)

    def carry(self) -> None:
        """Carry everything from now on."""
        self._left = None
        self._dead = False

    def _accepts(self) -> bool:
        return not self._dead

    def _arrived(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        if not to_server:
            if link is self._dying:
                self._cut_off(link)
                return b""
            return data
        splitter = self._splitters.setdefault(link, Splitter(untyped=True))
        end = -splitter.held
        for kind, body in splitter.feed(data):
            begin, end = end, end + len(kind) + 4 + len(body)
            name, sql = describe(kind, body)
            self.said.append(f"{name} {sql}".strip())
            if not self._is_due(sql):
                continue
            if self._moment == "answered" and name != "Terminate":
                self._dying = link
                return data
            delivered = data[: max(0, begin if self._moment == "before" else end)]
            link.server.waiting.append((0.0, delivered))
            link.server.held += len(delivered)
            self._cut_off(link)
            return b""
        return data

    def _is_due(self, sql: str) -> bool:
        if self._left is None or self._fired or self._dying is not None:
            return False
        if self._words and not sql.startswith(self._words):
            return False
        self._left -= 1
        return self._left < 0

    def _cut_off(self, link: Link) -> None:
        self._fired, self._dying = True, None
        self._dead = self._whole
        for one in list(self._links) if self._whole else [link]:
            self._reset(one)

    def _drop(self, link: Link) -> None:
        self._splitters.pop(link, None)
        if link is self._dying:
            self._fired, self._dying = True, None
            self._dead = self._whole
        super()._drop(link)
