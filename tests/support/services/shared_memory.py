"""The one thing of a killed PostgreSQL that outlives its processes and is in no folder."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_SEGMENTS: Final = Path("/proc/sysvipc/shm")
_IPC_RMID: Final = 0
_LINE_OF_SEGMENT: Final = 6  # counted from 0; PostgreSQL's pidfile.h, LOCK_FILE_LINE_SHMEM_KEY


def remove_segment(postmaster_pid: str) -> None:
    """Remove the System V segment that a ``postmaster.pid`` names, if nobody uses it.

    PostgreSQL does it when it stops or starts again; a server that was killed for good does not,
    and a machine has room for 4096 of them.
    """
    lines = postmaster_pid.splitlines()
    if len(lines) <= _LINE_OF_SEGMENT or not _SEGMENTS.exists():
        return
    key, segment = lines[_LINE_OF_SEGMENT].split()
    for line in _SEGMENTS.read_text().splitlines()[1:]:
        found_key, found_segment, _, _, _, _, attached, *_ = line.split()
        if (found_key, found_segment, attached) == (key, segment, "0"):
            ctypes.CDLL(None).shmctl(int(segment), _IPC_RMID, None)
