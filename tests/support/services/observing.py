"""What the machine says about a process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN: Final = 60.0


def state_of(process: int) -> str | None:
    """Return the letter of a process's state (``T`` is stopped), or None if it is dead.

    A process that is dead and was not reaped yet holds no port, file or memory: it is dead.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state = text.rpartition(")")[2].split()[0]
    return None if state in {"Z", "X"} else state


def user_of(process: int) -> int:
    """Return the user id as which a process runs."""
    return Path(f"/proc/{process}").stat().st_uid


def shared_memory(data: Path) -> tuple[str, str]:
    """Key and id of the System V segment of the PostgreSQL that runs on a data folder."""
    key, segment = (data / "postmaster.pid").read_text().splitlines()[6].split()
    return key, segment


def shared_memories() -> set[tuple[str, str]]:
    """Key and id of every System V segment of this machine."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {(key, segment) for key, segment, *_ in map(str.split, lines)}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds, from code that is not asynchronous; fail if it never does."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {WITHIN:.0f} s")
        time.sleep(0.005)
