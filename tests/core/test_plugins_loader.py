"""Plugins are found by entry point; each that does not fit is one sentence with a way out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from support.plugins import distribution, entry_points_in
from tenancy_core import Tenancy
from tenancy_core._plugins import load_plugins
from tenancy_core._plugins import registry as kinds
from tenancy_core.errors import ConfigurationError, DuplicateProviderError, PluginLoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig
    from tenancy_core._plugins import Registry

RESOLVER = """
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    class Resolver:
        async def resolve(self, connection, /):
            return None

    @hookimpl
    def tenancy_resolvers():
        return [Provider("{name}", lambda context, section: Resolver())]
"""


def load(site: Path) -> Registry:
    return load_plugins(found=entry_points_in(site))


def refusal(site: Path, name: str, source: str) -> str:
    """Return the sentence with which a plugin is refused."""
    distribution(site, name, source)
    with pytest.raises(PluginLoadError) as caught:
        load(site)
    return str(caught.value)


def way_out(name: str) -> str:
    return f"Upgrade it, uninstall it, or block it: TENANCY_PLUGINS_BLOCKED={name}."


# -- what fits ---------------------------------------------------------------------------------


def test_an_installed_distribution_is_found_without_anybody_naming_it(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    distribution(site, "acme-keys", RESOLVER.format(name="acme-key"))
    tenancy = Tenancy(make_config(resolution_strategy="acme-key"))
    assert type(tenancy.resolver.inner).__name__ == "Resolver"


def test_the_same_entry_point_name_in_two_distributions_loads_both(site: Path) -> None:
    distribution(site, "acme-one", RESOLVER.format(name="one"), entry="plugin")
    distribution(site, "acme-two", RESOLVER.format(name="two"), entry="plugin")
    assert load(site).names(kinds.RESOLVER) == ["one", "two"]


def test_a_distribution_that_is_seen_twice_on_the_path_is_loaded_once(
    site: Path, tmp_path: Path
) -> None:
    distribution(site, "acme-one", RESOLVER.format(name="one"))
    distribution(tmp_path / "again", "acme.One", RESOLVER.format(name="one"))
    found = entry_points_in(site, tmp_path / "again")
    assert len(found) == 2
    assert load_plugins(found=found).names(kinds.RESOLVER) == ["one"]


def test_a_blocked_plugin_is_not_even_imported(site: Path) -> None:
    module = distribution(site, "Acme.Broken_Plugin", "raise RuntimeError('never imported')")
    registry = load_plugins(blocked={"acme_broken-plugin"}, found=entry_points_in(site))
    assert registry.names(kinds.RESOLVER) == []
    assert module not in sys.modules


@pytest.mark.parametrize("from_env", [True, False], ids=["from_env", "constructor"])
def test_the_variable_blocks_a_plugin_however_the_configuration_was_made(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TenancyConfig],
    from_env: bool,
) -> None:
    distribution(site, "acme-broken", "raise RuntimeError('broken')")
    config = make_config()
    with pytest.raises(PluginLoadError):
        Tenancy(config)
    monkeypatch.setenv("TENANCY_PLUGINS_BLOCKED", "something-else, acme_broken")
    if from_env:
        config = type(config).from_env(database_url=config.database_url)
    Tenancy(config)


def test_a_dotenv_file_blocks_a_plugin_too(
    site: Path, tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    distribution(site, "acme-broken", "raise RuntimeError('broken')")
    (tmp_path / ".env").write_text("TENANCY_PLUGINS_BLOCKED=acme-broken\n")
    config = make_config()
    Tenancy(type(config).from_env(database_url=config.database_url))


def test_an_optional_hook_of_a_later_version_is_left_alone(site: Path) -> None:
    distribution(
        site,
        "acme-modern",
        """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl(optionalhook=True)
        def tenancy_hook_of_tomorrow():
            raise AssertionError("nobody calls it")
        """,
    )
    assert load(site).names(kinds.RESOLVER) == []


def test_the_core_and_its_packages_are_plugins_like_any_other() -> None:
    registry = load_plugins()
    assert registry.names(kinds.RESOLVER) == ["header", "jwt", "path", "subdomain"]
    assert registry.names(kinds.STORE) == ["memory", "sql"]
    assert registry.names(kinds.CACHE) == ["memory"]
    assert registry.names(kinds.BUS) == ["postgres"]
    assert registry.names(kinds.LIMITER) == ["memory"]
    assert registry.names(kinds.ISOLATION) == [
        "database@postgresql",
        "database@sqlite",
        "hybrid@postgresql",
        "rls@postgresql",
        "schema@postgresql",
    ]
    assert registry.names(kinds.OBSERVER) == registry.names(kinds.AUDIT_SINK) == []
    owners = {offer.owner for offer in registry.offers(kinds.ISOLATION)}
    assert owners == {"tenancy-postgres", "tenancy-sqlite"}


# -- one name, one owner -----------------------------------------------------------------------


def test_two_distributions_with_one_name_are_both_named(site: Path) -> None:
    distribution(site, "acme-one", RESOLVER.format(name="api-key"))
    distribution(site, "acme-two", RESOLVER.format(name="api-key"))
    with pytest.raises(DuplicateProviderError) as caught:
        load(site)
    assert str(caught.value) == (
        "The resolver 'api-key' is offered by acme-one and by acme-two. Uninstall one of them, or "
        "block it: TENANCY_PLUGINS_BLOCKED=acme-two."
    )


def test_in_a_clash_with_the_core_it_is_the_other_one_that_can_be_blocked(
    site: Path, make_config: Callable[..., TenancyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # "aaa" is before tenancy-core by name and on the path.
    distribution(site, "aaa-plugin", RESOLVER.format(name="header"))
    config = make_config()
    with pytest.raises(DuplicateProviderError) as caught:
        Tenancy(config)
    assert str(caught.value) == (
        "The resolver 'header' is offered by tenancy-core and by aaa-plugin. Uninstall one of "
        "them, or block it: TENANCY_PLUGINS_BLOCKED=aaa-plugin."
    )
    monkeypatch.setenv("TENANCY_PLUGINS_BLOCKED", "aaa-plugin")
    Tenancy(config)


STRATEGY = """
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    @hookimpl
    def tenancy_isolation_strategies():
        return [Provider("sharded", lambda c, s: None, dialects=frozenset({dialects}))]
