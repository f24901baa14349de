"""``examples/third_party_plugin`` as a distribution: installed, blocked, missing, and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.pages import blocks
from support.plugins import EXAMPLE, install_example
from support.server import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("third_party_plugin")

APP = ROOT / "examples" / "fastapi_notes" / "app.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed from its own pyproject.toml."""
    return install_example(tmp_path_factory.mktemp("site"))


def test_what_is_installed_is_all_it_needs(site: Path) -> None:
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    sources = {
        str(path.relative_to(EXAMPLE / "src"))
        for path in (EXAMPLE / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "acme_tenancy/py.typed" in sources
    assert sources <= files
    assert (site / "acme_tenancy-1.0.0.dist-info" / "entry_points.txt").read_text().split() == [
        *("[tenancy]", "acme-tenancy", "=", "acme_tenancy._plugin"),
    ]


@pytest.mark.timeout(600)
def test_its_own_tests_pass_where_there_is_nothing_but_them(site: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout)}
    # Tests of the suite that do not apply to a resolver of keys are skipped, and say so.
    assert counts["passed"] > 60
    assert counts["skipped"] < 12


def test_its_readme_names_every_setting_and_no_other(site: Path) -> None:
    code = """
from acme_tenancy._plugin import tenancy_cache_backends, tenancy_resolvers
for provider in [*tenancy_cache_backends(), *tenancy_resolvers()]:
    for name in provider.section.model.model_fields:
        print(f"TENANCY_{provider.section.name}_{name}".upper())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    readme = (EXAMPLE / "README.md").read_text()
    told = re.findall(r"^\| `(TENANCY_\w+)` \|", readme, re.MULTILINE)
    assert sorted(told) == sorted(done.stdout.split())


def test_the_page_that_goes_through_it_shows_its_files_to_the_letter() -> None:
    page = ROOT / "docs" / "how-to" / "write-a-plugin.md"
    shown = {
        block.title: block.text.rstrip()
        for block in blocks(page)
        if block.title is not None and block.title.startswith("src/")
    }
    assert shown == {
        str(path.relative_to(EXAMPLE)): path.read_text().rstrip()
        for path in (EXAMPLE / "src").rglob("*.py")
    }


# -- in an application -----------------------------------------------------------------------------


def environment(folder: Path, site: Path | None, **settings: str) -> dict[str, str]:
    return {
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/control.db",
        "TENANCY_RESOLUTION_STRATEGY": "api-key",
        "TENANCY_STRICT_ENV": "true",
        **({} if site is None else {"PYTHONPATH": str(site)}),
        **settings,
    }


def start(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Import the application as a server would; return what it printed."""
    return subprocess.run(
        [sys.executable, "-c", "import app; print(app.tenancy)"],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(
            [str(APP.parent), variables.get("PYTHONPATH", "")]
        )},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_where_it_is_not_installed_its_name_is_told_to_be_unknown(tmp_path: Path) -> None:
    done = start(tmp_path, environment(tmp_path, None))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "tenancy_core.errors.UnknownProviderError: TENANCY_RESOLUTION_STRATEGY asks for the "
        "resolver 'api-key', which nothing that is installed offers. There is 'header', "
    )


def test_where_it_is_blocked_it_is_as_if_it_were_not_installed(tmp_path: Path, site: Path) -> None:
    variables = environment(tmp_path, site, TENANCY_PLUGINS_BLOCKED="acme_tenancy")
    done = start(tmp_path, variables)
    assert "asks for the resolver 'api-key', which nothing" in done.stderr.splitlines()[-1]
    pepper = {"TENANCY_ACME_APIKEY_PEPPER": "a-pepper-that-only-this-test-has-5d20"}
    allowed = start(tmp_path, environment(tmp_path, site, **pepper))
    assert (allowed.returncode, allowed.stdout) == (0, "<Tenancy database on sqlite, closed>\n")


def test_its_misspelt_variable_is_found_by_its_own_section(tmp_path: Path, site: Path) -> None:
    done = start(tmp_path, environment(tmp_path, site, TENANCY_ACME_APIKEY_HEADR="X-Notes-Key"))
    assert done.stderr.splitlines()[-1] == (
        "tenancy_core.errors.ConfigurationError: TENANCY_ACME_APIKEY_HEADR is set and read by "
        "nothing. Did you mean TENANCY_ACME_APIKEY_HEADER?"
    )


def test_its_cache_without_its_setting_says_which(tmp_path: Path, site: Path) -> None:
    settings = {
        "TENANCY_ACME_APIKEY_PEPPER": "a-pepper-that-only-this-test-has-5d20",
        "TENANCY_CACHE_ENABLED": "true",
        "TENANCY_CACHE_BACKEND": "acme-file",
    }
    done = start(tmp_path, environment(tmp_path, site, **settings))
    assert done.stderr.splitlines()[-1] == (
        "tenancy_core.errors.ConfigurationError: TENANCY_ACME_CACHE_PATH is missing. Set the "
        "variable, or pass the argument path."
    )
