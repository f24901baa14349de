"""A plugin author's mistakes: each is one sentence that names the distribution and the way out.

Every plugin here is an installed distribution that ``Tenancy`` finds by itself. More of them are in
``tests/core/test_plugins_loader.py`` (what hooks do) and ``test_plugins_products.py`` (what they
build).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.plugins import distribution, site_folder
from tenancy_core import ConfigurationError, Tenancy
from tenancy_core.errors import DuplicateProviderError, PluginLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tenancy_core import TenancyConfig

PLUGIN = """
    import abc, functools, pydantic, pydantic_settings
    from collections.abc import Awaitable
    from tenancy_core.errors import ConfigurationError
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider, Section

    class Resolver:
        async def resolve(self, connection, /):
            return None

    class Settings(pydantic.BaseModel):
        region: str = "eu"

    def build(context, section):
        return Resolver()

    section = None
{change}

    @hookimpl
    def tenancy_resolvers():
        return [Provider("acme", build, section=section)]
"""

LOADING = "Upgrade it, uninstall it, or block it: TENANCY_PLUGINS_BLOCKED=acme-plugin."
BUILDING = "Upgrade acme-plugin, or report it to its authors."
THE_RESOLVER = "The resolver 'acme' of acme-plugin"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; the modules of the plugins in it are forgotten afterwards."""
    with site_folder(tmp_path, monkeypatch) as folder:
        yield folder


def plugin(change: str = "") -> str:
    """Return a plugin that fits, and then a change of it."""
    return PLUGIN.format(change="\n".join(f"    {line}" for line in change.splitlines()))


def refusal(config: TenancyConfig) -> ConfigurationError:
    """Return the one error with which a start ends."""
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(config)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def said(site: Path, make_config: Callable[..., TenancyConfig]) -> Callable[..., str]:
    """Give a function that installs a plugin, selects its resolver and returns the sentence."""

    def install(source: str, value: str | None = None, **settings: Any) -> str:
        distribution(site, "acme-plugin", source, value=value)
        return str(refusal(make_config(**{"resolution_strategy": "acme", **settings})))

    return install


def test_the_plugin_without_a_mistake_is_used(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    distribution(site, "acme-plugin", plugin())
    assert Tenancy(make_config(resolution_strategy="acme"))


# -- the entry point -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        (
            "acme_nowhere._plugin",
            "cannot be imported (ModuleNotFoundError: No module named 'acme_nowhere')",
        ),
        (
            "acme_plugin:hooks",
            ("cannot be imported (AttributeError: module 'acme_plugin' has no attribute 'hooks')"),
        ),
        (
            "acme-plugin",
            (
                "has the entry point 'acme-plugin', which names no module; its value is written "
                "like acme_tenancy._plugin"
            ),
        ),
        (
            "acme_plugin:Resolver",
            (
                "implements no hook: nothing in acme_plugin:Resolver, which its entry point "
                "names, is marked with @hookimpl"
            ),
        ),
    ],
)
def test_an_entry_point_that_leads_nowhere(said: Callable[..., str], value: str, flaw: str) -> None:
    assert said(plugin(), value) == f"The plugin acme-plugin {flaw}. {LOADING}"


def test_an_entry_point_that_names_a_module_without_hooks(said: Callable[..., str]) -> None:
    # The package instead of the module in it that has the hooks: it would offer nothing, silently.
    assert said('"""Multi-tenancy by API key."""') == (
        "The plugin acme-plugin implements no hook: nothing in acme_plugin, which its entry point "
        f"names, is marked with @hookimpl. {LOADING}"
    )


def test_a_driver_that_its_module_imports_and_that_is_missing(said: Callable[..., str]) -> None:
    assert said(plugin("import acme_driver")) == (
        "The plugin acme-plugin cannot be imported (ModuleNotFoundError: No module named "
        f"'acme_driver'). {LOADING}"
    )


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        ("0", LOADING),
        ("'1'", LOADING),
        ("2", "Upgrade tenancy-core, or block the plugin: TENANCY_PLUGINS_BLOCKED=acme-plugin."),
    ],
)
def test_a_plugin_for_an_older_or_a_newer_hook_api(
    said: Callable[..., str], number: str, way_out: str
) -> None:
    assert said(plugin(f"TENANCY_HOOK_API = {number}")) == (
        f"The plugin acme-plugin was written for hook API {number}; this tenancy-core has 1. "
        f"{way_out}"
    )


