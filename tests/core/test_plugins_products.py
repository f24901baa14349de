"""What plugins and applications hand in is looked at when it is built, not at the first request."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

import pytest

from support.plugins import distribution
from tenancy_core import ConfigurationError, Tenancy, TenantClaim, contract
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._ratelimit import MemoryRateLimiter
from tenancy_core._resolvers.guarded import GuardedResolver
from tenancy_core._stores.memory import MemoryTenantStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig


class NamesAcme:
    """A resolver as an application would write one."""

    async def resolve(self, connection: contract.Connection, /) -> TenantClaim | None:
        return TenantClaim("acme", "code")


class Listener:
    """An observer and an audit sink in one, with a resource."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def __aenter__(self) -> Self:
        self.log.append("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("closed")

    def refused(self, code: str, status: int, tenant: object, /) -> None:
        self.log.append(code)

    def changed(self, tenant: object, action: str, /) -> None:
        self.log.append(action)

    async def write(self, event: contract.AuditEvent, /) -> None:
        self.log.append(f"audited {event.action}")


def refusal(config: TenancyConfig, **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(config, **given)
    return str(caught.value)


# -- products of plugins -----------------------------------------------------------------------

PLUGIN = """
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    class Product:
        {member} = {value}

    @hookimpl
    def {hook}():
        return [Provider("acme", lambda context, section: {product})]
"""

KINDS = [
    ("tenancy_resolvers", "resolver", "resolve(connection)", {"resolution_strategy": "acme"}),
    (
        "tenancy_isolation_strategies",
        "isolation strategy",
        "session(tenant, read_only)",
        {"isolation_strategy": "acme"},
    ),
    (
        "tenancy_cache_backends",
        "cache backend",
        "get(key)",
        {"cache_enabled": True, "cache_backend": "acme"},
    ),
    (
        "tenancy_rate_limiters",
        "rate limiter",
        "hit(key, limit, cost)",
        {"enable_rate_limiting": True, "rate_limiter": "acme"},
    ),
    ("tenancy_observers", "observer", "refused(code, status, tenant)", {}),
    ("tenancy_audit_sinks", "audit sink", "write(event)", {}),
]


@pytest.mark.parametrize(("hook", "kind", "method", "settings"), KINDS)
@pytest.mark.parametrize("product", ["Product()", "None", "Product"])
def test_a_product_without_a_method_of_its_protocol_is_refused_when_it_is_built(
    site: Path,
    make_config: Callable[..., TenancyConfig],
    hook: str,
    kind: str,
    method: str,
    settings: dict[str, Any],
    product: str,
) -> None:
    source = PLUGIN.format(hook=hook, product=product, member="other", value="None")
    distribution(site, "acme-plugin", source)
    flaw = {
        "Product()": f"is a Product without the method {method}",
        "None": "is None: its build returned nothing",
        "Product": "is the class Product, not an object",
    }
    assert refusal(make_config(**settings)) == (
        f"The {kind} 'acme' of acme-plugin {flaw[product]}. "
        "Upgrade acme-plugin, or report it to its authors."
    )


def test_an_attribute_that_is_no_method_does_not_count_as_one(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    source = PLUGIN.format(
        hook="tenancy_resolvers", product="Product()", member="resolve", value="'acme'"
    )
    distribution(site, "acme-plugin", source)
    assert "without the method resolve(connection)" in refusal(
        make_config(resolution_strategy="acme")
    )


def test_a_session_that_is_async_def_is_refused_when_it_is_built(
    make_config: Callable[..., TenancyConfig],
) -> None:
    class Wrong:
        async def session(self, tenant: object, /, *, read_only: bool = False) -> None: ...

    assert refusal(make_config(), isolation=Wrong()) == (
        "What is passed to Tenancy(isolation=…) is a Wrong whose method session is async def; it "
        "is a plain def, which is called and not awaited. Pass an object like "
        "tenancy_core.contract.IsolationStrategy."
    )


def test_a_product_that_needs_a_missing_package_says_what_to_install(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    product = "__import__('acme_driver')"
    source = PLUGIN.format(hook="tenancy_resolvers", product=product, member="a", value="1")
    distribution(site, "acme-plugin", source)
    assert refusal(make_config(resolution_strategy="acme")) == (
        "The resolver 'acme' of acme-plugin needs the package 'acme_driver', which is not "
        "installed. Run: pip install --upgrade acme-plugin"
    )


def test_S1_what_a_failing_build_says_stays_in_its_own_traceback(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    product = "int('redis://:canary@cache')"
    source = PLUGIN.format(hook="tenancy_resolvers", product=product, member="a", value="1")
    distribution(site, "acme-plugin", source)
    assert refusal(make_config(resolution_strategy="acme")) == (
        "The resolver 'acme' of acme-plugin could not be built: it raised ValueError, which the "
        "traceback shows. Correct what it names, or upgrade acme-plugin."
    )


def test_an_error_that_a_plugin_words_itself_is_passed_on(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    source = """
        from tenancy_core.errors import ConfigurationError
        from tenancy_core.hookspecs import hookimpl
        from tenancy_core.providers import Provider

        def build(context, section):
            raise ConfigurationError("TENANCY_ACME_REGION names no region; there is eu, us.")

        @hookimpl
        def tenancy_resolvers():
            return [Provider("acme", build)]
    """
    distribution(site, "acme-plugin", source)
    assert refusal(make_config(resolution_strategy="acme")) == (
        "TENANCY_ACME_REGION names no region; there is eu, us."
    )


def test_a_strategy_for_every_dialect_is_one_of_those_there_are(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    hook = "tenancy_isolation_strategies"
    source = PLUGIN.format(hook=hook, product="Product()", member="a", value="1")
    distribution(site, "acme-plugin", source)
    assert refusal(make_config(isolation_strategy="acmee")) == (
        "TENANCY_ISOLATION_STRATEGY asks for 'acmee', which nothing that is installed offers. On "
        "sqlite there is 'acme', 'database'. Did you mean 'acme'?"
    )


def test_what_nobody_selects_is_not_built(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    source = PLUGIN.format(hook="tenancy_resolvers", product="1 / 0", member="a", value="1")
    distribution(site, "acme-plugin", source)
    Tenancy(make_config())


def test_a_resolver_of_a_plugin_is_guarded_and_one_of_the_core_is_not(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    source = PLUGIN.format(
        hook="tenancy_resolvers", product="Product()", member="resolve", value="print"
    )
    distribution(site, "acme-plugin", source)
    assert type(Tenancy(make_config(resolution_strategy="acme")).resolver) is GuardedResolver
    assert type(Tenancy(make_config()).resolver) is not GuardedResolver


# -- objects that an application passes --------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "protocol", "method"),
    [
        ("resolver", "Resolver", "resolve(connection)"),
        ("isolation", "IsolationStrategy", "session(tenant, read_only)"),
        ("store", "TenantStore", "get_by_identifier(identifier)"),
        ("cache_backend", "CacheBackend", "get(key)"),
        ("invalidation_bus", "InvalidationBus", "publish(message)"),
        ("rate_limiter", "RateLimiter", "hit(key, limit, cost)"),
        ("observers", "Observer", "refused(code, status, tenant)"),
        ("audit_sinks", "AuditSink", "write(event)"),
    ],
)
def test_an_object_without_a_method_of_its_protocol_is_refused(
    make_config: Callable[..., TenancyConfig], argument: str, protocol: str, method: str
) -> None:
    class Wrong: ...

    given: object = [Wrong()] if argument in {"observers", "audit_sinks"} else Wrong()
    assert refusal(make_config(), **{argument: given}) == (
        f"What is passed to Tenancy({argument}=…) is a Wrong without the method {method}. "
        f"Pass an object like tenancy_core.contract.{protocol}."
    )


@pytest.mark.parametrize(
    ("protocol", "product"),
    [
        (contract.TenantStore, MemoryTenantStore()),
        (contract.CacheBackend, MemoryCacheBackend()),
        (contract.InvalidationBus, MemoryCacheBackend()),
        (contract.RateLimiter, MemoryRateLimiter()),
        (contract.Resolver, NamesAcme()),
        (contract.Observer, Listener()),
        (contract.AuditSink, Listener()),
    ],
)
def test_the_protocols_say_which_methods_are_looked_for(protocol: type, product: object) -> None:
    names = {name for name, item in vars(protocol).items() if inspect.isfunction(item)}
    wanted = {name for name in names if not name.startswith("_")}
    assert wanted
    assert all(callable(getattr(product, name)) for name in wanted)


def test_a_resolver_object_needs_no_setting(make_config: Callable[..., TenancyConfig]) -> None:
    resolver = NamesAcme()
    found = Tenancy(make_config(), resolver=resolver).resolver
    assert isinstance(found, GuardedResolver)
    assert found.inner is resolver


def test_a_resolver_object_stands_in_a_chain_under_the_name_custom(
    make_config: Callable[..., TenancyConfig],
) -> None:
    resolver = NamesAcme()
    config = make_config(resolution_strategy="header,custom")
    chain: Any = Tenancy(config, resolver=resolver).resolver
    assert [getattr(part, "inner", None) is resolver for part in chain.resolvers] == [False, True]


def test_a_resolver_object_beside_a_strategy_that_leaves_it_out_is_refused(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(resolution_strategy="header,path")
    assert refusal(config, resolver=NamesAcme()) == (
        "A resolver object is passed, and TENANCY_RESOLUTION_STRATEGY is 'header,path'. Add "
        "'custom' to it where the object belongs, or leave one of the two out."
    )


CUSTOM = """
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    class Resolver:
        async def resolve(self, connection, /):
            return None

    @hookimpl
    def tenancy_resolvers():
        return [Provider("custom", lambda context, section: Resolver())]
"""


def test_custom_may_be_a_plugin_s_name_but_never_two_resolvers(
    site: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    distribution(site, "acme-plugin", CUSTOM)
    config = make_config(resolution_strategy="custom")
    assert type(Tenancy(config).resolver.inner).__name__ == "Resolver"
    assert refusal(config, resolver=NamesAcme()) == (
        "A resolver object is passed, and acme-plugin registers a resolver 'custom' too. "
        "Leave one of the two out."
    )


def test_a_limiter_that_has_counted_nothing_yet_is_used_though_it_is_falsy(
    make_config: Callable[..., TenancyConfig],
) -> None:
    limiter = MemoryRateLimiter()
    assert not limiter
    tenancy = Tenancy(make_config(enable_rate_limiting=True), rate_limiter=limiter)
    assert tenancy._built.limiter is limiter


def test_a_shared_cache_object_is_used(make_config: Callable[..., TenancyConfig]) -> None:
    class Falsy(MemoryCacheBackend):
        def __len__(self) -> int:
            return 0

    cache = Falsy()
    tenancy = Tenancy(make_config(cache_enabled=True), cache_backend=cache)
    assert tenancy._built.directory._shared is cache


@pytest.mark.parametrize(
    ("settings", "given"),
    [({"cache_backend": "memory"}, {}), ({}, {"cache_backend": MemoryCacheBackend()})],
)
def test_a_cache_that_is_chosen_and_not_switched_on_is_refused(
    make_config: Callable[..., TenancyConfig], settings: dict[str, Any], given: dict[str, Any]
) -> None:
    assert refusal(make_config(**settings), **given) == (
        "A cache backend is chosen, and TENANCY_CACHE_ENABLED is false. Set it to true, or leave "
        "the backend out."
    )


@pytest.mark.parametrize(
    ("settings", "given"),
    [({"rate_limiter": "memory"}, {}), ({}, {"rate_limiter": MemoryRateLimiter()})],
)
def test_a_limiter_that_is_chosen_and_not_switched_on_is_refused(
    make_config: Callable[..., TenancyConfig], settings: dict[str, Any], given: dict[str, Any]
) -> None:
    assert refusal(make_config(**settings), **given) == (
        "A rate limiter is chosen, and TENANCY_ENABLE_RATE_LIMITING is false. Set it to true, or "
        "leave the limiter out."
    )


@pytest.mark.anyio
async def test_what_has_resources_is_opened_once_and_closed_with_the_tenancy(
    make_config: Callable[..., TenancyConfig],
) -> None:
    listener = Listener()
    async with Tenancy(make_config(), observers=[listener], audit_sinks=[listener]) as tenancy:
        await tenancy.tenants.create("acme")
    assert listener.log == [
        "opened",
        "audited tenant.created",
        "tenant.created",
        "audited tenant.provisioned",
        "tenant.provisioned",
        "closed",
    ]
