"""The hooks of tenancy, and the guide for those who implement them.

A plugin is a distribution with **one** entry point in the group ``tenancy``, whose value is the
module that holds its hook implementations::

    # pyproject.toml
    [project.entry-points.tenancy]
    acme-tenancy = "acme_tenancy._plugin"

    # acme_tenancy/_plugin.py
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import BuildContext, Provider

    def build(context: BuildContext, section: None) -> object:
        from acme_tenancy.resolver import ApiKeyResolver   # drivers are imported here, not above
        return ApiKeyResolver()

    @hookimpl
    def tenancy_resolvers():
        return [Provider(name="api-key", build=build)]

``TENANCY_RESOLUTION_STRATEGY=api-key`` then selects it, with no code in the application.

Rules:

* Hooks register, objects work: a hook is called once, at start-up, and returns providers. It is
  never called in a request.
* A name has one owner. If two distributions offer the same name (for isolation strategies: the
  same name for the same dialect), start-up fails and names both.
* ``build`` is synchronous, does no I/O, and may raise
  :class:`~tenancy_core.errors.ConfigurationError`. A product with resources is an async context
  manager; ``Tenancy`` enters it on opening and leaves it on closing.
* A module may state ``TENANCY_HOOK_API = 1``, the number of the hook API it was written for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import (
        AuditSink,
        CacheBackend,
        Check,
        Command,
        InvalidationBus,
        IsolationStrategy,
        Observer,
        RateLimiter,
        Resolver,
        TenantStore,
    )
    from tenancy_core.providers import Provider

__all__ = ["HOOK_API", "PROJECT", "hookimpl", "hookspec"]

PROJECT: Final = "tenancy"
"""The pluggy project and the entry-point group."""

HOOK_API: Final = 1
"""Number of this hook API. It changes when an implementation of the last one would break."""

hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@hookspec
def tenancy_resolvers() -> Iterable[Provider[Any, Resolver]]:
    """Return resolvers, selected by ``resolution_strategy``."""
    raise NotImplementedError


@hookspec
def tenancy_isolation_strategies() -> Iterable[Provider[Any, IsolationStrategy]]:
    """Return isolation strategies, keyed by name and dialect; see ``isolation_strategy``."""
    raise NotImplementedError


@hookspec
def tenancy_cache_backends() -> Iterable[Provider[Any, CacheBackend]]:
    """Return cache backends, selected by ``cache_backend``."""
    raise NotImplementedError


@hookspec
def tenancy_invalidation_buses() -> Iterable[Provider[Any, InvalidationBus]]:
    """Return buses that tell other processes of changes, selected by ``invalidation_bus``."""
    raise NotImplementedError


@hookspec
def tenancy_rate_limiters() -> Iterable[Provider[Any, RateLimiter]]:
    """Return rate limiters, selected by ``rate_limiter``."""
    raise NotImplementedError


@hookspec
def tenancy_stores() -> Iterable[Provider[Any, TenantStore]]:
    """Return tenant stores. ``sql`` is used unless a store object is passed to ``Tenancy``."""
    raise NotImplementedError


@hookspec
def tenancy_observers() -> Iterable[Provider[Any, Observer]]:
    """Return observers; every one that is installed is used."""
    raise NotImplementedError


@hookspec
def tenancy_audit_sinks() -> Iterable[Provider[Any, AuditSink]]:
    """Return audit sinks; every one that is installed is used."""
    raise NotImplementedError


@hookspec
def tenancy_checks() -> Iterable[Check]:
    """Return items for the production checklist."""
    raise NotImplementedError


@hookspec
def tenancy_commands() -> Iterable[Command]:
    """Return commands for the ``tenancy`` command line."""
    raise NotImplementedError