# -- hooks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "needed"), [("one, two", "one, two"), ("self, plugins=()", "self")]
)
def test_a_hook_with_an_argument(said: Callable[..., str], arguments: str, needed: str) -> None:
    source = plugin(f"@hookimpl\ndef tenancy_cache_backends({arguments}):\n    return []")
    assert said(source) == (
        f"The plugin acme-plugin implements tenancy_cache_backends({needed}), and a hook takes no "
        f"arguments. {LOADING}"
    )


@pytest.mark.parametrize(
    ("section", "flaw"),
    [
        ("Settings", "has a section that is no tenancy_core.providers.Section(name, model)"),
        (
            "Section('acme', dict)",
            "describes its section 'acme' by something that is no pydantic model",
        ),
        (
            "Section('acme', Settings())",
            "describes its section 'acme' by something that is no pydantic model",
        ),
        (
            "Section('acme', type('Own', (pydantic_settings.BaseSettings,), {}))",
            (
                "describes its section 'acme' by a BaseSettings, which would read variables of "
                "its own accord; a section is a pydantic BaseModel"
            ),
        ),
    ],
)
def test_a_section_that_cannot_be_read(said: Callable[..., str], section: str, flaw: str) -> None:
    # Whether it is selected or not: its variables are needed to find the misspelt ones.
    assert said(plugin(f"section = {section}"), resolution_strategy="header") == (
        f"{THE_RESOLVER} {flaw}. {LOADING}"
    )


def test_a_section_with_a_variable_of_the_core(said: Callable[..., str]) -> None:
    settings = "class Own(pydantic.BaseModel):\n    ttl: int = 1\nsection = Section('cache', Own)"
    assert said(plugin(settings)) == (
        "acme-plugin calls a setting TENANCY_CACHE_TTL, which is a setting of tenancy-core. Block "
        "the plugin: TENANCY_PLUGINS_BLOCKED=acme-plugin."
    )


def test_a_name_of_somebody_else(site: Path, make_config: Callable[..., TenancyConfig]) -> None:
    distribution(site, "acme-plugin", plugin())
    distribution(site, "beta-plugin", plugin())
    error = refusal(make_config(resolution_strategy="acme"))
    assert type(error) is DuplicateProviderError
    assert str(error) == (
        "The resolver 'acme' is offered by acme-plugin and by beta-plugin. Uninstall one of them, "
        "or block it: TENANCY_PLUGINS_BLOCKED=beta-plugin."
    )


def test_what_is_wrong_with_a_plugin_is_an_error_when_it_is_loaded(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    distribution(site, "acme-plugin", plugin("section = Section('acme', dict)"))
    assert type(refusal(make_config())) is PluginLoadError


# -- build -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "flaw"),
    [
        (
            "async def build(context, section):\n    return Resolver()",
            (
                "has a build that is async def; it is a plain def, which is called at start-up, "
                f"without a loop. {BUILDING}"
            ),
        ),
        (
            "def build(context):\n    return Resolver()",
            f"has a build that cannot be called as build(context, section). {BUILDING}",
        ),
        (
            "def build(context, section, region):\n    return Resolver()",
            f"has a build that cannot be called as build(context, section). {BUILDING}",
        ),
        (
            "build = None",
            f"has a build that cannot be called as build(context, section). {BUILDING}",
        ),
        (
            "def build(context, section):\n    Resolver()",
            f"is None: its build returned nothing. {BUILDING}",
        ),
        (
            "def build(context, section):\n    return Resolver",
            f"is the class Resolver, not an object. {BUILDING}",
        ),
        (
            "def build(context, section):\n    return object()",
            f"is a object without the method resolve(connection). {BUILDING}",
        ),
        (
            "def build(context, section):\n    raise OSError('of no interest')",
            (
                "could not be built: it raised OSError, which the traceback shows. Correct what it "
                "names, or upgrade acme-plugin."
            ),
        ),
        (
            "def build(context, section):\n    import acme_driver.client",
            (
                "needs the package 'acme_driver', which is not installed. Run: pip install "
                "--upgrade acme-plugin"
            ),
        ),
        (
            "def build(context, section):\n    raise ModuleNotFoundError('no driver')",
            ("needs a package that is not installed. Run: pip install --upgrade acme-plugin"),
        ),
        (
            "def build(context, section):\n    from json import Client",
            (
                "needs another version of the package 'json': what it imports is not in this one. "
                "Run: pip install --upgrade acme-plugin"
            ),
        ),
    ],
)
def test_a_build_that_makes_no_product(said: Callable[..., str], build: str, flaw: str) -> None:
    assert said(plugin(build)) == f"{THE_RESOLVER} {flaw}"