"""


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("{'sqlite', 'mysql'}", "{'sqlite'}", "sharded@sqlite"),
        ("set()", "{'sqlite'}", "sharded@sqlite"),
        ("{'sqlite'}", "set()", "sharded"),
        ("set()", "set()", "sharded"),
        ("{'mysql'}", "{'sqlite'}", None),
    ],
)
def test_a_strategy_has_one_owner_for_each_dialect(
    site: Path, one: str, two: str, clash: str | None
) -> None:
    distribution(site, "acme-one", STRATEGY.format(dialects=one))
    distribution(site, "acme-two", STRATEGY.format(dialects=two))
    if clash is None:
        assert load(site).names(kinds.ISOLATION) == ["sharded@mysql", "sharded@sqlite"]
        return
    with pytest.raises(DuplicateProviderError) as caught:
        load(site)
    assert str(caught.value).startswith(
        f"The isolation strategy {clash!r} is offered by acme-one and by acme-two. "
    )


TWO_MODELS = """
    from pydantic import BaseModel
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider, Section

    class One(BaseModel):
        a: int = 1

    class Two(BaseModel):
        b: int = 2

    @hookimpl
    def tenancy_resolvers():
        return [Provider("one", print, Section("acme", One)),
                Provider("two", print, Section("acme", {second}))]
"""


def test_a_section_is_described_by_one_model(site: Path) -> None:
    distribution(site, "acme-one", TWO_MODELS.format(second="Two"))
    with pytest.raises(DuplicateProviderError) as caught:
        load(site)
    assert str(caught.value) == (
        "acme-one describes its settings section 'acme' by two models. "
        "Upgrade it, or block it: TENANCY_PLUGINS_BLOCKED=acme-one."
    )


def test_two_products_may_share_a_section(site: Path) -> None:
    distribution(site, "acme-one", TWO_MODELS.format(second="One"))
    assert load(site).section_variables([]) == {"TENANCY_ACME_A": "acme-one"}


CHECK = """
    from tenancy_core.contract import Check, Command
    from tenancy_core.hookspecs import hookimpl

    async def run(*_):
        return []

    @hookimpl
    def tenancy_checks():
        return [Check("{check}", "A check", run)]

    @hookimpl
    def tenancy_commands():
        return [Command("{command}", "A command", run)]
