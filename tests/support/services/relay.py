"""A TCP proxy on the loopback that carries bytes and lets a subclass look at them, or lose them.

One thread serves all connections of a relay. Everything that changes them happens on it.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from support.services.alarm import Alarm
from support.services.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

CHUNK: Final = 1 << 16
HELD: Final = 1 << 22
"""Bytes on their way in one direction beyond which the sender has to wait."""
ANSWERS_WITHIN: Final = 60.0
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST instead of FIN."""


class End:
    """One socket of a connection, and what waits to be written to it."""

    def __init__(self, link: Link, connection: socket.socket, *, connected: bool) -> None:
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link = link
        self.socket = connection
        self.writable = connected
        """Whether the last write went through; a connection on its way is not writable either."""
        self.waiting: deque[tuple[float, bytes | None]] = deque()
        """(moment, bytes) to be written here; None stands for the end of the stream."""
        self.held = 0
        self.ended = False
        """Whether the peer has sent the end of its stream."""
        self.interest = 0

    @property
    def other(self) -> End:
        """The other socket of the same connection."""
        return self.link.server if self is self.link.client else self.link.client


class Link:
    """A client's connection, and the one to the server that is its other half."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = End(self, client, connected=True)
        self.server = End(self, server, connected=False)
        self.closed = False
        self.finished = 0
        """Directions whose end has been passed on."""
        self.swallowing = False
        """Whether the server is gone without the client's knowing it."""


