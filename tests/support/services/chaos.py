"""A proxy that a test makes slow, silent or fatal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from support.services.relay import Relay

if TYPE_CHECKING:
    from support.services.relay import Link


class Trigger:
    """What was sent that kills a connection, and whether it has."""

    def __init__(self, pattern: bytes, times: int, *, after: bool) -> None:
        self.pattern = pattern
        self.after = after
        self._left = times
        self._fired = threading.Event()

    @property
    def fired(self) -> bool:
        """Whether it has killed its connection."""
        return self._fired.is_set()

    def wait(self, seconds: float = 60.0) -> bool:
        """Wait until it has killed its connection; False if it has not within these seconds."""
        return self._fired.wait(seconds)

    def seen(self, times: int) -> bool:
        """Count occurrences; whether this was the last that it waited for."""
        self._left -= times
        return self._left <= 0

    def fire(self) -> None:
        """Take note that the connection was killed."""
        self._fired.set()


class ChaosProxy(Relay):
    """A proxy for faults of the network and deaths at a chosen byte.

    ``latency_to_server``, ``latency_to_client`` and ``latency`` (seconds in each direction) make it
    slow. See the methods for the rest.
    """

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self.refuse = False
        """Reset new connections."""
        self._trigger: Trigger | None = None
        self._tails: dict[Link, bytes] = {}
        self._dying: dict[Link, Trigger] = {}
        super().__init__(upstream)

    @property
    def latency(self) -> float:
        """Seconds by which bytes of either direction are late."""
        return max(self.latency_to_server, self.latency_to_client)

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.latency_to_server = self.latency_to_client = seconds

    @property
    def blackhole(self) -> bool:
        """Whether nothing is carried: sockets stay open, and what is sent waits until it ends."""
        return self._held_up

    @blackhole.setter
    def blackhole(self, silent: bool) -> None:
        if silent != self._held_up:
            self._call(lambda: self._hold_up(hold=silent))

    def kill_when(self, pattern: bytes, *, times: int = 1) -> Trigger:
        """Reset the connection on which a client sends these bytes, and do not pass them on.

        Args:
            pattern: What to look for, also across two packets.
            times: On which occurrence, over all connections.
        """
        return self._arm(Trigger(pattern, times, after=False))

    def kill_after(self, pattern: bytes, *, times: int = 1) -> Trigger:
        """Pass these bytes on, wait for the server's answer, and reset instead of delivering it.

        The client cannot know whether its commit went through; here, it has.
        """
        return self._arm(Trigger(pattern, times, after=True))

    def reset_all(self) -> None:
        """Reset every connection; returns when both ends of each have been reset."""

        def reset() -> None:
            for link in list(self._links):
                self._reset(link)

        self._call(reset)

    def half_open(self) -> None:
        """Let the server's ends of all connections go without the clients' learning of it.

        What they send is swallowed, and nothing ever comes back. New connections work.
        """

        def open_half() -> None:
            for link in list(self._links):
                self._half_open(link)

        self._call(open_half)

    def _arm(self, trigger: Trigger) -> Trigger:
        def arm() -> Trigger:
            self._trigger = trigger
            self._tails.clear()
            return trigger

        return self._call(arm)

    def _accepts(self) -> bool:
        return not self.refuse

    def _arrived(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        if dying := self._dying.get(link):
            if not to_server:
                self._kill(link, dying)
                return b""
        elif to_server and (trigger := self._trigger) and self._completes(link, data, trigger):
            self._trigger = None
            self._tails.clear()
            if not trigger.after:
                self._kill(link, trigger)
                return b""
            self._dying[link] = trigger
        return data

    def _completes(self, link: Link, data: bytes, trigger: Trigger) -> bool:
        seen = self._tails.get(link, b"") + data
        times = seen.count(trigger.pattern)
        # An occurrence is counted once: the tail is shorter than the pattern.
        self._tails[link] = seen[max(0, len(seen) - len(trigger.pattern) + 1) :]
        return times > 0 and trigger.seen(times)

    def _kill(self, link: Link, trigger: Trigger) -> None:
        self._dying.pop(link, None)
        trigger.fire()  # before the client can know
        self._reset(link)

    def _drop(self, link: Link) -> None:
        self._tails.pop(link, None)
        if dying := self._dying.pop(link, None):
            dying.fire()  # the server hung up instead of answering: the answer is lost as well
        super()._drop(link)
