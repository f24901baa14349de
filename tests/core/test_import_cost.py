"""What an import loads, what it offers, and that all of it is there and described."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import tenancy_core
import tenancy_fastapi
import tenancy_postgres
import tenancy_sqlite

HEAVY = (
    "aiosqlite",
    "anyio",
    "asyncpg",
    "asyncio",
    "fastapi",
    "jwt",
    "pluggy",
    "pydantic",
    "pydantic_settings",
    "sqlalchemy",
    "sqlite3",
    "starlette",
    "tenancy_postgres",
    "tenancy_sqlite",
)
"""What a first import must not cost."""


def loaded(code: str) -> set[str]:
    """Return the top-level modules and our own that a fresh process has loaded after ``code``."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            (
                f"import sys; before = set(sys.modules)\n{code}\n"
                "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_importing_the_core_loads_nothing_heavy() -> None:
    assert loaded("import tenancy_core") & set(HEAVY) == set()


def test_importing_the_core_loads_no_plugin_and_no_room() -> None:
    ours = {name for name in loaded("import tenancy_core") if name.startswith("tenancy")}
    assert ours == {"tenancy_core"}


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("current_tenant", set()),
        ("Tenant", set()),
        ("Connection", set()),
        ("TenantNotFound", set()),
        ("TenancyConfig", {"pydantic", "pydantic_settings"}),
    ],
)
def test_a_name_loads_what_it_needs_and_no_more(name: str, heavy: set[str]) -> None:
    found = loaded(f"from tenancy_core import {name}")
    # Parts of the standard library are nobody's concern here.
    assert found & (set(HEAVY) - {"asyncio", "sqlite3"}) == heavy


def test_importing_a_database_package_loads_no_driver() -> None:
    assert loaded("import tenancy_sqlite") & {"aiosqlite", "sqlalchemy", "sqlite3"} == set()
    assert loaded("import tenancy_postgres") & {"asyncpg", "sqlalchemy"} == set()


def test_loading_every_plugin_loads_no_driver() -> None:
    found = loaded(
        "from tenancy_core._plugins import load_plugins\nassert load_plugins().offers('resolver')"
    )
    databases = {"tenancy_postgres._plugin", "tenancy_sqlite._plugin"}
    assert {"tenancy_core._builtin", "pluggy", *databases} <= found
    assert found & {"aiosqlite", "asyncpg", "sqlalchemy", "fastapi", "jwt"} == set()


def test_a_configuration_for_a_database_needs_no_driver_of_it() -> None:
    found = loaded(
        "from tenancy_core import TenancyConfig\n"
        "TenancyConfig(database_url='postgresql+asyncpg://app@db/app')"
    )
    assert found & {"asyncpg", "sqlalchemy"} == set()


# -- what the rooms offer ----------------------------------------------------------------------


def test_the_facade_offers_a_sorted_handful() -> None:
    names = tenancy_core.__all__
    assert names == sorted(names, key=lambda name: (name[0].islower(), name))
    assert len(names) == len(set(names)) <= 25


@pytest.mark.parametrize(
    "module", [tenancy_core, tenancy_sqlite, tenancy_postgres, tenancy_fastapi]
)
def test_every_name_of_a_facade_can_be_loaded(module: object) -> None:
    names: list[str] = module.__all__
    for name in names:
        assert getattr(module, name) is not None
    assert set(names) <= set(dir(module))


@pytest.mark.parametrize("module", [tenancy_core, tenancy_sqlite, tenancy_postgres])
def test_a_facade_says_when_it_does_not_have_a_name(module: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Tenency'"):
        _ = module.Tenency


def test_the_facade_loads_its_names_from_the_rooms_that_checkers_see() -> None:
    for name, room in tenancy_core._ROOMS.items():
        assert name in import_module(f"tenancy_core.{room}").__all__
    assert set(tenancy_core._ROOMS) == set(tenancy_core.__all__)


def modules() -> list[str]:
    return [
        found.name
        for package in (tenancy_core, tenancy_sqlite, tenancy_postgres, tenancy_fastapi)
        for found in walk_packages(package.__path__, f"{package.__name__}.")
    ]


PUBLIC = [name for name in modules() if not any(part[0] == "_" for part in name.split("."))]


def test_there_are_public_rooms() -> None:
    assert {"tenancy_core.contract", "tenancy_core.sql.naming", "tenancy_fastapi"} & set(PUBLIC)


@pytest.mark.parametrize("name", modules())
def test_every_name_that_a_module_exports_exists(name: str) -> None:
    module = import_module(name)
    for exported in getattr(module, "__all__", ()):
        assert hasattr(module, exported), f"{name}.{exported}"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_room_says_what_it_offers(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    names = module.__all__
    assert names == sorted(names, key=_as_ruff_sorts)


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants, then classes, then everything else (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_that_a_public_room_offers_is_described(name: str) -> None:
    module = import_module(name)
    undescribed = []
    for exported in module.__all__:
        item = getattr(module, exported)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        if not inspect.getdoc(item):
            undescribed.append(exported)
        if inspect.isclass(item) and item.__module__.startswith("tenancy_"):
            undescribed += [
                f"{exported}.{attribute}"
                for attribute, value in vars(item).items()
                if not attribute.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, (property, classmethod)))
                and not inspect.getdoc(getattr(item, attribute))
            ]
    assert undescribed == []


def test_typed_packages_say_so() -> None:
    for package in (tenancy_core, tenancy_sqlite, tenancy_postgres, tenancy_fastapi):
        assert (Path(str(package.__file__)).parent / "py.typed").is_file()
