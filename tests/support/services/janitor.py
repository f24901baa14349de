"""A process of its own that removes a folder once the test process is gone.

It is run as a script, on the standard library only: ``janitor.py FOLDER PARENT``. The test process
holds the other end of its standard input and never writes to it.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from pathlib import Path

PATIENCE = 60.0
"""Seconds in which servers that die at this moment may still put files into the folder."""


def main() -> None:
    """Wait for the end of the test process, then remove the folder."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    # A child that the test process forked keeps the pipe open: the parent's id tells the truth.
    while os.getppid() == parent and not select.select([0], [], [], 0.5)[0]:
        pass
    deadline = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
