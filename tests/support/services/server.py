"""One real server in a folder of its own, on a port of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, Self

from support.services.errors import StartError
from support.services.finding import find
from support.services.places import new_folder
from support.services.ports import LOOPBACK, free_port
from support.services.supervised import Supervised
from support.services.urls import DRIVERS, written

if TYPE_CHECKING:
    from pathlib import Path

    from support.services.binaries import Binaries

STARTED_WITHIN: Final = 60.0
STOPPED_WITHIN: Final = 30.0
"""Seconds; generous, because a machine that runs other tests is slow."""
ATTEMPTS: Final = 5
LOG_TAIL: Final = 3000
TAKEN: Final = b"address already in use"
"""What all servers write when somebody else has the port."""


class Server(ABC):
    """A server that a test may stop, kill, pause and restart; its port stays what it was.

    Used as a context manager it is started, and at the end it is gone with its data.
    """

    service: ClassVar[str]
    ready: ClassVar[bytes]
    """What it writes into its log when it serves. An answer alone could be somebody else's, who
    took the port a moment before."""
    managed: ClassVar[bool] = True
    """Whether the tests may kill it: a server that somebody else runs is only used."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What makes it stop in good order."""
    last_words: signal.Signals = signal.SIGTERM
    """What makes it stop soon, and give back what outlives processes."""

    def __init__(self, binaries: Binaries | None = None) -> None:
        self.binaries = binaries or find(self.service)
        self.host = LOOPBACK
        self.port = 0
        self.folder = new_folder(self.service)
        self._log = self.folder / "log"
        self._process: Supervised | None = None
        self._prepared = False

    # --- what each service knows ----------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Make what the server needs before its first start."""

    @abstractmethod
    def command(self) -> list[str | Path]:
        """Return program and arguments; it may write files that name the port."""

    @abstractmethod
    def answers(self, connection: socket.socket) -> bool:
        """Whether the server answers on this new connection as it does when it serves."""

    # --- life and death -------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether any process of it is there."""
        return self._process is not None and self._process.status is None

    @property
    def pid(self) -> int:
        """Process id of its first process."""
        assert self._process is not None, f"this {self.service} was never started"
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what it has written."""
        return self._log.read_text(errors="replace")[-LOG_TAIL:] if self._log.exists() else ""

    def start(self) -> None:
        """Start it and return when it serves.

        Raises:
            StartError: It does not; the error has the end of its log.
        """
        if self.running:
            return
        if not self._prepared:
            self.prepare()
            self._prepared = True
        if self.port:
            self._start_once()
        else:
            self._start_on_a_free_port()

    def stop(self) -> None:
        """Stop it in good order; its data stays."""
        if self._process is None or not self.running:
            return
        self._process.resume()
        self._process.signal(self.stop_signal)
        if not self._process.wait(STOPPED_WITHIN):
            self._process.kill()

    def kill(self) -> None:
        """Kill every process of it with SIGKILL: a power cut, without a last word to clients."""
        if self._process is not None:
            self._process.kill()

    def restart(self, *, crash: bool = False) -> None:
        """Stop it, or kill it if ``crash``, and start it again on the same port and data."""
        self.kill() if crash else self.stop()
        self.start()

    def pause(self) -> None:
        """Stop every process of it with SIGSTOP: connections stay, and nothing answers."""
        assert self._process is not None
        self._process.pause()

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        assert self._process is not None
        self._process.resume()

    def close(self) -> None:
        """End it at once and remove its data."""
        if self._process is not None and self.running:
            self._process.resume()
            self._process.signal(self.last_words)
            if not self._process.wait(STOPPED_WITHIN):
                self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> socket.socket:
        """Open a plain TCP connection to it."""
        return socket.create_connection((self.host, self.port), timeout=5)

    def _start_on_a_free_port(self) -> None:
        for attempt in range(ATTEMPTS):
            self.port = free_port()
            before = self._written()
            try:
                self._start_once()
            except StartError:
                if TAKEN not in self._since(before).lower() or attempt == ATTEMPTS - 1:
                    self.port = 0
                    raise
            else:
                return

    def _start_once(self) -> None:
        before = self._written()
        self._process = Supervised(
            self.command(),
            environment=self.binaries.environment,
            folder=self.folder,
            log=self._log,
            last_words=self.last_words,
        )
        deadline = time.monotonic() + STARTED_WITHIN
        while time.monotonic() < deadline:
            if (status := self._process.status) is not None:
                raise StartError(self._failure(f"ended with status {status} instead of starting"))
            try:
                if self.ready in self._since(before):
                    with self.connect() as connection:
                        if self.answers(connection):
                            return
            except OSError:  # nobody listens yet, or it hangs up on who comes too early
                pass
            time.sleep(0.005)
        self._process.kill()
        raise StartError(self._failure(f"did not serve within {STARTED_WITHIN:.0f} seconds"))

    def _written(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _since(self, offset: int) -> bytes:
        return self._log.read_bytes()[offset:] if self._log.exists() else b""

    def _failure(self, what: str) -> str:
        return f"{self.service} from {self.binaries.source} {what}. Its log ends:\n{self.log}"


class SqlServer(Server):
    """A server with users, who log in to one of its databases."""

    user: str
    """Who may do everything."""
    password: str
    database: ClassVar[str]
    """Where a URL leads if nobody says."""

    def url(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        database: str | None = None,
        driver: str | None = None,
    ) -> str:
        """Return the URL of a user; the one who may do everything if nobody is named."""
        login = (user, password or "") if user else (self.user, self.password)
        place = self.database if database is None else database
        return written(driver or DRIVERS[self.service], login, (self.host, self.port), place)
