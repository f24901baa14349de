"""What holds for the repository as a whole, whatever a package does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
SCRIPTS = ("dev", ".ci/run")

# Hosts and paths of package registries; in pieces, so that this file is none that names one.
REGISTRY = re.compile(
    "|".join(
        left + right
        for left, right in (
            (r"files\.python", "hosted"),
            ("/sim", "ple/"),
            ("arti", "factory"),
            ("registry", r"\.npm"),
            ("deb", r"\.debian"),
        )
    ).encode()
)


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def git(*arguments: str) -> str:
    # A checkout that belongs to somebody else (CI as another user) is read all the same.
    command = [shutil.which("git") or "git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def run_dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "dev", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def project(package: Path) -> dict[str, Any]:
    return read(package / "pyproject.toml")["project"]


def requirements(package: Path) -> list[Requirement]:
    stated = project(package)
    extras = stated.get("optional-dependencies", {}).values()
    return [Requirement(line) for group in [stated["dependencies"], *extras] for line in group]


def locked() -> dict[str, list[str]]:
    """Name → versions: the lock may hold two, for different Pythons."""
    found: dict[str, list[str]] = {}
    lock = (ROOT / "requirements" / "dev.lock").read_text()
    for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


# --- packages -----------------------------------------------------------------------------------


def test_all_packages_have_one_version() -> None:
    assert PACKAGES
    versions = {project(package)["name"]: project(package)["version"] for package in PACKAGES}
    assert len(set(versions.values())) == 1, versions


def test_packages_pin_one_another_exactly() -> None:
    versions = {project(package)["name"]: project(package)["version"] for package in PACKAGES}
    pins = {
        (package.name, requirement.name): str(requirement.specifier)
        for package in PACKAGES
        for requirement in requirements(package)
        if requirement.name in versions
    }
    assert pins == {(who, whom): f"=={versions[whom]}" for who, whom in pins}


def test_every_dependency_has_a_floor() -> None:
    """What `nox -s lowest` tests."""
    ours = {package.name for package in PACKAGES}
    without = [
        f"{package.name}: {requirement}"
        for package in PACKAGES
        for requirement in requirements(package)
        if requirement.name not in ours
        and [part.operator for part in requirement.specifier].count(">=") != 1
    ]
    assert without == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_is_complete(package: Path) -> None:
    module = package.name.replace("-", "_")
    stated = project(package)
    assert stated["name"] == package.name
    assert stated["license"] == "MIT"
    assert stated["requires-python"] == ">=3.11"
    assert (package / stated["readme"]).read_text().strip()
    assert (package / "src" / module / "__init__.py").is_file()
    assert (package / "src" / module / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_is_known_to_the_tools(package: Path) -> None:
    module = package.name.replace("-", "_")
    tools = read(ROOT / "pyproject.toml")["tool"]
    sections = {section["name"]: section["path"] for section in tools["towncrier"]["section"]}
    assert (ROOT / "changelog.d" / sections[package.name]).is_dir()
    assert module in tools["importlinter"]["root_packages"]
    assert module in tools["coverage"]["run"]["source_pkgs"]
    assert f'"{package.name}"' in (ROOT / "noxfile.py").read_text()


def test_pyright_looks_at_folders_that_exist() -> None:
    """It says "0 errors" about a folder or a pattern that it does not find."""
    places = read(ROOT / "pyproject.toml")["tool"]["pyright"]["include"]
    assert "packages" in places
    assert [place for place in places if not (ROOT / place).is_dir()] == []


def test_every_fragment_has_a_known_kind_and_a_sentence() -> None:
    tools = read(ROOT / "pyproject.toml")["tool"]["towncrier"]
    places = {section["path"] for section in tools["section"]}
    kinds = {kind["directory"] for kind in tools["type"]}
    for fragment in (ROOT / "changelog.d").rglob("*.md"):
        issue, kind, *rest = fragment.name.split(".")
        assert fragment.parent.name in places, fragment
        assert issue.isdigit(), fragment
        assert kind in kinds, fragment
        assert rest in (["md"], ["1", "md"], ["2", "md"]), fragment
        assert fragment.read_text().strip(), fragment


# --- the lock -----------------------------------------------------------------------------------


def test_the_lock_has_a_hash_for_everything() -> None:
    text = (ROOT / "requirements" / "dev.lock").read_text()
    entries = [entry for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if "==" in entry]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("compiled", ["coverage", "greenlet", "pydantic-core", "pyyaml"])
def test_the_lock_is_for_every_platform(compiled: str) -> None:
    """Not so when it was made from a mirror that holds only one machine's wheels."""
    text = (ROOT / "requirements" / "dev.lock").read_text()
    entry = re.search(rf"^{compiled}==(?:.*\n)(?:    .*\n)*", text, re.MULTILINE)
    assert entry is not None
    assert entry[0].count("--hash=sha256:") > 20


