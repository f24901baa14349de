"""Plugin distributions for tests: complete ones to install, and little ones made by hand."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

    import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_plugin"
"""A complete distribution, as a third party would publish it."""


def install_example(target: Path) -> Path:
    """Build the example and install it into a folder, as uv would anywhere.

    Nothing is downloaded: the build backend is the one of this environment.
    """
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config", "--offline"),
            *("--no-deps", "--no-build-isolation", "--no-cache", "--python", sys.executable),
            *("--target", target, EXAMPLE),
        ],
        check=True,
    )
    return target


@contextmanager
def site_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder on ``sys.path``; the modules of the plugins in it are forgotten afterwards."""
    folder = parent / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(parent)):
            del sys.modules[name]


def distribution(
    folder: Path, name: str, source: str, *, entry: str | None = None, value: str | None = None
) -> str:
    """Lay an installed distribution with one module and one entry point into a folder.

    Args:
        folder: Put it on ``sys.path`` to have the distribution found.
        name: Of the distribution; its module has the same name with underscores.
        source: Of the module.
        entry: Name of the entry point; by default that of the distribution.
        value: Of the entry point; by default the module.

    Returns:
        The name of the module.
    """
    module = name.lower().replace("-", "_").replace(".", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tenancy]\n{entry or name} = {value or module}\n")
    return module


def entry_points_in(*folders: Path) -> list[EntryPoint]:
    """Return the entry points of all distributions in folders, without any deduplication."""
    return [
        entry
        for found in distributions(path=[str(folder) for folder in folders])
        for entry in found.entry_points
        if entry.group == "tenancy"
    ]
