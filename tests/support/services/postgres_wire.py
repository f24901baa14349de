"""What goes over a PostgreSQL connection: where its messages begin, and what the client says.

Message formats are those of protocol 3.0 (PostgreSQL's documentation, "Message Formats").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Start-up packets have a code where others have a type.
CODES: Final[Mapping[int, str]] = {
    80877102: "CancelRequest",
    80877103: "SSLRequest",
    80877104: "GSSENCRequest",
}
FRONTEND: Final[Mapping[bytes, str]] = {
    b"B": "Bind",
    b"C": "Close",
    b"D": "Describe",
    b"E": "Execute",
    b"F": "FunctionCall",
    b"H": "Flush",
    b"P": "Parse",
    b"Q": "Query",
    b"S": "Sync",
    b"X": "Terminate",
    b"c": "CopyDone",
    b"d": "CopyData",
    b"f": "CopyFail",
    b"p": "Password",
}
NEGOTIATIONS: Final = {"SSLRequest", "GSSENCRequest"}


@dataclass(frozen=True)
class Message:
    """A message of a client."""

    connection: int
    """Which of the proxy's connections; the first is 1."""
    round_trip: int
    """In which round trip of all it was sent; 0 for those of a connection's start-up."""
    kind: str
    sql: str = ""
    """Of ``Query`` and ``Parse``."""

    def __str__(self) -> str:
        """Return one line for the log of a failed test."""
        place = f"#{self.connection} {self.round_trip or 'start-up':>3}"
        return f"{place} {self.kind} {self.sql}".rstrip()


class Splitter:
    """Cuts one direction's bytes into messages, however they arrive.

    Args:
        untyped: The stream begins with packets that have no type: a client's.
    """

    def __init__(self, *, untyped: bool) -> None:
        self._buffer = bytearray()
        self._untyped = untyped

    @property
    def held(self) -> int:
        """Bytes of a message that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (type, body) of every message that is complete; no type for a start-up packet."""
        self._buffer += data
        while True:
            head = 0 if self._untyped else 1
            if len(self._buffer) < head + 4:
                return
            (length,) = struct.unpack_from("!I", self._buffer, head)
            if len(self._buffer) < head + length:
                return
            kind = bytes(self._buffer[:head])
            body = bytes(self._buffer[head + 4 : head + length])
            del self._buffer[: head + length]
            if self._untyped and startup_name(body) not in NEGOTIATIONS:
                self._untyped = False
            yield kind, body


def startup_name(body: bytes) -> str:
    """Name a packet that has no type."""
    (code,) = struct.unpack_from("!I", body)
    return CODES.get(code, "StartupMessage")


def describe(kind: bytes, body: bytes) -> tuple[str, str]:
    """Name a client's message, and say what SQL is in it. Passwords are not looked at."""
    if not kind:
        return startup_name(body), ""
    sql = b""
    if kind == b"Q":
        sql = body.rstrip(b"\0")
    elif kind == b"P":
        sql = body.split(b"\0", 2)[1]  # after the statement's name
    return FRONTEND.get(kind, repr(kind)), sql.decode(errors="replace")