def test_a_model_whose_validator_fails_in_its_own_way(said: Callable[..., str]) -> None:
    model = """class Own(pydantic.BaseModel):
    region: str = "eu"
    @pydantic.model_validator(mode="after")
    def check(self):
        return {"us": 1}[self.region]
section = Section("acme", Own)"""
    assert said(plugin(model)) == (
        f"{THE_RESOLVER} could not read its settings: its model raised KeyError, and a validator "
        f"raises ValueError. {BUILDING}"
    )


def test_a_setting_that_is_missing_is_named(said: Callable[..., str]) -> None:
    model = "class Own(pydantic.BaseModel):\n    region: str\nsection = Section('acme', Own)"
    assert said(plugin(model)) == (
        "TENANCY_ACME_REGION is missing. Set the variable, or pass the argument region."
    )


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "flaw"),
    [
        (
            "def resolve(self, connection, /): ...",
            "whose method resolve is a plain def; it is async def, for it is awaited",
        ),
        (
            "def resolve(self, connection, /) -> 'str | None': ...",
            "whose method resolve is a plain def; it is async def, for it is awaited",
        ),
        (
            "async def resolve(self): ...",
            "whose method resolve cannot be called as resolve(connection)",
        ),
        (
            "async def resolve(self, connection, tenant): ...",
            "whose method resolve cannot be called as resolve(connection)",
        ),
        (
            "async def resolve(self, *, connection): ...",
            "whose method resolve cannot be called as resolve(connection)",
        ),
        ("resolve = 'acme'", "without the method resolve(connection)"),
        ("async def resolves(self, connection, /): ...", "without the method resolve(connection)"),
    ],
)
def test_a_method_with_another_signature(said: Callable[..., str], method: str, flaw: str) -> None:
    assert said(plugin(f"class Resolver:\n    {method}")) == (
        f"{THE_RESOLVER} is a Resolver {flaw}. {BUILDING}"
    )


@pytest.mark.parametrize(
    "method",
    [
        "async def resolve(self, anything): ...",
        "async def resolve(self, *arguments, **options): ...",
        "async def resolve(self, connection, tenant=None): ...",
        "@staticmethod\n    async def resolve(connection): ...",
        "@functools.wraps(Resolver.resolve)\n    def resolve(self, connection): ...",
        "def resolve(self, connection) -> Awaitable[None]: ...",
        "def resolve(self, connection) -> 'Awaitable[None]': ...",
        "resolve = lambda self, connection: ...",
        "resolve = staticmethod(functools.partial(print))",
        "resolve = print",
    ],
)
def test_a_method_that_can_be_called_and_may_be_awaited_is_left_alone(
    site: Path, make_config: Callable[..., TenancyConfig], method: str
) -> None:
    distribution(site, "acme-plugin", plugin(f"class Resolver(Resolver):\n    {method}"))
    assert Tenancy(make_config(resolution_strategy="acme"))


STRATEGY = """
    from contextlib import asynccontextmanager
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    class Product:
        {session}
        def connection(self, tenant, /, *, read_only=False): ...
        async def provision(self, tenant, /): ...
        async def exists(self, tenant, /): ...
        async def destroy(self, tenant, /): ...

    @hookimpl
    def tenancy_isolation_strategies():
        return [Provider("acme", lambda context, section: Product())]
"""


@pytest.mark.parametrize(
    ("session", "flaw"),
    [
        (
            "async def session(self, tenant, /, *, read_only=False): ...",
            "whose method session is async def; it is a plain def, which is called and not awaited",
        ),
        (
            "def session(self, tenant, /): ...",
            "whose method session cannot be called as session(tenant, read_only)",
        ),
        (
            "def session(self, tenant, read_only, /): ...",
            "whose method session cannot be called as session(tenant, read_only)",
        ),
    ],
)
def test_a_strategy_whose_session_has_another_signature(
    said: Callable[..., str], session: str, flaw: str
) -> None:
    settings = {"resolution_strategy": "header", "isolation_strategy": "acme"}
    assert said(STRATEGY.format(session=session), **settings) == (
        f"The isolation strategy 'acme' of acme-plugin is a Product {flaw}. {BUILDING}"
    )


def test_a_cache_whose_set_has_no_ttl(said: Callable[..., str]) -> None:
    source = """
    from tenancy_core._cache.memory import MemoryCacheBackend
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    class Cache(MemoryCacheBackend):
        async def set(self, key, value): ...

    @hookimpl
    def tenancy_cache_backends():
        return [Provider("acme", lambda context, section: Cache())]
    """
    settings = {
        "resolution_strategy": "header", "cache_enabled": True, "cache_backend": "acme",
    }  # fmt: skip
    assert said(source, **settings) == (
        "The cache backend 'acme' of acme-plugin is a Cache whose method set cannot be called as "
        f"set(key, value, ttl). {BUILDING}"
    )
