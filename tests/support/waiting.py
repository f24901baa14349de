"""Waiting for something to be so, instead of sleeping and hoping."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = float(os.environ.get("TENANCY_TEST_PATIENCE", "60"))
"""Seconds; generous, because a machine that runs other tests is slow. Less is for those who break
the code on purpose, to see the tests fail."""


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads run until the condition holds; fail if it never does."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("what was waited for did not happen")
        await anyio.sleep(0.001)
