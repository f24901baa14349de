"""The errors that a newcomer meets: what is wrong, what there is, and what to do, word for word."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import tenancy_core
import tenancy_fastapi
import tenancy_postgres
import tenancy_sqlite
from tenancy_core import NoCurrentTenant, Tenancy, TenancyConfig, TenancyMiddleware
from tenancy_core import require_tenant as whose
from tenancy_core.errors import (
    ConfigurationError,
    InvalidTransition,
    TenantExists,
    TenantNotFound,
    UnknownProviderError,
    UnsupportedCombinationError,
)
from tenancy_fastapi import install

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

URL = "sqlite+aiosqlite:///./data/control.db"
NOT_OPEN = (
    "This Tenancy is not open. In an application run its lifespan (a test client does so in a "
    "`with` block); elsewhere write `async with tenancy:`."
)


def refusal(error: type[Exception] = ConfigurationError, **settings: Any) -> str:
    """Return the sentence with which a configuration is refused, and check the error's class."""
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig(**{"database_url": URL, **settings}))
    assert type(caught.value) is error
    return str(caught.value)


# -- what is not installed ---------------------------------------------------------------------


def environment_without(folder: Path, *left_out: str) -> dict[str, str]:
    """Return variables for ``python -S`` that see all packages of this environment save some."""
    site = folder / "site-packages"
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(left_out):
            (site / path.name).symlink_to(path)
    # Editable installs are found by .pth files, which -S leaves out as well.
    sources = [
        str(Path(module.__file__ or "").parents[1])
        for module in (tenancy_core, tenancy_sqlite, tenancy_postgres, tenancy_fastapi)
        if not module.__name__.startswith(left_out)
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sources])}


