"""A running server, seen from the tests: its process tree, which can be stopped, killed, paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.services.identity import server_identity
from support.services.supervisor import signal_below

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SUPERVISOR: Final = Path(__file__).with_name("supervisor.py")


class Supervised:
    """One server's process, as the user that servers run as, in the care of a supervisor."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        last_words: signal.Signals,
    ) -> None:
        identity = server_identity()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", _SUPERVISOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # ^C is for the tests
        )
        order = {
            "command": [str(word) for word in command],
            "environment": dict(environment),
            "cwd": str(folder),
            "uid": identity.uid,
            "gid": identity.gid,
            "log": str(log),
            "last_words": int(last_words),
            "parent": os.getpid(),
        }
        self._lifeline, answers = self._supervisor.stdin, self._supervisor.stdout
        assert self._lifeline is not None
        assert answers is not None
        self._lifeline.write(json.dumps(order).encode() + b"\n")
        self._lifeline.flush()
        with answers:
            self.pid = int(answers.readline() or 0)
        """Process id of the server itself."""

    @property
    def status(self) -> int | None:
        """Exit status as a shell gives it, or None as long as anything of the server lives."""
        status = self._supervisor.poll()
        if status is not None:
            self._let_go()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process, which passes on what its children need."""
        if self.status is None:
            os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop every process of the tree: it answers nothing and closes nothing."""
        signal_below(self._supervisor.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let every process of the tree go on."""
        signal_below(self._supervisor.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the whole tree as a power cut does; return when all of it is gone."""
        if self.status is None:
            assert self._lifeline is not None
            with suppress(BrokenPipeError):  # it ended by itself at this moment
                self._lifeline.write(b"k")
                self._lifeline.flush()
        self.wait(None)

    def wait(self, seconds: float | None) -> bool:
        """Wait until all of the tree is gone; False if it is not within these seconds."""
        try:
            self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._let_go()
        return True

    def _let_go(self) -> None:
        assert self._lifeline is not None
        with suppress(BrokenPipeError):
            self._lifeline.close()
