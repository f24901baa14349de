"""Finds plugins by entry point and asks each of them, once, what it offers.

pluggy's own loader silently drops the second distribution with the same entry-point name and lets
an import error pass through without saying whose it is; so entry points are walked here, and
pluggy checks signatures and calls the hooks.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

import pluggy

from tenancy_core import hookspecs
from tenancy_core._plugins.registry import (
    AUDIT_SINK,
    CACHE,
    ISOLATION,
    LIMITER,
    OBSERVER,
    RESOLVER,
    STORE,
    Registry,
)
from tenancy_core.contract import Check, Command
from tenancy_core.errors import DuplicateProviderError, PluginLoadError
from tenancy_core.providers import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from importlib.metadata import EntryPoint

__all__ = ["load_plugins"]

_PROVIDERS: Final = {
    "tenancy_resolvers": RESOLVER,
    "tenancy_isolation_strategies": ISOLATION,
    "tenancy_cache_backends": CACHE,
    "tenancy_rate_limiters": LIMITER,
    "tenancy_stores": STORE,
    "tenancy_observers": OBSERVER,
    "tenancy_audit_sinks": AUDIT_SINK,
}


def load_plugins(
    *,
    blocked: Collection[str] = (),
    found: Iterable[EntryPoint] | None = None,
) -> Registry:
    """Load every installed plugin.

    Args:
        blocked: Distributions that are left out (``TENANCY_PLUGINS_BLOCKED``).
        found: Entry points to use instead of the installed ones.

    Raises:
        PluginLoadError: A module cannot be imported, does not fit, or a hook fails; names the
            distribution.
        DuplicateProviderError: Two distributions offer the same name; names both.
    """
    registry = Registry()
    owners: dict[str, str] = {}
    for entry in found if found is not None else entry_points(group=hookspecs.PROJECT):
        owner = _normal(entry.dist.name if entry.dist is not None else entry.name)
        if owner in {_normal(name) for name in blocked}:
            continue
        if owners.get(owner) == entry.value:
            continue  # the same distribution, seen twice on the path
        if owner in owners:
            raise PluginLoadError(
                f"{owner} has more than one entry point in the group 'tenancy'; one is allowed."
            )
        owners[owner] = entry.value
        _load(entry, owner, registry)
    return registry


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _load(entry: EntryPoint, owner: str, registry: Registry) -> None:
    way_out = f"Upgrade it, uninstall it, or block it: TENANCY_PLUGINS_BLOCKED={owner}."
    try:
        module: Any = entry.load()
    except Exception as error:
        raise PluginLoadError(
            f"The plugin {owner} cannot be imported ({type(error).__name__}: {error}). {way_out}"
        ) from error
    api = getattr(module, "TENANCY_HOOK_API", hookspecs.HOOK_API)
    if api != hookspecs.HOOK_API:
        raise PluginLoadError(
            f"The plugin {owner} was written for hook API {api!r}; this tenancy-core has "
            f"{hookspecs.HOOK_API}. {way_out}"
        )
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name=owner)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginLoadError(
            f"The plugin {owner} implements a hook that does not exist or has another signature: "
            f"{error}. {way_out}"
        ) from error
    for name, kind in _PROVIDERS.items():
        for provider in _call(manager, name, owner, Provider, way_out):
            registry.add(kind, provider, owner)
    for check in _call(manager, "tenancy_checks", owner, Check, way_out):
        _refuse_taken(check.name, owner, registry.checks, "check")
        registry.checks.append((check, owner))
    for command in _call(manager, "tenancy_commands", owner, Command, way_out):
        _refuse_taken(command.name, owner, registry.commands, "command")
        registry.commands.append((command, owner))


def _call(
    manager: pluggy.PluginManager, name: str, owner: str, wanted: type[Any], way_out: str
) -> list[Any]:
    hook: Callable[[], list[Iterable[Any]]] = getattr(manager.hook, name)
    try:
        items = [item for part in hook() for item in part]
    except Exception as error:
        raise PluginLoadError(
            f"The hook {name} of {owner} raised {type(error).__name__}: {error}. {way_out}"
        ) from error
    for item in items:
        if not isinstance(item, wanted):
            raise PluginLoadError(
                f"The hook {name} of {owner} returned {type(item).__name__} where "
                f"{wanted.__name__} is allowed. {way_out}"
            )
    return items


def _refuse_taken(name: str, owner: str, known: list[tuple[Any, str]], what: str) -> None:
    for item, other in known:
        if item.name == name:
            raise DuplicateProviderError(
                f"The {what} {name!r} is offered by {other} and by {owner}. "
                f"Uninstall one of them, or block it: TENANCY_PLUGINS_BLOCKED={owner}."
            )