def run_without(folder: Path, *left_out: str, **settings: str) -> str:
    """Return the last line that a service without some packages prints when it is started."""
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c"),
            "from tenancy_core import Tenancy, TenancyConfig; Tenancy(TenancyConfig.from_env())",
        ],
        env={**environment_without(folder, *left_out), **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_the_environment_without_some_packages_is_complete_otherwise(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c"),
            (
                "from tenancy_core import Tenancy, TenancyConfig; "
                "print(Tenancy(TenancyConfig.from_env()))"
            ),
        ],
        env={**environment_without(tmp_path, "nothing-is-left-out"), "TENANCY_DATABASE_URL": URL},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "<Tenancy database on sqlite, closed>\n"


def test_no_driver_is_installed(tmp_path: Path) -> None:
    assert run_without(tmp_path, "aiosqlite", TENANCY_DATABASE_URL=URL) == (
        "tenancy_core.errors.ConfigurationError: TENANCY_DATABASE_URL is a sqlite database and "
        "needs the package 'aiosqlite', which is not installed. "
        "Run: pip install --upgrade tenancy-sqlite"
    )


def test_no_database_package_is_installed(tmp_path: Path) -> None:
    # Neither it nor the driver that it brings.
    left_out = ("tenancy_sqlite", "_tenancy_sqlite", "aiosqlite")
    assert run_without(tmp_path, *left_out, TENANCY_DATABASE_URL=URL) == (
        "tenancy_core.errors.UnknownProviderError: TENANCY_DATABASE_URL is a sqlite database, and "
        "no isolation strategy for it is installed. Run: pip install tenancy-sqlite"
    )


def test_the_package_of_another_database_is_not_installed() -> None:
    url = "mysql+aiomysql://app@db/app"
    assert refusal(UnknownProviderError, database_url=url) == (
        "TENANCY_DATABASE_URL is a mysql database, and no isolation strategy for it is "
        "installed. Run: pip install tenancy-mysql"
    )


def test_the_package_of_postgresql_is_not_installed(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://app@db/app"
    left_out = ("tenancy_postgres", "_tenancy_postgres", "asyncpg")
    assert run_without(tmp_path, *left_out, TENANCY_DATABASE_URL=url) == (
        "tenancy_core.errors.UnknownProviderError: TENANCY_DATABASE_URL is a postgresql database, "
        "and no isolation strategy for it is installed. Run: pip install tenancy-postgres"
    )


def test_the_driver_of_postgresql_is_not_installed(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://app@db/app"
    assert run_without(tmp_path, "asyncpg", TENANCY_DATABASE_URL=url) == (
        "tenancy_core.errors.ConfigurationError: TENANCY_DATABASE_URL is a postgresql database and "
        "needs the package 'asyncpg', which is not installed. "
        "Run: pip install --upgrade tenancy-postgres"
    )


def test_the_driver_of_the_control_database_is_not_installed(tmp_path: Path) -> None:
    said = run_without(
        tmp_path,
        "asyncpg",
        TENANCY_DATABASE_URL=URL,
        TENANCY_CONTROL_DATABASE_URL="postgresql+asyncpg://control@db/control",
    )
    assert said == (
        "tenancy_core.errors.ConfigurationError: TENANCY_CONTROL_DATABASE_URL is a postgresql "
        "database and needs the package 'asyncpg', which is not installed. "
        "Run: pip install --upgrade tenancy-postgres"
    )


# -- names that nothing offers -----------------------------------------------------------------


def test_a_misspelt_resolver() -> None:
    assert refusal(UnknownProviderError, resolution_strategy="heder") == (
        "TENANCY_RESOLUTION_STRATEGY asks for the resolver 'heder', which nothing that is "
        "installed offers. There is 'header', 'jwt', 'path', 'subdomain'. Did you mean 'header'?"
    )


def test_a_resolver_that_nobody_knows() -> None:
    assert refusal(UnknownProviderError, resolution_strategy="header,by-moon") == (
        "TENANCY_RESOLUTION_STRATEGY asks for the resolver 'by-moon', which nothing that is "
        "installed offers. There is 'header', 'jwt', 'path', 'subdomain'."
    )


def test_custom_without_an_object() -> None:
    assert refusal(resolution_strategy="custom") == (
        "TENANCY_RESOLUTION_STRATEGY asks for the resolver 'custom', and there is none: pass an "
        "object, Tenancy(config, resolver=…), or install a package that registers one. There is "
        "'header', 'jwt', 'path', 'subdomain'."
    )


def test_a_misspelt_isolation_strategy() -> None:
    assert refusal(UnknownProviderError, isolation_strategy="databse") == (
        "TENANCY_ISOLATION_STRATEGY asks for 'databse', which nothing that is installed offers. "
        "On sqlite there is 'database'. Did you mean 'database'?"
    )


@pytest.mark.parametrize(
    ("strategy", "there", "packages"),
    [
        ("rls", "'postgresql'", "tenancy-postgres"),
        ("hybrid", "'postgresql'", "tenancy-postgres"),
        ("schema", "'mysql', 'postgresql'", "tenancy-mysql or tenancy-postgres"),
    ],
)
def test_a_strategy_that_this_database_does_not_have(
    strategy: str, there: str, packages: str
) -> None:
    assert refusal(UnsupportedCombinationError, isolation_strategy=strategy) == (
        f"TENANCY_ISOLATION_STRATEGY asks for '{strategy}', which sqlite does not have. On sqlite "
        "there is 'database': set TENANCY_ISOLATION_STRATEGY=database, or use another database "
        f"('{strategy}' is there for {there}: pip install {packages})."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"rate_limiter": "redis"},
            (
                "TENANCY_RATE_LIMITER asks for the rate limiter 'redis', which nothing that is "
                "installed offers. There is 'memory'. It comes with: pip install tenancy-redis"
            ),
        ),
        (
            {"rate_limiter": "memroy"},
            (
                "TENANCY_RATE_LIMITER asks for the rate limiter 'memroy', which nothing that is "
                "installed offers. There is 'memory'. Did you mean 'memory'?"
            ),
        ),
        (
            {"cache_backend": "redis"},
            (
                "TENANCY_CACHE_BACKEND asks for the cache backend 'redis', which nothing that is "
                "installed offers. There is 'memory'. It comes with: pip install tenancy-redis"
            ),
        ),
        (
            {"cache_backend": "memcached"},
            (
                "TENANCY_CACHE_BACKEND asks for the cache backend 'memcached', which nothing that "
                "is installed offers. There is 'memory'."
            ),
        ),
    ],
)
def test_a_limiter_or_cache_that_nothing_offers(settings: dict[str, Any], said: str) -> None:
    switches = {"enable_rate_limiting": True, "cache_enabled": True}
    assert refusal(UnknownProviderError, **switches, **settings) == said


