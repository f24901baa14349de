"""What the machine says about a process."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

WITHIN: Final = 60.0
LISTEN: Final = "0A"
"""State of a socket that accepts, as ``/proc/net/tcp`` prints it; see proc_net_tcp in the kernel's
documents."""


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


def listening(processes: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which one of these processes listens."""
    sockets = {
        link.removeprefix("socket:[").removesuffix("]")
        for process in processes
        for link in _open_files(process)
        if link.startswith("socket:")
    }
    found = set()
    for table in Path("/proc/net").glob("tcp*"):  # without tcp6 where the kernel does without
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == LISTEN and inode in sockets:
                address, _, port = local.partition(":")
                found.add((_address(address), int(port, 16)))
    return found


def _open_files(process: int) -> Iterator[str]:
    for number in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield str(number.readlink())


def _address(text: str) -> str:
    """Read an address as the kernel prints it: words of four bytes in the machine's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return str(ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


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
