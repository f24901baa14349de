"""What this package offers to tenancy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_tenancy.settings import ApiKeySettings
from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import Resolver

TENANCY_HOOK_API = 1


def _api_key(_context: BuildContext, settings: ApiKeySettings) -> Resolver:
    from acme_tenancy.resolver import ApiKeyResolver

    return ApiKeyResolver(settings)


@hookimpl
def tenancy_resolvers() -> Iterable[Provider[Any, Resolver]]:
    """Return ``api-key``."""
    return [Provider("api-key", _api_key, section=Section("apikey", ApiKeySettings))]