class Relay:
    """A proxy in front of a server; clients connect to its ``port``, or to ``through(url)``.

    Args:
        upstream: The server's URL, or host and port.

    Attributes:
        latency_to_server: Seconds by which every byte from now on is late.
        latency_to_client: The same for the other direction.
    """

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self._url = upstream if isinstance(upstream, str) else None
        self._upstream = _address(upstream) if isinstance(upstream, str) else upstream
        self.latency_to_server = 0.0
        self.latency_to_client = 0.0
        self.connections = 0
        """Connections that clients have made so far."""
        self._links: dict[Link, None] = {}
        self._held_up = False
        self._due: list[tuple[float, int, End]] = []
        self._numbers = itertools.count()
        self._orders: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=512)
        self._listener.settimeout(0)
        self.host, self.port = self._listener.getsockname()[:2]
        self._waker, self._woken = socket.socketpair()
        self._woken.settimeout(0)
        self._alarm = Alarm()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._obey)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._alarm.clear)
        self._open = True
        name = f"{type(self).__name__}-{self.port}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # --- for tests ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """URL of the server, by way of this proxy."""
        assert self._url is not None, "this proxy was made from host and port: use through(url)"
        return self.through(self._url)

    def through(self, url: str) -> str:
        """Return a URL of the server with this proxy's address in the place of the server's."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{self.host}:{self.port}"))

    @property
    def round_trip_delay(self) -> float:
        """Seconds that every round trip takes longer; half of them go to each direction."""
        return self.latency_to_server + self.latency_to_client

    @round_trip_delay.setter
    def round_trip_delay(self, seconds: float) -> None:
        self.latency_to_server = self.latency_to_client = seconds / 2

    @property
    def open_connections(self) -> int:
        """Connections of clients that are open now."""
        return self._call(lambda: len(self._links))

    def close(self) -> None:
        """Close every connection and stop listening."""
        if self._open:
            self._call(self._stop)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for subclasses, on the proxy's thread --------------------------------------------------

    def _accepts(self) -> bool:
        """Whether a new client is connected; else it gets RST."""
        return True

    def _arrived(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        """Look at what arrived; returns what is passed on of it."""
        return data

    def _call(self, order: Callable[[], Result]) -> Result:
        """Do something on the proxy's thread, and wait for it."""
        if not self._open or threading.current_thread() is self._thread:
            return order()
        done: Future[Result] = Future()
        self._orders.append((order, done))
        self._waker.send(b"!")
        return done.result(ANSWERS_WITHIN)

    def _reset(self, link: Link) -> None:
        """Cut a connection off: both ends get RST."""
        with suppress(OSError):
            # What the client sent before has left it: the server gets it, only sooner.
            self._write(link.server, now=float("inf"))
        if not link.closed:
            for end in (link.client, link.server):
                _reset_on_close(end.socket)
            self._drop(link)

    def _half_open(self, link: Link) -> None:
        """Let the server go, and keep the client in the belief that it is there."""
        if not link.swallowing:
            link.swallowing = True
            for end in (link.client, link.server):
                end.waiting.clear()
                end.held = 0
            self._forget(link.server)
            self._watch(link.client)

    def _hold_up(self, *, hold: bool) -> None:
        """Carry nothing at all, neither bytes nor ends nor new connections, or go on."""
        self._held_up = hold
        if hold:
            self._selector.unregister(self._listener)
        else:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for link in list(self._links):
            self._pump(link)

    # --- the loop -------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._open:
            for key, events in self._selector.select():
                if not self._open:
                    return
                if isinstance(key.data, End):
                    self._serve(key.data, events)
                else:
                    key.data()
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._pump(heapq.heappop(self._due)[2].link)
            if self._open:
                self._alarm.set(self._due[0][0] if self._due else None)

    def _obey(self) -> None:
        self._woken.recv(CHUNK)
        while self._orders:
            order, done = self._orders.popleft()
            try:
                done.set_result(order())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was ordered
                done.set_exception(error)

    def _stop(self) -> None:
        self._open = False
        for link in list(self._links):
            self._drop(link)
        for closed in (self._selector, self._listener, self._waker, self._woken, self._alarm):
            closed.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away again
            return
        if not self._accepts():
            _reset_on_close(client)
            client.close()
            return
        self.connections += 1
        family = socket.AF_INET6 if ":" in self._upstream[0] else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        link = Link(client, server)
        self._links[link] = None
        server.connect_ex(self._upstream)  # how it ended shows when it can be written to
        self._watch(link.client)
        self._watch(link.server)

    def _serve(self, end: End, events: int) -> None:
        link = end.link
        try:
            if events & selectors.EVENT_WRITE:
                if error := end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, "the other end is gone")
                end.writable = True
            if events & selectors.EVENT_READ and not link.closed:
                self._read(end)
        except OSError:
            self._cut(end)
        self._pump(link)

    def _read(self, end: End) -> None:
        try:
            data = end.socket.recv(CHUNK)
        except BlockingIOError:
            return
        to_server = end is end.link.client
        if not data:
            end.ended = True
            if end.link.swallowing:
                self._drop(end.link)
                return
        elif end.link.swallowing or not (
            data := self._arrived(end.link, data, to_server=to_server)
        ):
            return
        if end.link.closed:
            return
        late = self.latency_to_server if to_server else self.latency_to_client
        target = end.other
        due = time.monotonic() + late if late else 0.0
        target.waiting.append((due, data or None))  # behind what was sent first, whenever due
        target.held += len(data)
        if due:
            heapq.heappush(self._due, (due, next(self._numbers), target))

    def _pump(self, link: Link) -> None:
        """Write what is due in both directions, and see what to wait for next."""
        for end in (link.client, link.server):
            if not link.closed and not self._held_up:
                try:
                    self._write(end, time.monotonic())
                except OSError:
                    self._cut(end)
        if not link.closed:
            self._watch(link.client)
            self._watch(link.server)

    def _write(self, end: End, now: float) -> None:
        while end.writable and end.waiting and end.waiting[0][0] <= now:
            due, data = end.waiting.popleft()
            if data is None:
                end.link.finished += 1
                if end.link.finished == 2:
                    self._drop(end.link)
                else:
                    end.socket.shutdown(socket.SHUT_WR)
                return
            try:
                sent = end.socket.send(data)
            except BlockingIOError:
                sent = 0
            end.held -= sent
            if sent < len(data):
                end.waiting.appendleft((due, data[sent:]))
                end.writable = False

    def _watch(self, end: End) -> None:
        """Tell the selector what this end waits for."""
        if end.socket.fileno() < 0:
            return
        interest = 0
        if not self._held_up:
            if not end.ended and end.other.held < HELD:
                interest |= selectors.EVENT_READ
            if not end.writable:
                interest |= selectors.EVENT_WRITE
        if interest == end.interest:
            return
        if not end.interest:
            self._selector.register(end.socket, interest, end)
        elif not interest:
            self._selector.unregister(end.socket)
        else:
            self._selector.modify(end.socket, interest, end)
        end.interest = interest

    def _cut(self, end: End) -> None:
        """One end was reset: so is the other."""
        if not end.link.closed:
            if not end.link.swallowing:
                _reset_on_close(end.other.socket)
            self._drop(end.link)

    def _drop(self, link: Link) -> None:
        link.closed = True
        self._links.pop(link, None)
        for end in (link.client, link.server):
            self._forget(end)
            end.waiting.clear()

    def _forget(self, end: End) -> None:
        if end.interest:
            self._selector.unregister(end.socket)
            end.interest = 0
        end.socket.close()


def _reset_on_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname, "a proxy needs a URL with host and port"
    assert parts.port, "a proxy needs a URL with host and port"
    return parts.hostname, parts.port
