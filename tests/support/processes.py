"""Several processes that do something at the same moment."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRELUDE = """
import asyncio, sys
from tenancy_core import Tenancy, TenancyConfig
from support.notes import Base
"""

LOOP = """
def _serve():
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print("done", asyncio.run(work(line.strip())), flush=True)
        except BaseException as error:
            print("failed", f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
_serve()
"""


class Crew:
    """Processes that wait for their orders."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes
        for process in processes:
            assert self._answer(process) == "ready"

    def all_at_once(self, *orders: str) -> list[str]:
        """Give each its order, or all the same, and return what they answer."""
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(f"{orders[number % len(orders)]}\n")
            process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()


@contextlib.contextmanager
def crew(size: int, program: str, folder: Path) -> Iterator[Crew]:
    """Start processes that call ``async def work(order)`` of a program for every order they get."""
    tests = [path for path in sys.path if path.endswith("/tests")]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {tests!r}\n{PRELUDE}{program}{LOOP}"]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )
        for _ in range(size)
    ]
    try:
        yield Crew(processes)
    finally:
        for process in processes:
            process.communicate()
