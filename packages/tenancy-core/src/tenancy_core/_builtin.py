"""What the core offers, through the same hooks as everybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core import checks
from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import CacheBackend, Check, RateLimiter, Resolver, TenantStore

TENANCY_HOOK_API = 1


def _header(context: BuildContext, _: None) -> Resolver:
    from tenancy_core._resolvers.header import HeaderResolver

    return HeaderResolver(context.config.tenant_header_name)


def _subdomain(context: BuildContext, _: None) -> Resolver:
    from tenancy_core._resolvers.subdomain import SubdomainResolver

    # The configuration refuses `subdomain` without a domain.
    return SubdomainResolver(context.config.domain_suffix or "", context.config.trusted_proxies)


def _path(context: BuildContext, _: None) -> Resolver:
    from tenancy_core._resolvers.path import PathResolver

    return PathResolver(context.config.path_prefix)


def _jwt(context: BuildContext, _: None) -> Resolver:
    from tenancy_core._resolvers.jwt import JwtResolver

    return JwtResolver(context.config, clock=context.clock)


def _memory_cache(_context: BuildContext, _: None) -> CacheBackend:
    from tenancy_core._cache.memory import MemoryCacheBackend

    return MemoryCacheBackend()


def _memory_limiter(_context: BuildContext, _: None) -> RateLimiter:
    from tenancy_core._ratelimit.memory import MemoryRateLimiter

    return MemoryRateLimiter()


def _sql_store(context: BuildContext, _: None) -> TenantStore:
    from tenancy_core._stores.sql import SqlTenantStore

    return SqlTenantStore(context.config, context.connections)


def _memory_store(_context: BuildContext, _: None) -> TenantStore:
    from tenancy_core._stores.memory import MemoryTenantStore

    return MemoryTenantStore()


@hookimpl
def tenancy_resolvers() -> Iterable[Provider[Any, Resolver]]:
    """Return the resolvers of the core."""
    return [
        Provider("header", _header),
        Provider("subdomain", _subdomain),
        Provider("path", _path),
        Provider("jwt", _jwt),
    ]


@hookimpl
def tenancy_cache_backends() -> Iterable[Provider[Any, CacheBackend]]:
    """Return the cache backends of the core."""
    return [Provider("memory", _memory_cache)]


@hookimpl
def tenancy_rate_limiters() -> Iterable[Provider[Any, RateLimiter]]:
    """Return the rate limiters of the core."""
    return [Provider("memory", _memory_limiter)]


@hookimpl
def tenancy_stores() -> Iterable[Provider[Any, TenantStore]]:
    """Return the tenant stores of the core."""
    return [Provider("sql", _sql_store), Provider("memory", _memory_store)]


@hookimpl
def tenancy_checks() -> Iterable[Check]:
    """Return the core's items of the production checklist."""
    return checks.CORE_CHECKS
