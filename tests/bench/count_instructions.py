"""Counts the instructions of a request with callgrind: exact, whatever else the machine does.

One process serves the requests of every subject. Two system calls that nothing else makes mark
the stretch to count: callgrind starts from zero at ``getppid`` and writes a count at ``getpgid``.
``nox -s instructions`` runs it.

    python tests/bench/count_instructions.py            # all subjects; fails above the limit
    python tests/bench/count_instructions.py run        # what valgrind runs
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

REQUESTS = 2_000


def run() -> None:
    """Serve requests; this is what is counted."""
    from subjects import SUBJECTS, drive, null, request

    for wrap in SUBJECTS.values():
        app = wrap(null)
        # Scopes are made before: only the way through the app is left. Two rounds: the
        # interpreter specialises its bytecode in the first.
        for _ in range(2):
            scopes = [request(number) for number in range(REQUESTS)]
            os.getppid()
            for scope in scopes:
                drive(app, scope)
            os.getpgid(0)


def main() -> int:
    """Count all subjects; return 1 if ours is above the limit."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("valgrind is not installed; it counts the instructions (apt: valgrind).")
    from subjects import SUBJECTS

    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                f"--callgrind-out-file={folder}/out",
                "--zero-before=getppid",
                "--dump-before=getpgid",
                sys.executable,
                str(Path(__file__).resolve()),
                "run",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        if finished.returncode:
            raise SystemExit(f"the counted process failed:\n{finished.stderr[-2000:]}")
        figures: dict[str, float] = {}
        for position, subject in enumerate(SUBJECTS):
            text = Path(f"{folder}/out.{2 * position + 2}").read_text()
            found = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
            if found is None:
                raise SystemExit(f"callgrind wrote no count for {subject}.")
            figures[subject] = int(found[1]) / REQUESTS
    for subject, figure in figures.items():
        print(f"{subject:8} {figure:9,.0f} instructions a request")
    ours = figures["tenancy"]
    print(f"limit    {LIMIT:9,}; ours is {ours / figures['ideal']:.2f} of the ideal")
    return int(ours > LIMIT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run()
    else:
        sys.exit(main())
