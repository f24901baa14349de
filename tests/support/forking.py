"""Programs that fork: each in a process of its own, so that the one of the tests never does.

What a child raises, warns of or leaves unclosed is in the program's standard error.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

PATIENCE = 60.0
"""Seconds for a child to end; only a failure waits for so long."""


def run(program: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run the text of a program; return what it printed.

    Raises:
        AssertionError: It failed, or wrote something to standard error.
    """
    tests = [path for path in sys.path if path.endswith("/tests")]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "always", "-W", "ignore:This process:DeprecationWarning"),
            *("-c", f"import sys; sys.path[:0] = {tests!r}\n{program}"),
        ],
        env={**os.environ, **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def fork(child: Callable[[], Awaitable[Any]], *, ends: bool = True) -> int:
    """Run a coroutine function in a forked child; return the child's id.

    Args:
        child: What it does, on an event loop of its own.
        ends: Whether the child ends as a program does, with everything collected.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 0
    try:
        asyncio.run(child())  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 - it is printed, and the child fails
        traceback.print_exc()
        status = 1
    gc.collect()
    if ends:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a child; return its exit status, -9 for one that hung."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def status_of_child(pid: int) -> int:
    """As :func:`status_of`, while the parent's event loop goes on."""
    return await asyncio.to_thread(status_of, pid)
