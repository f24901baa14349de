"""Both checkers accept what should be accepted here, and refuse exactly what is marked.

The files are checked without their marks. With them they pass: ``nox -s typing`` sees to that, and
to the code of every mark.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
FILES: Final = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))
MARK: Final = re.compile(r"# type: ignore\[[a-z-]+\]  # pyright: ignore\[[\w, ]+\]$")

pytestmark = [
    # Both read every source and stub from nothing, on a machine that does other things as well.
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("typing"),
]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check a folder with the settings of this repository."""
    cache = folder.with_name("mypy-cache")
    return run("mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", cache, folder)


def pyright(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check a folder as strictly as this repository; its settings name folders of their own."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    for name in ("include", "venv", "venvPath"):
        del settings[name]
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    return run("pyright", "--warnings", "--pythonpath", sys.executable, "--project", config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files, on their own."""
    made = tmp_path / "typed"
    made.mkdir()
    for path in FILES:
        shutil.copy(path, made)
    return made


def take_marks_away(folder: Path) -> set[tuple[str, int]]:
    """Return the lines that were marked."""
    marked: set[tuple[str, int]] = set()
    for path in folder.glob("*.py"):
        lines = path.read_text().splitlines()
        marked |= {(path.name, at) for at, line in enumerate(lines, 1) if MARK.search(line)}
        path.write_text("".join(MARK.sub("", line).rstrip() + "\n" for line in lines))
    return marked


@pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])
def test_a_checker_refuses_the_marked_lines_and_no_other(
    check: Callable[[Path], subprocess.CompletedProcess[str]], folder: Path
) -> None:
    marked = take_marks_away(folder)
    done = check(folder)
    refused = re.findall(r"(\w+\.py):(\d+)(?::\d+ -|:) error:", done.stdout)
    assert {(name, int(line)) for name, line in refused} == marked
    assert len(marked) > 20