# -- settings ----------------------------------------------------------------------------------


def from_env() -> str:
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env()
    return str(caught.value)


MISSING = (
    "TENANCY_DATABASE_URL is missing. Set the variable (for instance "
    "sqlite+aiosqlite:///./data/control.db), or pass the argument database_url."
)


def test_no_database_url() -> None:
    assert from_env() == MISSING
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig()
    assert str(caught.value) == MISSING


@pytest.mark.parametrize(
    "misspelt", ["TENANCY_DATABASE_URI", "TENANCY_DB_URL", "TENANCY_DATABSE_URL"]
)
def test_a_misspelt_database_url(misspelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(misspelt, URL)
    assert from_env() == (
        f"{MISSING}\n{misspelt} is set and is no setting of tenancy-core; did you mean "
        "TENANCY_DATABASE_URL?"
    )


def test_a_database_url_without_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    assert from_env() == f"{MISSING}\nDATABASE_URL is set, and tenancy reads TENANCY_DATABASE_URL."
    monkeypatch.setenv("TENANCY_DATABASE_URL", "x")
    assert "\n" not in from_env()


def test_a_misspelt_variable_beside_another_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL)
    monkeypatch.setenv("TENANCY_RESOLUTION_STRATEGY", "subdomain")
    monkeypatch.setenv("TENANCY_DOMAIN_SUFIX", "example.com")
    assert from_env() == (
        "TENANCY_DOMAIN_SUFFIX is missing: the subdomain resolver needs the base domain.\n"
        "TENANCY_DOMAIN_SUFIX is set and is no setting of tenancy-core; did you mean "
        "TENANCY_DOMAIN_SUFFIX?"
    )


def test_a_misspelt_variable_is_not_blamed_where_the_right_one_is_set_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", "control.db")
    monkeypatch.setenv("TENANCY_DATABASE_URI", URL)
    assert "\n" not in from_env()
    monkeypatch.delenv("TENANCY_DATABASE_URL")
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env(database_url="control.db")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///./data/control.db", ("names no driver; tenancy uses async drivers: start it "
         "with sqlite+aiosqlite://.")),
        ("postgres://app@db/app", ("names no driver; tenancy uses async drivers: start it with "
         "postgresql+asyncpg://.")),
        ("postgresql+psycopg2://app@db/app", ("names the driver 'psycopg2'; tenancy uses async "
         "drivers: start it with postgresql+asyncpg://.")),
        ("mysql+pymysql://app@db/app", ("names the driver 'pymysql'; tenancy uses async drivers: "
         "start it with mysql+aiomysql://.")),
        ("mariadb://app@db/app", ("names no driver; tenancy uses async drivers: start it with "
         "mysql+aiomysql://.")),
        ("oracle://app@db/app", ("names the database 'oracle'; there are mysql+aiomysql, "
         "postgresql+asyncpg, sqlite+aiosqlite.")),
        ("control.db", ("is no database URL (for instance sqlite+aiosqlite:///./data/control.db, "
         "or postgresql+asyncpg://user:password@host/name).")),
        ("sqlite+aiosqlite://data/control.db", ("names a server, which SQLite does not have; three "
         "slashes stand before a relative path and four before an absolute one "
         "(sqlite+aiosqlite:///./data/control.db).")),
        ("postgresql+asyncpg://app:p@ss@db/app", ("is malformed; the form is "
         "driver://user:password@host:port/name, and special characters of the password are "
         "percent-encoded: @ is %40, : is %3A, / is %2F.")),
        (f"{URL}\n", "starts or ends with a space or a line break; remove it."),
        ("sqlite+aiosqlite://", ("names no file. Tenants need files that outlive a connection: "
         "write for instance sqlite+aiosqlite:///./data/control.db.")),
    ],
)  # fmt: skip
def test_a_database_url_that_cannot_work(url: str, said: str) -> None:
    assert refusal(database_url=url) == f"TENANCY_DATABASE_URL {said}"


