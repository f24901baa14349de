"""What is checked, and on what. ``./dev`` calls this; ``.venv/bin/nox --list`` shows the rest.

Sessions that only look at the code run in ``.venv``, which ``./dev`` makes. Those that need another
Python or other versions make environments of their own under ``.nox``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from functools import cache
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
DATABASES = {"sqlite": "tenancy-sqlite", "postgres": "tenancy-postgres"}
FRAMEWORKS = {"fastapi": "tenancy-fastapi"}
PACKAGES = ("tenancy-core", *DATABASES.values(), *FRAMEWORKS.values())

ROOT = Path(__file__).parent
LOCK = ROOT / "requirements" / "dev.lock"
BIN = Path(sys.executable).parent
TYPED = ("packages/*/src", "examples", "noxfile.py", "tests/typing")
BENCHMARKS = (
    "tests/bench/middleware.py",
    "tests/bench/sessions.py",
    "tests/bench/provisioning.py",
    "tests/bench/databases.py",
    "tests/bench/fairness.py",
    "tests/bench/invalidation.py",
)
SCRIPTS = ("dev", ".ci/run")
WORKERS = ("-n", "2", "--dist", "loadgroup")

nox.needs_version = ">=2026.4"
nox.options.sessions = ["lint", "imports", "typing", "matrix"]
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")


# --- interpreters -------------------------------------------------------------------------------


@cache
def interpreter(version: str) -> str | None:
    """Find a Python that really runs; never download one.

    A name on PATH is only a candidate: a shim of pyenv answers for Pythons that it then refuses to
    start.
    """
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    with contextlib.suppress(OSError):  # somebody else's home
        candidates += sorted(map(str, pyenv.glob(f"{version}.*/bin/python3")), reverse=True)
    for candidate in candidates:
        if candidate and (found := _version_of(candidate)) and found[0] == version:
            return found[1]
    uv = subprocess.run(  # noqa: S603 - our own uv
        [shutil.which("uv") or BIN / "uv", "python", "find", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        check=False,
    )
    path = uv.stdout.strip()
    found = _version_of(path) if path else None
    return found[1] if found and found[0] == version else None


def _version_of(executable: str) -> tuple[str, str] | None:
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys._base_executable)"
    try:
        done = subprocess.run(  # noqa: S603 - a candidate is run to see whether it is one
            [executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version, _, path = done.stdout.strip().partition(" ")
    return version, path


# --- environments -------------------------------------------------------------------------------


def install_locked(session: nox.Session, packages: tuple[str, ...] = PACKAGES) -> None:
    """Install what ``requirements/dev.lock`` pins, checked by hash, and ``packages`` editable."""
    session.run_install(*("uv", "pip", "sync", "--quiet", "--require-hashes", LOCK), external=True)
    install_editable(session, packages)


def install_editable(session: nox.Session, packages: tuple[str, ...] = PACKAGES) -> None:
    """Install packages of this repository without what they depend on."""
    editable = [word for name in packages for word in ("--editable", f"packages/{name}")]
    session.install("--quiet", "--no-deps", "--no-build-isolation", *editable)


def versions_in(lock: Path) -> dict[str, str]:
    """Read name and version of everything that a lock file pins."""
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ \n]+)", lock.read_text(), re.MULTILINE))


def requirements_of(pyproject: Path) -> list[Requirement]:
    """Read what a package says it depends on, extras included."""
    project = nox.project.load_toml(pyproject)["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(line) for group in (project["dependencies"], *extras) for line in group]


def run_all(session: nox.Session, *commands: tuple[str | Path, ...]) -> None:
    """Run every command, so that one look shows all that is wrong, then fail if one failed."""
    failed = []
    for command in commands:
        try:
            session.run(*command)
        except nox.command.CommandFailed:
            failed.append(Path(command[0]).name)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


# --- the code as it stands ----------------------------------------------------------------------


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style and mistakes: ruff and shellcheck. ``-- --fix`` repairs what ruff can."""
    fix = "--fix" in session.posargs
    run_all(
        session,
        (BIN / "ruff", "check", *(["--fix"] if fix else [])),
        (BIN / "ruff", "format", *([] if fix else ["--check"])),
        (BIN / "shellcheck", *SCRIPTS),
    )


