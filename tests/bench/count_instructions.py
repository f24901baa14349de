"""Counts the instructions of a request with callgrind: exact, whatever else the machine does.

The count is the difference between a run of many requests and one of few, divided by the number
of requests between them, so that start-up and imports drop out. ``nox -s instructions`` runs it.

    python tests/bench/count_instructions.py            # all subjects; fails above the limit
    python tests/bench/count_instructions.py run tenancy 100    # what valgrind runs
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 14_000
"""Instructions that a request on a cached tenant may cost on a null application."""

FEW, MANY = 1_000, 6_000


def run(subject: str, requests: int) -> None:
    """Serve requests; this is what is counted."""
    from subjects import SUBJECTS, drive, null, request  # noqa: PLC0415 - only the counted process

    app = SUBJECTS[subject](null)
    # Each request has a scope of its own, made before: only the way through the app is left.
    scopes = [request(number) for number in range(MANY)]
    for scope in scopes[:requests]:
        drive(app, scope)


def count(subject: str, requests: int) -> int:
    """Return the instructions of a whole process that serves requests."""
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(  # noqa: S603 - our own arguments
            [
                shutil.which("valgrind") or "valgrind",
                "--tool=callgrind",
                f"--callgrind-out-file={folder}/out",
                sys.executable,
                str(Path(__file__).resolve()),
                "run",
                subject,
                str(requests),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )
    found = re.search(r"Collected : (\d+)", finished.stderr)
    if finished.returncode or found is None:
        raise SystemExit(f"valgrind failed for {subject}:\n{finished.stderr[-2000:]}")
    return int(found[1])


def main() -> int:
    """Count all subjects; return 1 if ours is above the limit."""
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed; it counts the instructions (apt: valgrind).")
    figures: dict[str, float] = {}
    for subject in ("bare", "ideal", "tenancy"):
        figures[subject] = (count(subject, MANY) - count(subject, FEW)) / (MANY - FEW)
        print(f"{subject:8} {figures[subject]:9,.0f} instructions a request", flush=True)
    ours = figures["tenancy"]
    print(f"limit    {LIMIT:9,} · ours is {ours / figures['ideal']:.2f} of the ideal")
    return int(ours > LIMIT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main())