# -- opening and installing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda tenancy: tenancy.tenants,
        lambda tenancy: tenancy.parts,
        lambda tenancy: tenancy.session(),
        lambda tenancy: tenancy.connection(),
    ],
    ids=["tenants", "parts", "session", "connection"],
)
def test_a_tenancy_that_is_not_open(
    make_config: Callable[..., TenancyConfig], use: Callable[[Tenancy], object]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        use(Tenancy(make_config()))
    assert str(caught.value) == NOT_OPEN


@pytest.mark.anyio
async def test_a_scope_and_a_request_of_a_tenancy_that_is_not_open(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async def app(*_: Any) -> None:
        raise AssertionError("nothing gets this far")

    tenancy = Tenancy(make_config())
    with pytest.raises(ConfigurationError) as caught:
        await tenancy.scope("acme").__aenter__()
    assert str(caught.value) == NOT_OPEN
    transport = httpx.ASGITransport(TenancyMiddleware(app, tenancy))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with pytest.raises(ConfigurationError) as caught:
            await http.get("/", headers={"X-Tenant-ID": "acme"})
    assert str(caught.value) == NOT_OPEN


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("setting", "argument", "reason"),
    [
        ("DATABASE_URL", "database_url", "NotADirectoryError"),
        ("CONTROL_DATABASE_URL", "control_database_url", "NotADirectoryError"),
        ("SQLITE_ROOT", "sections", "FileExistsError"),
    ],
)
async def test_a_folder_for_databases_that_cannot_be_made(
    make_config: Callable[..., TenancyConfig],
    tmp_path: Path,
    setting: str,
    argument: str,
    reason: str,
) -> None:
    taken = tmp_path / "a-file"
    taken.write_text("", encoding="utf-8")
    url = f"sqlite+aiosqlite:///{taken}/data/control.db"
    given = {"sqlite": {"root": taken}} if argument == "sections" else url
    with pytest.raises(ConfigurationError) as caught:
        await Tenancy(make_config(**{argument: given})).__aenter__()
    assert str(caught.value) == (
        f"The folder that TENANCY_{setting} names cannot be made ({reason}). Make it and let this "
        "user write to it, or name another."
    )


@pytest.mark.anyio
async def test_a_tenancy_that_is_opened_twice(tenancy: Tenancy) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await tenancy.__aenter__()
    assert str(caught.value) == "This Tenancy is open already; open it once per process."
    assert tenancy.is_open


def test_a_tenancy_that_is_installed_twice(make_config: Callable[..., TenancyConfig]) -> None:
    app, tenancy = FastAPI(), Tenancy(make_config())
    install(app, tenancy)
    with pytest.raises(ConfigurationError) as caught:
        install(app, tenancy)
    assert str(caught.value) == "tenancy is installed in this application already."


def test_a_tenancy_that_is_installed_after_the_start(
    make_config: Callable[..., TenancyConfig],
) -> None:
    app = FastAPI()
    with TestClient(app) as client:
        client.get("/")
    with pytest.raises(ConfigurationError) as caught:
        install(app, Tenancy(make_config()))
    assert str(caught.value) == (
        "install() comes before the application's first request: its middleware is built already, "
        "and later additions would be ignored."
    )


def test_code_that_needs_a_tenant_and_has_none() -> None:
    with pytest.raises(NoCurrentTenant) as caught:
        whose()
    assert str(caught.value) == (
        "No tenant is current here. In a request this means an excluded path or a thread that did "
        "not inherit the context; elsewhere open a scope: `async with tenancy.scope('acme'):`."
    )


# -- what is passed to Tenancy ---------------------------------------------------------------------


class _AsyncHook:
    async def __call__(self, connection: object, tenant: object, claim: object) -> bool:
        return True


async def _member(connection: object, tenant: object, claim: object) -> bool:
    return True


def _plain(connection: object, tenant: object, claim: object) -> bool:
    return True


async def _without_claim(connection: object, tenant: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("hook", "flaw"),
    [
        (_plain, "is a plain def; write async def, for it is awaited"),
        (1, "is a int, and no function"),
        (_without_claim, "cannot be called with (connection, tenant, claim)"),
    ],
)
def test_a_membership_hook_that_could_never_answer_is_refused_at_once(hook: Any, flaw: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(TenancyConfig(database_url=URL), membership=hook)
    assert str(caught.value) == (
        f"What is passed to Tenancy(membership=…) {flaw}. It is: "
        "async def is_member(connection, tenant, claim) -> bool."
    )


@pytest.mark.parametrize("hook", [_member, _AsyncHook(), partial(_member), lambda *_: _member])
def test_a_membership_hook_may_be_anything_that_can_be_awaited(hook: Any) -> None:
    assert Tenancy(TenancyConfig(database_url=URL), membership=hook).proves_membership


def test_a_url_is_no_configuration() -> None:
    with pytest.raises(ConfigurationError, match="takes a TenancyConfig, and this is a str"):
        Tenancy(URL)


@pytest.mark.anyio
async def test_an_id_that_went_through_json_is_told_apart_from_an_identifier(
    tenancy: Tenancy,
) -> None:
    acme = await tenancy.tenants.get("acme")
    hint = " That looks like an id: pass it as a UUID, UUID('…')."
    wanted = str(acme.id)
    for call in (
        tenancy.tenants.get(wanted),
        tenancy.find(wanted),
        tenancy.audit.verify(wanted),
    ):
        with pytest.raises(TenantNotFound) as caught:
            await call
        assert str(caught.value) == f"There is no tenant {wanted!r}.{hint}"
    for call in (tenancy.tenants.get("nobody"), tenancy.tenants.get(UUID(int=1))):
        with pytest.raises(TenantNotFound) as caught:
            await call
        assert "looks like" not in str(caught.value)


@pytest.mark.anyio
async def test_what_a_status_does_not_allow_comes_with_the_way_out(tenancy: Tenancy) -> None:
    async def refused(call: Awaitable[object]) -> str:
        with pytest.raises(InvalidTransition) as caught:
            await call
        return str(caught.value).rpartition(". ")[2]

    assert await refused(tenancy.tenants.erase("acme")) == "Call archive() first."
    await tenancy.tenants.archive("acme")
    assert await refused(tenancy.tenants.suspend("acme")) == "Call restore() first."
    with pytest.MonkeyPatch.context() as patch:

        async def fail(tenant: object) -> None:
            raise OSError("full")

        patch.setattr(tenancy.parts.isolation, "provision", fail)
        with pytest.raises(OSError, match="full"):
            await tenancy.tenants.create("half")
    way_out = "Call create() again, or reconcile(), first."
    assert await refused(tenancy.tenants.suspend("half")) == way_out
    with pytest.raises(TenantExists) as caught:
        await tenancy.tenants.create("half", name="Another")
    assert str(caught.value) == (
        "There is already a tenant 'half', which was never finished (failed). Call create() with "
        "the values that it was begun with, reconcile(), or erase()."
    )


@pytest.mark.anyio
async def test_the_checklist_is_of_an_open_tenancy(tenancy: Tenancy) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await Tenancy(tenancy.config).check()
    assert str(caught.value) == NOT_OPEN