@nox.session(venv_backend="none")
def imports(session: nox.Session) -> None:
    """Who may import whom: the contracts in pyproject.toml."""
    session.run(BIN / "lint-imports", "--no-cache")


@nox.session(venv_backend="none")
def typing(session: nox.Session) -> None:
    """Mypy and pyright, both strict."""
    paths = [str(path.relative_to(ROOT)) for glob in TYPED for path in ROOT.glob(glob)]
    # Pyright and its Node.js come from the lock: no newer one is to be looked for.
    session.env["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"
    run_all(session, (BIN / "mypy", *paths), (BIN / "pyright", "--warnings"))


# --- tests --------------------------------------------------------------------------------------


def _tests(session: nox.Session) -> None:
    """Run the tests on this Python, in an environment of its own."""
    install_locked(session)
    session.run("python", "-m", "pytest", *WORKERS, *session.posargs)


for _version in PYTHONS:
    # By its path: nox, too, can take a shim for the Python that it stands for.
    nox.session(name=f"tests-{_version}", python=interpreter(_version) or _version)(_tests)


@nox.session(venv_backend="none")
def matrix(session: nox.Session) -> None:
    """Run the tests on each supported Python of this machine (``--others``: not .venv's)."""
    posargs = [argument for argument in session.posargs if argument != "--others"]
    own = "{}.{}".format(*sys.version_info) if "--others" in session.posargs else None
    for version in PYTHONS:
        path = interpreter(version)
        note = "missing here" if path is None else "left out" if version == own else f"runs: {path}"
        session.log(f"Python {version}: {note}")
        if path is not None and version != own:
            session.notify(f"tests-{version}", posargs)


@nox.session(python=interpreter(PYTHONS[0]) or PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest versions that the packages say they work with.

    The test tools stay as locked. Where one of them needs more of a shared library than we do, the
    floor cannot be reached, and the session says so.
    """
    stated = {
        requirement.name: requirement
        for name in PACKAGES
        for requirement in requirements_of(ROOT / "packages" / name / "pyproject.toml")
        if requirement.name not in PACKAGES
    }
    tools = [
        requirement.name
        for line in nox.project.dependency_groups(nox.project.load_toml(), "test")
        if (requirement := Requirement(line)).name not in stated
    ]
    locked = versions_in(LOCK)
    folder = Path(tempfile.mkdtemp(dir=session.cache_dir))
    (folder / "tools.in").write_text("".join(f"{tool}=={locked[tool]}\n" for tool in tools))
    compiled = folder / "lowest.txt"
    session.run_install(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--resolution", "lowest-direct"),
        *("--all-extras", "--output-file", compiled, folder / "tools.in"),
        *(word for name in PACKAGES for word in ("--no-emit-package", name)),
        *(f"packages/{name}/pyproject.toml" for name in PACKAGES),
        external=True,
    )
    session.run_install("uv", "pip", "sync", "--quiet", compiled, external=True)
    session.install("--quiet", f"uv-build=={locked['uv-build']}")
    install_editable(session)
    chosen = versions_in(compiled)
    for name, requirement in sorted(stated.items()):
        floor = next(part.version for part in requirement.specifier if part.operator == ">=")
        version = chosen.get(name)
        if version is None:
            session.log(f"{name} >= {floor}: not for this platform")
        elif Version(version) == Version(floor):
            session.log(f"{name} >= {floor}: tested")
        else:
            session.log(f"{name} >= {floor}: tested with {version}, for the test tools need that")
    session.run("python", "-m", "pytest", *WORKERS, *session.posargs)


@nox.session(venv_backend="none")
def storm(session: nox.Session) -> None:
    """Run the tests marked ``storm`` at their full figures."""
    full = {"TENANCY_TEST_FULL": "1"}
    session.run(
        *(sys.executable, "-m", "pytest", "-m", "storm", "--timeout", "1800"),
        *session.posargs,
        env=full,
    )


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Run the tests and say which lines and branches they leave out."""
    tool = (sys.executable, "-m", "coverage")
    session.run(*tool, "erase")
    session.run(*tool, "run", "-m", "pytest", *WORKERS, *session.posargs)
    session.run(*tool, "combine", "--quiet")
    session.run(*tool, "report")


# --- what is published --------------------------------------------------------------------------

PYPROJECT = "pyproject.toml"
THIRD_PARTY = ROOT / "examples" / "third_party_plugin"
THIRD_PARTY_NAME = "acme-tenancy"
APPLICATION = "examples/fastapi_notes/app.py"
CONTRACT = "tests/contract/test_third_party_plugin.py"

SMOKE = """
import importlib.metadata, importlib.resources, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name.replace("-", "_"))
    assert "site-packages" in module.__file__, module.__file__
    assert importlib.resources.files(module).joinpath("py.typed").is_file(), name
    for point in importlib.metadata.distribution(name).entry_points:
        point.load()
    print(name, importlib.metadata.version(name), "imports")
"""


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every package, install it as its users do, and import it."""
    install_wheels(session, build_wheels(session))
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("python", "-I", "-c", SMOKE, *PACKAGES)


@nox.session
def contract(session: nox.Session) -> None:
    """Build every package and a third party's plugin, and run the plugin with nothing else there.

    What the plugin asks for comes as the wheels say, in the locked versions. Its own tests run with
    its own configuration; then the example application does, in two processes.
    """
    tests = nox.project.dependency_groups(nox.project.load_toml(THIRD_PARTY / PYPROJECT), "test")
    tools = nox.project.dependency_groups(nox.project.load_toml(), "test")
    locked = ("--constraint", str(LOCK), *tests, *tools)
    install_wheels(session, build_wheels(session, THIRD_PARTY), *locked)
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        session.run("python", "-I", "-c", SMOKE, *PACKAGES, THIRD_PARTY_NAME)
        plugin, service = Path(folder, "plugin"), Path(folder, "service")
        copy(THIRD_PARTY, plugin, PYPROJECT, "tests")
        copy(ROOT, service, PYPROJECT, "tests/conftest.py", "tests/support", CONTRACT, APPLICATION)
        alone = {"PYTHONPATH": None}
        for place, path in ((plugin, "tests"), (service, CONTRACT)):
            session.chdir(place)
            session.run(
                "python", "-m", "pytest", "-W", "error", "--timeout", "120", path, env=alone
            )


def build_wheels(session: nox.Session, *others: Path) -> list[Path]:
    """Build every package, and the projects in other folders, and look into the wheels."""
    dist = Path(tempfile.mkdtemp(dir=session.cache_dir))
    for what in (("--all-packages",), *((str(folder),) for folder in others)):
        session.run_install(*("uv", "build", "--quiet", "--out-dir", dist), *what, external=True)
    built = sorted(dist.glob("*.whl"))
    if len(built) != len(PACKAGES) + len(others):
        session.error(f"{len(PACKAGES) + len(others)} packages, but {len(built)} wheels: {built}")
    for wheel in built:
        check_wheel(session, wheel)
    return built


def install_wheels(session: nox.Session, wheels: list[Path], *more: str) -> None:
    """Install wheels, with what they depend on and ``more``, into an environment without others."""
    session.run_install("uv", "pip", "sync", "--quiet", os.devnull, external=True)
    session.install("--quiet", *map(str, wheels), *more)
    session.run("uv", "pip", "check", external=True)


def copy(source: Path, target: Path, *names: str) -> None:
    """Copy files and folders to the same places under another folder."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy(source / name, target / name)


def check_wheel(session: nox.Session, path: Path) -> None:
    """Look into a wheel for what the package must and must not carry."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = Parser().parsestr(
            wheel.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        )
    if not any(name.endswith("/py.typed") for name in names):
        session.error(f"{path.name} has no py.typed")
    if metadata["License-Expression"] != "MIT":
        session.error(f"{path.name} does not say that its licence is MIT")
    if not metadata.get_payload():
        session.error(f"{path.name} has no readme")
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {path.name.split("-")[0]}:
        session.error(f"{path.name} installs more than its own package: {top}")


# --- measurements and documentation -------------------------------------------------------------


@nox.session(venv_backend="none")
def instructions(session: nox.Session) -> None:
    """Count the instructions of the hot path: the script runs itself under valgrind."""
    session.run(sys.executable, "tests/bench/count_instructions.py", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run the benchmarks, one after the other."""
    for script in BENCHMARKS:
        session.run(sys.executable, script, *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link is an error. ``-- serve`` shows it while writing."""
    session.env["NO_MKDOCS_2_WARNING"] = "1"  # news about a later version, at every start
    # Not --quiet: it hides the warnings from --strict as well.
    session.run(BIN / "mkdocs", *(session.posargs or ["build", "--strict"]))
