"""The parent of one server: a process that knows when the tests are gone, and ends the server.

It is run as a script, on the standard library only. Its order comes as one line of JSON on standard
input, the id of the server's process goes to standard output, and then the input is the lifeline:

* ``k``: kill the server and everything it started, at once;
* the end: the test process is gone, so end everything.

Why not ``PR_SET_PDEATHSIG`` in the test process: it fires when the *thread* that forked ends, needs
code between fork and exec (which Python warns about in a process with threads), and reaches only
the first process of a server's tree: its children stay if they are stopped. Here one thread forks,
the whole tree is ours (``PR_SET_CHILD_SUBREAPER``), and the death signal is what remains if
somebody kills this process too.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LAST_WORDS = 2.0
"""Seconds for a server to end by itself (and to give shared memory back) before SIGKILL."""


def prctl(option: int, value: int) -> None:
    """Call prctl(2), where there is one."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def descendants(root: int) -> list[int]:
    """Every process below one, itself not included; the dead that nobody has reaped are left out.

    Parents are what holds a tree together: PostgreSQL's backends have sessions, and so process
    groups, of their own.
    """
    children: dict[int, list[int]] = {}
    for parent, child in _processes():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    todo = list(children.get(root, ()))
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], ())
    return found


def signal_below(root: int, number: int) -> None:
    """Send a signal to every process below one, also to those born meanwhile."""
    reached: set[int] = set()
    while missing := [process for process in descendants(root) if process not in reached]:
        for process in missing:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        reached.update(missing)


def kill_below(root: int) -> None:
    """Kill every process below one as a power cut does: none of them sees another die."""
    signal_below(root, signal.SIGSTOP)
    signal_below(root, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, int]]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry.name}/stat").read_text(encoding="latin-1")
        except OSError:
            continue
        # The name of the program stands in parentheses, and may itself contain some.
        state, parent = text.rpartition(")")[2].split()[:2]
        if state not in {"Z", "X"}:
            yield int(parent), int(entry.name)


def _start(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    supervisor = os.getpid()
    process = os.fork()  # safe: there is one thread, and nothing is locked
    if process:
        os.close(log)
        return process
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(number, target)
        os.chdir(order["cwd"])
        if order["uid"] is not None:
            os.setgroups([])
            os.setgid(order["gid"])
            os.setuid(order["uid"])
        # After setuid, which takes it away; and then look whether the parent died before it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            os.execve(order["command"][0], order["command"], order["environment"])  # noqa: S606 - no shell, and a program of ours
    except BaseException as error:  # noqa: BLE001 - the child must not return into the parent's code
        os.write(2, f"{order['command'][0]}: {error}\n".encode())
    os._exit(127)


def main() -> None:
    """Start the server, wait for its end or for the tests', and leave nothing behind."""
    with open(0, "rb", buffering=0, closefd=False) as orders:
        order = json.loads(orders.readline())
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = _start(order)
    os.write(1, b"%d\n" % server)
    status = 0
    lifeline = [0]
    while True:  # until there is no child left
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == server:
                    status = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            break
        ready = select.select([*lifeline, wake], [], [], 0.5)[0]
        if wake in ready:
            os.read(wake, 4096)
        command = os.read(0, 1) if 0 in ready else b"-"
        # A child that the test process forked keeps the pipe open: the parent's id tells the truth.
        if lifeline and (not command or os.getppid() != order["parent"]):
            lifeline = []
            _end(server, order["last_words"])
        if not lifeline or command == b"k":
            kill_below(os.getpid())
    sys.exit(status if status >= 0 else 128 - status)


def _end(server: int, words: int) -> None:
    """Ask the server to end, also if it is stopped, and give it a moment."""
    signal_below(os.getpid(), signal.SIGCONT)
    if server in descendants(os.getpid()):
        os.kill(server, words)
    deadline = time.monotonic() + LAST_WORDS
    while descendants(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.005)


if __name__ == "__main__":
    main()
