"""Installed, the package is found by tenancy and selected by settings, with no code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from acme_tenancy import __main__ as tool
from acme_tenancy.cache import FileCacheBackend
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig
from tenancy_core.testing import make_connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PEPPER = "the pepper of these tests, and of nothing else"
KEY = "k1.a-secret-of-acme"
DIGEST = "a" * 64

Settings = dict[str, str]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio: the tenant store is on SQLAlchemy, which knows no other."""
    return "asyncio"


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Settings], TenancyConfig]:
    """Give a function that sets variables, and reads them as a service does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pepper").write_text(f"{PEPPER}\n")

    def read(more: Settings) -> TenancyConfig:
        variables = {
            "TENANCY_DATABASE_URL": "sqlite+aiosqlite:///./data/control.db",
            "TENANCY_STRICT_ENV": "true",
            "TENANCY_RESOLUTION_STRATEGY": "api-key",
            "TENANCY_ACME_APIKEY_PEPPER_FILE": str(tmp_path / "pepper"),
            **more,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return TenancyConfig.from_env()

    return read


def test_the_distribution_has_one_entry_point() -> None:
    ours = [entry for entry in entry_points(group="tenancy") if entry.name == "acme-tenancy"]
    assert {entry.value for entry in ours} == {"acme_tenancy._plugin"}


def test_a_start_that_selects_nothing_of_it_imports_no_product() -> None:
    code = (
        "import sys, acme_tenancy._plugin; "
        "print({'sqlite3', 'acme_tenancy.cache', 'acme_tenancy.resolver'} & {*sys.modules})"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.anyio
async def test_both_are_selected_by_settings(
    settings: Callable[[Settings], TenancyConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["acme_tenancy", "acme"])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    settings({})
    tool.main()
    config = settings(
        {
            "TENANCY_ACME_APIKEY_KEYS": capsys.readouterr().out,
            "TENANCY_CACHE_ENABLED": "true",
            "TENANCY_CACHE_BACKEND": "acme-file",
            "TENANCY_ACME_CACHE_PATH": str(tmp_path / "cache.db"),
        }
    )
    async with Tenancy(config) as tenancy:
        claim = await tenancy.resolver.resolve(make_connection(headers={"X-API-Key": KEY}))
        assert claim is not None
        assert (claim.identifier, claim.verified) == ("acme", True)
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"), FileCacheBackend(tmp_path / "cache.db") as cache:
            kept = await cache.run(
                lambda connection: connection.execute("SELECT key FROM entries").fetchall()
            )
    assert [key.endswith(b":acme") for (key,) in kept] == [True]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TENANCY_ACME_APIKEY_KEYS": "acme=k1"}, "TENANCY_ACME_APIKEY_KEYS is not valid: "),
        (
            {"TENANCY_ACME_APIKEY_KEYS": json.dumps({"k1": {"tenant": "ACME", "digest": DIGEST}})},
            "TENANCY_ACME_APIKEY_KEYS, k1, tenant is not valid: ",
        ),
        (
            {"TENANCY_ACME_APIKEY_KEYS": json.dumps({"k1": {"tenant": "acme", "digest": KEY}})},
            "TENANCY_ACME_APIKEY_KEYS, k1, digest is not valid: ",
        ),
        ({"TENANCY_ACME_APIKEY_HEADER": "X Key:"}, "TENANCY_ACME_APIKEY_HEADER is not valid: "),
        (
            {"TENANCY_ACME_APIKEY_HEADR": "X-Key"},
            (
                "TENANCY_ACME_APIKEY_HEADR is set and read by nothing. "
                "Did you mean TENANCY_ACME_APIKEY_HEADER?"
            ),
        ),
        (
            {"TENANCY_ACME_APIKEY_PEPPER": PEPPER},
            "TENANCY_ACME_APIKEY_PEPPER and TENANCY_ACME_APIKEY_PEPPER_FILE are both set.",
        ),
        (
            {"TENANCY_CACHE_ENABLED": "true", "TENANCY_CACHE_BACKEND": "acme-file"},
            "TENANCY_ACME_CACHE_PATH is missing.",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_not_repeated(
    settings: Callable[[Settings], TenancyConfig], variables: Settings, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(settings(variables))
    assert str(caught.value).startswith(said)
    assert "secret" not in str(caught.value)
    assert PEPPER not in str(caught.value)
