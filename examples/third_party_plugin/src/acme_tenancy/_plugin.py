"""What this package offers to tenancy.

It is imported at every start, whether something of it is selected or not: so it imports the hooks
and the settings. What a product needs is imported where it is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_tenancy.settings import ApiKeySettings, CacheSettings
from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import CacheBackend, Resolver

TENANCY_HOOK_API = 1


def _api_key(_context: BuildContext, settings: ApiKeySettings) -> Resolver:
    from acme_tenancy.resolver import ApiKeyResolver

    return ApiKeyResolver(
        header=settings.header,
        pepper=settings.pepper.get_secret_value().encode(),
        keys=settings.keys,
    )


def _file_cache(_context: BuildContext, settings: CacheSettings) -> CacheBackend:
    from acme_tenancy.cache import FileCacheBackend

    return FileCacheBackend(settings.path, poll_seconds=settings.poll_seconds)


@hookimpl
def tenancy_resolvers() -> Iterable[Provider[Any, Resolver]]:
    """Return ``api-key``."""
    return [Provider("api-key", _api_key, section=Section("acme_apikey", ApiKeySettings))]


@hookimpl
def tenancy_cache_backends() -> Iterable[Provider[Any, CacheBackend]]:
    """Return ``acme-file``."""
    return [Provider("acme-file", _file_cache, section=Section("acme_cache", CacheSettings))]
