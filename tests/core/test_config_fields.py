"""Every flat setting of the design is there, has its default, its variable, and a use.

The table is written from design §6 and from nothing else.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tenancy_core import ConfigurationError, TenancyConfig
from tenancy_core.config import JwtIssuer
from tenancy_core.config._later import LATER

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parents[2] / "packages"
URL = "sqlite+aiosqlite:///./data/control.db"
REQUIRED = object()

# name: (default, a value as a variable, that value as the setting)
DESIGN: dict[str, tuple[Any, str, Any]] = {
    # core
    "database_url": (REQUIRED, URL, URL),
    "control_database_url": (None, URL, URL),
    "resolution_strategy": (("header",), "jwt,subdomain,header", ("jwt", "subdomain", "header")),
    "isolation_strategy": (None, "database", "database"),
    "excluded_paths": ((), "/health,/metrics", ("/health", "/metrics")),
    # pool
    "database_pool_size": (20, "7", 7),
    "database_max_overflow": (40, "8", 8),
    "database_pool_timeout": (30, "2.5", 2.5),
    "database_connect_timeout": (10, "3", 3),
    "database_tenant_share": (0.5, "0.25", 0.25),
    "database_max_waiting": (1000, "12", 12),
    "database_pool_recycle": (3600, "-1", -1),
    "database_pool_pre_ping": (True, "false", False),
    "database_echo": (False, "true", True),
    "max_cached_engines": (100, "9", 9),
    "database_url_template": (None, URL, URL),
    "max_database_connections": (None, "11", 11),
    # resolution
    "tenant_header_name": ("X-Tenant-ID", "X-Customer", "X-Customer"),
    "domain_suffix": (None, "example.com", "example.com"),
    "path_prefix": ("/tenants", "/t", "/t"),
    "trusted_proxies": ((), "10.0.0.0/8", ("10.0.0.0/8",)),
    "require_verified_tenant": (False, "true", True),
    "on_resolver_conflict": ("reject", "first", "first"),
    # jwt
    "jwt_secret": (None, "k" * 32, "k" * 32),
    "jwt_algorithms": ((), "RS256,ES256", ("RS256", "ES256")),
    "jwt_tenant_claim": ("tenant_id", "org", "org"),
    "jwt_audience": ((), "notes", ("notes",)),
    "jwt_issuer": (None, "https://id.example", "https://id.example"),
    "jwt_jwks_url": (None, "https://id.example/keys", "https://id.example/keys"),
    "jwt_issuers": (
        (),
        f'[{{"issuer": "a", "audience": "b", "secret": "{"k" * 32}"}}]',
        (JwtIssuer(issuer="a", audience=("b",), secret=SecretStr("k" * 32)),),
    ),
    "jwt_types": ((), "at+jwt", ("at+jwt",)),
    "jwt_max_lifetime": (None, "900", 900),
    "jwt_leeway": (30, "10", 10),
    # isolation
    "schema_prefix": ("tenant_", "t_", "t_"),
    "rls_setting": ("app.tenant_id", "app.customer", "app.customer"),
    "standard_isolation_strategy": ("rls", "schema", "schema"),
    "premium_isolation_strategy": ("schema", "database", "database"),
    "premium_plans": ((), "gold,silver", ("gold", "silver")),
    "premium_tenants": ((), "acme", ("acme",)),
    # cache
    "redis_url": (None, "redis://localhost", "redis://localhost"),
    "cache_backend": (None, "memory", "memory"),
    "cache_enabled": (False, "true", True),
    "cache_ttl": (3600, "60", 60),
    "l1_cache_max_size": (1000, "5", 5),
    "l1_cache_ttl_seconds": (60, "6", 6),
    "invalidation_poll_seconds": (5, "1", 1),  # design §9
    "invalidation_bus": (None, "none", "none"),
    # limits
    "enable_rate_limiting": (False, "true", True),
    "rate_limit_per_minute": (100, "50", 50),
    "rate_limit_window_seconds": (60, "10", 10),
    "rate_limit_burst": (None, "4", 4),
    "rate_limit_fail_closed": (False, "true", True),
    "rate_limiter": (None, "memory", "memory"),
    "plans": ({}, '{"pro": {"rate_limit_per_minute": 500}}', {"pro": 500}),
    # security
    "enable_audit_logging": (True, "false", False),
    "enable_encryption": (False, "true", True),
    "encryption_keys": ((), f"{'1' * 32},{'2' * 32}", ("1" * 32, "2" * 32)),
    "signing_keys": ((), "3" * 32, ("3" * 32,)),
    # lifecycle
    "enable_soft_delete": (True, "false", False),
    "archive_retention_days": (None, "30", 30),
    "max_tenants": (None, "1000", 1000),
    # observability
    "enable_metrics": (True, "false", False),
    "enable_query_logging": (False, "true", True),
    "slow_query_threshold_ms": (1000, "250", 250),
    "log_level": (None, "DEBUG", "DEBUG"),
}


TOKENS = {
    "resolution_strategy": "jwt",
    "jwt_secret": "k" * 32,
    "jwt_audience": "notes",
    "jwt_issuer": "https://id.example",
}
POSTGRES = {"database_url": "postgresql+asyncpg://app:secret@host/shop"}
HYBRID = {**POSTGRES, "isolation_strategy": "hybrid", "premium_tenants": "acme"}

TOGETHER: dict[str, dict[str, str]] = {
    "database_url_template": {**POSTGRES, "isolation_strategy": "database"},
    "standard_isolation_strategy": HYBRID,
    "premium_isolation_strategy": HYBRID,
    "premium_plans": HYBRID,
    "premium_tenants": HYBRID,
    "enable_encryption": {"encryption_keys": "4" * 32},
    "encryption_keys": {"enable_encryption": "true"},
    "resolution_strategy": TOKENS,
    "jwt_secret": TOKENS,
    "jwt_algorithms": {
        **{name: value for name, value in TOKENS.items() if name != "jwt_secret"},
        "jwt_jwks_url": "https://id.example/keys",
    },
    "jwt_tenant_claim": TOKENS,
    "jwt_audience": TOKENS,
    "jwt_issuer": TOKENS,
    "jwt_jwks_url": {
        **{name: value for name, value in TOKENS.items() if name != "jwt_secret"},
        "jwt_algorithms": "RS256",
    },
    "jwt_issuers": {"resolution_strategy": "jwt"},
    "jwt_types": TOKENS,
    "jwt_max_lifetime": TOKENS,
    "jwt_leeway": TOKENS,
}
"""What has to be set with a setting."""


def plain(value: object) -> Any:
    """Return a setting in the simple form that the table has."""
    reveal = getattr(value, "get_secret_value", None)
    if reveal is not None:
        return reveal()
    if isinstance(value, tuple):
        return tuple(
            item if isinstance(item, JwtIssuer) else plain(item) if hasattr(item, "_secret_value")
            else item if isinstance(item, str) else str(item)
            for item in value
        )  # fmt: skip
    if isinstance(value, dict):
        return {name: plan.rate_limit_per_minute for name, plan in value.items()}
    return value


def test_the_settings_are_those_of_the_design() -> None:
    assert set(TenancyConfig.FLAT) == set(DESIGN)


@pytest.mark.parametrize("name", DESIGN)
def test_a_setting_has_the_default_of_the_design(name: str) -> None:
    default, _, _ = DESIGN[name]
    if default is REQUIRED:
        with pytest.raises(ConfigurationError, match="TENANCY_DATABASE_URL is missing"):
            TenancyConfig()
        return
    assert getattr(TenancyConfig(database_url=URL), name) == default


@pytest.mark.parametrize("name", DESIGN)
def test_a_setting_is_read_from_its_variable_or_refused_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text, value = DESIGN[name]
    monkeypatch.setenv("TENANCY_DATABASE_URL", URL)
    monkeypatch.setenv("TENANCY_DOMAIN_SUFFIX", "example.com")
    for variable, value_beside in {**TOGETHER.get(name, {}), name: text}.items():
        monkeypatch.setenv(f"TENANCY_{variable.upper()}", value_beside)
    if name not in LATER:
        assert plain(getattr(TenancyConfig.from_env(), name)) == value
        return
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env()
    assert str(caught.value) == (
        f"TENANCY_{name.upper()} is set, and {LATER[name]} is not part of this version. "
        "Remove the setting."
    )


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_setting_whose_feature_comes_later_is_refused_even_with_its_default(name: str) -> None:
    default, _, value = DESIGN[name]
    for given in (value, default) if default is not None else (value,):
        with pytest.raises(ConfigurationError) as caught:
            TenancyConfig(**{"database_url": URL, name: given})
        assert str(caught.value).startswith(f"TENANCY_{name.upper()} is set, and ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 0), ("weight", -1), ("weight", "inf"), ("concurrency", 0), ("concurrency", 1.5)],
)
def test_a_plan_without_a_share_of_the_connections_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"TENANCY_PLANS, pro, {name} is not valid"):
        TenancyConfig(database_url=URL, plans={"pro": {name: value}})


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_the_share_of_a_tenant_is_a_part_of_the_whole(share: float) -> None:
    with pytest.raises(ConfigurationError, match="TENANCY_DATABASE_TENANT_SHARE is not valid"):
        TenancyConfig(database_url=URL, database_tenant_share=share)


def test_nobody_waits_longer_for_a_new_connection_than_for_any() -> None:
    assert TenancyConfig(database_url=URL).connect_timeout == 10
    assert TenancyConfig(database_url=URL, database_pool_timeout=2).connect_timeout == 2
    assert TenancyConfig(database_url=URL, database_connect_timeout=60).connect_timeout == 30


# -- a setting that is accepted is used --------------------------------------------------------


def _attributes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


@cache
def _uses() -> set[str]:
    """Return what is read of a configuration outside of its own room, through its properties."""
    used: set[str] = set()
    for path in SOURCES.glob("*/src/**/*.py"):
        if path.parent.name != "config":
            used.update(_attributes(ast.parse(path.read_text())))
    model = ast.parse((SOURCES / "tenancy-core/src/tenancy_core/config/_model.py").read_text())
    (config,) = (
        node
        for node in model.body
        if isinstance(node, ast.ClassDef) and node.name == "TenancyConfig"
    )
    derived = {
        node.name: set(_attributes(node))
        for node in config.body
        if isinstance(node, ast.FunctionDef) and not _is_rule(node)
    }
    found: set[str] = set()
    pending = [name for name in derived if name in used]
    while pending:
        name = pending.pop()
        for inner in derived[name] - found:
            found.add(inner)
            if inner in derived:
                pending.append(inner)
    return used | found


def _is_rule(node: ast.FunctionDef) -> bool:
    """Whether a method only validates: to be looked at is not to be used."""
    return any(
        isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith("_validator")
        for call in node.decorator_list
    )


@pytest.mark.parametrize("name", sorted(set(DESIGN) - set(LATER)))
def test_a_setting_that_is_accepted_is_read_by_the_code(name: str) -> None:
    assert name in _uses()


def test_a_setting_that_nothing_reads_would_be_noticed() -> None:
    assert "no_such_setting" not in _uses()
    assert set(LATER) - _uses()
    assert "path_prefix" in _uses()