def test_the_lock_covers_what_is_stated() -> None:
    """Red after a change to a pyproject.toml: ./dev lock."""
    groups = read(ROOT / "pyproject.toml")["dependency-groups"].values()
    stated = [Requirement(line) for group in groups for line in group if isinstance(line, str)]
    stated += [requirement for package in PACKAGES for requirement in requirements(package)]
    ours = {package.name for package in PACKAGES}
    pins = locked()
    missing = [
        str(requirement)
        for requirement in stated
        if requirement.name not in ours
        and not any(map(requirement.specifier.contains, pins.get(_name(requirement), [])))
    ]
    assert missing == []


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


# --- files --------------------------------------------------------------------------------------


def test_no_file_names_a_package_registry() -> None:
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert ROOT / "requirements" / "dev.lock" in files
    hits = [path for path in files if REGISTRY.search(path.read_bytes())]
    assert hits == []


def test_the_search_for_registries_finds_one() -> None:
    assert REGISTRY.search(b"https://index.example" + b"/sim" + b"ple/six")


def test_uv_lock_is_not_tracked() -> None:
    assert git("ls-files", "uv.lock", "packages/*/uv.lock") == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_executed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    tracked = git("ls-files", "--stage", script)
    assert tracked == "" or tracked.startswith("100755 ")


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_dev_is_posix_sh(shell: str) -> None:
    executable = shutil.which(shell)
    if executable is None:
        pytest.skip(f"this machine has no {shell}; sh is on every one")
    done = subprocess.run([executable, "-n", ROOT / "dev"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ci_run_is_bash() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-n", ROOT / ".ci" / "run"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- ./dev --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("tets",), ("--verbose",)])
def test_dev_explains_itself_when_misused(arguments: tuple[str, ...]) -> None:
    done = run_dev(*arguments)
    assert done.returncode == 2
    assert "usage: ./dev COMMAND" in done.stderr
    assert done.stdout == ""
    assert all(argument in done.stderr for argument in arguments)


@pytest.mark.parametrize("argument", ["help", "-h", "--help"])
def test_dev_help(argument: str) -> None:
    done = run_dev(argument)
    assert done.returncode == 0
    for command in ("demo", "test", "lint", "bench", "docs", "matrix", "lock", "help"):
        assert f"\n  {command} " in done.stdout


def test_dev_says_which_python_is_no_use() -> None:
    done = run_dev("test", PYTHON="/nowhere/python3")
    assert done.returncode == 1
    assert "PYTHON=/nowhere/python3 is no Python >= 3.11" in done.stderr


def test_dev_says_when_there_is_no_python(tmp_path: Path) -> None:
    for tool in ("sh", "dirname", "cksum", "head", "cat"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    copy = tmp_path / "checkout"
    copy.mkdir()
    shutil.copy(ROOT / "dev", copy)
    done = subprocess.run(
        [copy / "dev", "test"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Python >= 3.11 found" in done.stderr