"""


@pytest.mark.parametrize(
    ("check", "command", "sentence"),
    [
        ("acme.same", "two", "The check 'acme.same' is offered by acme-one and by acme-two. "),
        ("acme.two", "same", "The command 'same' is offered by acme-one and by acme-two. "),
    ],
)
def test_checks_and_commands_have_one_owner_too(
    site: Path, check: str, command: str, sentence: str
) -> None:
    distribution(site, "acme-one", CHECK.format(check="acme.same", command="same"))
    distribution(site, "acme-two", CHECK.format(check=check, command=command))
    with pytest.raises(DuplicateProviderError) as caught:
        load(site)
    assert str(caught.value) == (
        f"{sentence}Uninstall one of them, or block it: TENANCY_PLUGINS_BLOCKED=acme-two."
    )


# -- what does not fit -------------------------------------------------------------------------


def test_a_plugin_that_cannot_be_imported_is_named(site: Path) -> None:
    assert refusal(site, "acme-broken", "import acme_driver_that_is_not_installed") == (
        "The plugin acme-broken cannot be imported (ModuleNotFoundError: No module named "
        f"'acme_driver_that_is_not_installed'). {way_out('acme-broken')}"
    )


def test_two_entry_points_of_one_distribution_are_refused(site: Path) -> None:
    distribution(site, "acme-two", RESOLVER.format(name="two"))
    points = site / "acme_two-1.0.dist-info" / "entry_points.txt"
    points.write_text("[tenancy]\nacme-two = acme_two\nother = acme_other\n")
    with pytest.raises(PluginLoadError) as caught:
        load(site)
    assert str(caught.value) == (
        "The plugin acme-two has more than one entry point in the group 'tenancy' (acme_two and "
        f"acme_other); one is allowed. {way_out('acme-two')}"
    )


def test_a_plugin_for_another_hook_api_is_refused(site: Path) -> None:
    source = RESOLVER.format(name="old") + "\n    TENANCY_HOOK_API = 0\n"
    assert refusal(site, "acme-old", source) == (
        "The plugin acme-old was written for hook API 0; this tenancy-core has 1. "
        + way_out("acme-old")
    )


def test_a_hook_that_does_not_exist_gets_a_near_miss(site: Path) -> None:
    source = """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl
        def tenancy_resolver():
            return []
    """
    assert refusal(site, "acme-misspelt", source) == (
        "The plugin acme-misspelt implements the hook 'tenancy_resolver', which does not exist "
        f"(did you mean 'tenancy_resolvers'?). {way_out('acme-misspelt')}"
    )


def test_a_hook_that_is_like_none_is_told_which_there_are(site: Path) -> None:
    source = """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl
        def on_start():
            return []
    """
    assert refusal(site, "acme-other", source) == (
        "The plugin acme-other implements the hook 'on_start', which does not exist; there is "
        "tenancy_audit_sinks, tenancy_cache_backends, tenancy_checks, tenancy_commands, "
        "tenancy_invalidation_buses, tenancy_isolation_strategies, tenancy_observers, "
        f"tenancy_rate_limiters, tenancy_resolvers, tenancy_stores. {way_out('acme-other')}"
    )


def test_a_hook_with_another_signature_is_refused(site: Path) -> None:
    source = """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl
        def tenancy_resolvers(config):
            return []
    """
    assert refusal(site, "acme-args", source) == (
        "The plugin acme-args implements tenancy_resolvers(config), and a hook takes no arguments. "
        + way_out("acme-args")
    )


def test_a_hook_that_pluggy_refuses_is_refused(site: Path) -> None:
    source = """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl(wrapper=True)
        def tenancy_resolvers():
            return []
    """
    said = refusal(site, "acme-wrapper", source)
    assert said.startswith(
        "The plugin acme-wrapper implements a hook in a way that pluggy refuses "
        "(PluginValidationError: Plugin 'acme-wrapper' for hook 'tenancy_resolvers'"
    )
    assert said.endswith(way_out("acme-wrapper"))


def test_a_hook_without_its_mark_is_refused_instead_of_never_called(site: Path) -> None:
    source = """
        def tenancy_resolvers():
            return []
    """
    assert refusal(site, "acme-unmarked", source) == (
        "The plugin acme-unmarked defines tenancy_resolvers without @hookimpl, so it would never "
        f"be called. {way_out('acme-unmarked')}"
    )


def test_an_async_hook_is_refused(site: Path) -> None:
    source = """
        from tenancy_core.hookspecs import hookimpl

        @hookimpl
        async def tenancy_resolvers():
            return []
    """
    assert refusal(site, "acme-async", source) == (
        "The plugin acme-async implements tenancy_resolvers as async def; hooks are called at "
        f"start-up, without a loop. {way_out('acme-async')}"
    )


HOOK = """
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider, Section

    @hookimpl
    def tenancy_resolvers():
        {body}
"""


@pytest.mark.parametrize(
    ("body", "did"),
    [
        ("raise OSError('no such file')", "failed (OSError: no such file)"),
        ("yield Provider('a', print); raise LookupError('late')", "failed (LookupError: late)"),
        ("pass", "returned NoneType where a list of Provider is allowed"),
        ("return Provider('a', print)", "returned Provider where a list of Provider is allowed"),
        ("return ['api-key']", "returned a list with str where Provider is allowed"),
        ("return [print]", ("returned a list with builtin_function_or_method where Provider is "
         "allowed")),
        (
            "return [Provider('api key', print)]",
            ("failed (ValueError: A provider's name is letters, digits, '-', '_' and '.', not "
            "'api key')"),
        ),
        (
            "return [Provider('a', print, dialects='sqlite')]",
            "failed (TypeError: dialects is a set of names: frozenset({'sqlite'}))",
        ),
        (
            "return [Provider('a', print, Section('Api-Key', object))]",
            "failed (ValueError: A section's name is a-z, 0-9 and underscores, not 'Api-Key')",
        ),
    ],
)  # fmt: skip
def test_a_hook_that_fails_or_returns_something_else_is_named(
    site: Path, body: str, did: str
) -> None:
    assert refusal(site, "acme-wrong", HOOK.format(body=body)) == (
        f"The hook tenancy_resolvers of acme-wrong {did}. {way_out('acme-wrong')}"
    )


def test_every_refusal_is_a_configuration_error() -> None:
    assert issubclass(PluginLoadError, ConfigurationError)
    assert issubclass(DuplicateProviderError, ConfigurationError)
