"""A proxy that counts how often a client waits for the server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from support.services.postgres_wire import NEGOTIATIONS, Message, Splitter, describe
from support.services.relay import Relay

if TYPE_CHECKING:
    from support.services.relay import Link

Protocol = Literal["postgres", "any"]


@dataclass
class Counts:
    """What went over the wire since the last reset."""

    round_trips: int = 0
    """How often a client sent something after it had received something."""
    startup_round_trips: int = 0
    """The same until a connection was ready for its first query."""
    connections: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    messages: list[Message] = field(default_factory=list)
    """What clients said, start-up included; empty unless the protocol is PostgreSQL's."""
    messages_to_client: int = 0

    @property
    def kinds(self) -> Counter[str]:
        """How many messages of each kind clients sent."""
        return Counter(message.kind for message in self.messages)

    @property
    def statements(self) -> list[str]:
        """SQL of all ``Query`` and ``Parse`` messages, in order."""
        return [message.sql for message in self.messages if message.sql]

    def __str__(self) -> str:
        """Return what a failed test prints."""
        summary = (
            f"{self.round_trips} round trips (and {self.startup_round_trips} of start-up) on "
            f"{self.connections} new connections, {self.bytes_to_server} bytes to the server, "
            f"{self.bytes_to_client} bytes back:"
        )
        return "\n".join((summary, *map(str, self.messages)))


class _Stream:
    """What is known about one connection."""

    def __init__(self, number: int, *, starting: bool) -> None:
        self.number = number
        self.client_turn = True
        """Whether the server was the last to speak, so that the next word is a new round trip."""
        self.starting = starting
        self.negotiating = False
        self.encrypted = False
        self.to_server = Splitter(untyped=True)
        self.to_client = Splitter(untyped=False)


class RoundTripCounter(Relay):
    """A proxy that counts round trips, and writes down what a client of PostgreSQL says.

    A round trip begins when a client sends after the server has; however many messages go in one
    direction before the other answers, they are one. Until the first ``ReadyForQuery`` of a
    connection its round trips are counted apart. ``round_trip_delay`` (seconds) makes each of them
    cost what it costs in a network.

    Args:
        upstream: The server's URL, or host and port.
        protocol: ``any`` counts for any server, without messages and without a start-up.
    """

    def __init__(self, upstream: str | tuple[str, int], *, protocol: Protocol = "postgres") -> None:
        self._protocol = protocol
        self._counts = Counts()
        self._streams: dict[Link, _Stream] = {}
        self._numbered = 0
        super().__init__(upstream)

    @property
    def counts(self) -> Counts:
        """What was counted since the last :meth:`reset`; a copy that stays as it is."""

        def copy() -> Counts:
            values = {**vars(self._counts), "messages": [*self._counts.messages]}
            return Counts(**values)

        return self._call(copy)

    @property
    def round_trips(self) -> int:
        """Round trips since the last :meth:`reset`, start-up not included."""
        return self.counts.round_trips

    def reset(self) -> Counts:
        """Count from 0 again; returns what was counted before."""

        def begin() -> Counts:
            before, self._counts = self._counts, Counts()
            return before

        return self._call(begin)

    def _arrived(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        stream = self._streams.get(link) or self._new_stream(link)
        counts = self._counts
        if to_server:
            counts.bytes_to_server += len(data)
            if stream.client_turn:
                stream.client_turn = False
                if stream.starting:
                    counts.startup_round_trips += 1
                else:
                    counts.round_trips += 1
        else:
            counts.bytes_to_client += len(data)
            stream.client_turn = True
        if self._protocol == "postgres" and not stream.encrypted:
            (self._said if to_server else self._answered)(stream, data)
        return data

    def _new_stream(self, link: Link) -> _Stream:
        self._numbered += 1
        self._counts.connections += 1
        stream = _Stream(self._numbered, starting=self._protocol == "postgres")
        return self._streams.setdefault(link, stream)

    def _said(self, stream: _Stream, data: bytes) -> None:
        for kind, body in stream.to_server.feed(data):
            name, sql = describe(kind, body)
            number = 0 if stream.starting else self._counts.round_trips
            self._counts.messages.append(Message(stream.number, number, name, sql))
            stream.negotiating = name in NEGOTIATIONS

    def _answered(self, stream: _Stream, data: bytes) -> None:
        if stream.negotiating:
            # One letter without a length: S or G, and what follows is not for us, or N.
            stream.negotiating = False
            stream.encrypted = data[:1] != b"N"
            stream.starting = stream.starting and not stream.encrypted
            data = data[1:]
        for kind, _ in stream.to_client.feed(data) if not stream.encrypted else ():
            self._counts.messages_to_client += 1
            if kind == b"Z":
                stream.starting = False

    def _drop(self, link: Link) -> None:
        super()._drop(link)
        self._streams.pop(link, None)
