"""Several processes that do something at the same moment."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRELUDE = """
import asyncio, os, sys
from tenancy_core import Tenancy, TenancyConfig
from support.notes import Base
"""

# Everything is imported once, and then the process forks: starting many interpreters takes long.
LOOP = """
def _serve(orders, answers):
    for line in orders:
        try:
            answer = f"done {asyncio.run(work(*line.split()))}"
        except BaseException as error:
            answer = f"failed {type(error).__name__}: {error}".replace("\\n", " ")
        print(answer, file=answers, flush=True)

_pipes = [tuple(map(int, pipe.split(":"))) for pipe in sys.argv[1:]]
for _mine in _pipes:
    if os.fork() == 0:
        for _pipe in _pipes:
            if _pipe is not _mine:
                os.close(_pipe[0])
                os.close(_pipe[1])
        _serve(os.fdopen(_mine[0]), os.fdopen(_mine[1], "w"))
        os._exit(0)
for _pipe in _pipes:
    os.close(_pipe[0])
    os.close(_pipe[1])
for _ in _pipes:
    os.wait()
"""


class Crew:
    """Processes that wait for their orders."""

    def __init__(self, members: list[tuple[IO[str], IO[str]]]) -> None:
        self._members = members

    def all_at_once(self, *orders: str) -> list[str]:
        """Give each its order, or all the same, and return what they answer."""
        for number, (out, _) in enumerate(self._members):
            out.write(f"{orders[number % len(orders)]}\n")
            out.flush()
        return [answers.readline().strip() for _, answers in self._members]


@contextlib.contextmanager
def crew(size: int, program: str, folder: Path) -> Iterator[Crew]:
    """Start processes that call ``async def work(*words)`` of a program for each order."""
    tests = [path for path in sys.path if path.endswith("/tests")]
    source = f"import sys; sys.path[:0] = {tests!r}\n{PRELUDE}{program}{LOOP}"
    members: list[tuple[IO[str], IO[str]]] = []
    theirs: list[tuple[int, int]] = []
    for _ in range(size):
        orders, out = os.pipe()
        answers, back = os.pipe()
        members.append((os.fdopen(out, "w"), os.fdopen(answers)))
        theirs.append((orders, back))
    process = subprocess.Popen[Any](
        [sys.executable, "-c", source, *(f"{orders}:{back}" for orders, back in theirs)],
        pass_fds=[end for ends in theirs for end in ends],
        cwd=folder,
    )
    for end in (end for ends in theirs for end in ends):
        os.close(end)
    try:
        yield Crew(members)
    finally:
        for out, answers in members:
            out.close()
            answers.close()
        process.wait()
