"""Where files go, and templates of what is the same for every server."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.services import places
from support.services.errors import ServiceUnavailableError
from support.services.identity import server_identity
from support.services.places import cache_folder, data_root, new_folder, run_folder, temporary_root
from support.services.templates import unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TENANCY_TEST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_cache")
def test_the_cache_is_where_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tenancy-tests"
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path / "said"))
    assert cache_folder() == tmp_path / "said"
    assert cache_folder().is_dir()


@pytest.mark.usefixtures("no_cache")
def test_without_more_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tenancy-tests"


@pytest.mark.usefixtures("no_cache")
def test_without_a_home_it_is_temporary_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(places, "temporary_root", lambda: tmp_path)
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.name == f"tenancy-tests-{os.geteuid()}"
    assert folder.stat().st_uid == os.geteuid()
    assert folder.stat().st_mode & 0o022 == 0


def test_a_cache_that_anybody_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path))
    with pytest.raises(ServiceUnavailableError, match=r"can be written by anybody.*TENANCY_TEST"):
        cache_folder()


def test_a_cache_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ServiceUnavailableError, match="belongs to somebody else"):
        cache_folder()


def test_a_cache_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path / "link"))
    with pytest.raises(ServiceUnavailableError, match="belongs to somebody else"):
        cache_folder()


def test_a_template_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        script = f"umask 077; mkdir {target}; echo content >{target}/file"
        subprocess.run(["/bin/sh", "-c", script], check=True, **server_identity().popen)

    def ask(ingredients: str) -> Path:
        data = new_folder("template") / "data"
        unpack("x", ingredients, data, make)
        assert (data / "file").read_text() == "content\n"
        return data

    first, second = ask("one"), ask("one")
    assert made == [first]
    for path in (second, second / "file"):
        assert path.stat().st_mode & 0o077 == 0
        assert path.stat().st_uid == first.stat().st_uid
    other = ask("another")
    assert made == [first, other]
    suffixes = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert suffixes == [".lock", ".lock", ".tar", ".tar"]


def test_a_template_that_cannot_be_packed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANCY_TEST_CACHE", str(tmp_path / "cache"))
    target = new_folder("template") / "data"
    with pytest.raises(subprocess.CalledProcessError):
        unpack("x", "one", target, lambda _: None)  # there is nothing to pack
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_folders_of_one_process_are_together() -> None:
    assert new_folder("a").parent == new_folder("a").parent == run_folder(data_root())
    assert new_folder("a") != new_folder("a")


FORKS = """
import os, sys
from support.services.places import run_folder, temporary_root

folder = run_folder(temporary_root())
if (child := os.fork()) == 0:
    sys.exit()
os.waitpid(child, 0)
print(folder.is_dir())
"""


def test_a_child_that_ends_leaves_the_folder_of_its_parent(
    python: Callable[[str], subprocess.Popen[str]],
) -> None:
    assert python(FORKS).communicate(timeout=60)[0] == "True\n"


def test_data_is_in_memory_only_where_that_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MEMORY", tmp_path)
    monkeypatch.setattr(places, "ENOUGH", 0)
    assert data_root() == tmp_path
    monkeypatch.setattr(places, "ENOUGH", 1 << 60)
    assert data_root() == temporary_root()
    monkeypatch.setattr(places, "MEMORY", temporary_root() / "nowhere")
    assert data_root() == temporary_root()
