"""Finds plugins by entry point and asks each of them, once, what it offers.

pluggy's own loader silently drops the second distribution with the same entry-point name and lets
an import error pass through without saying whose it is; so entry points are walked here, and
pluggy checks signatures and calls the hooks.
"""

from __future__ import annotations

import difflib
import inspect
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, cast

import pluggy
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from tenancy_core import hookspecs
from tenancy_core._plugins.registry import (
    AUDIT_SINK,
    BUS,
    CACHE,
    CORE,
    ISOLATION,
    LIMITER,
    OBSERVER,
    RESOLVER,
    STORE,
    Registry,
)
from tenancy_core.contract import Check, Command
from tenancy_core.errors import DuplicateProviderError, PluginLoadError
from tenancy_core.providers import Provider, Section

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from importlib.metadata import EntryPoint
    from types import ModuleType

__all__ = ["load_plugins"]

_HOOKS: Final = frozenset(name for name in vars(hookspecs) if name.startswith("tenancy_"))

_PROVIDERS: Final = {
    "tenancy_resolvers": RESOLVER,
    "tenancy_isolation_strategies": ISOLATION,
    "tenancy_cache_backends": CACHE,
    "tenancy_invalidation_buses": BUS,
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
    left_out = {_normal(name) for name in blocked}
    loaded: dict[str, str] = {}
    entries = entry_points(group=hookspecs.PROJECT) if found is None else found
    # The same order on every machine, the core first: in a clash it is never the one to block.
    for owner, entry in sorted(
        ((_owner(entry), entry) for entry in entries), key=lambda pair: (pair[0] != CORE, pair[0])
    ):
        if owner in left_out or loaded.get(owner) == entry.value:
            continue  # the same value again: a distribution that is seen twice on the path
        if owner in loaded:
            raise PluginLoadError(
                f"The plugin {owner} has more than one entry point in the group 'tenancy' "
                f"({loaded[owner]} and {entry.value}); one is allowed. {_way_out(owner)}"
            )
        loaded[owner] = entry.value
        _load(entry, owner, registry)
    return registry


def _owner(entry: EntryPoint) -> str:
    return _normal(entry.dist.name if entry.dist is not None else entry.name)


def _normal(name: str) -> str:
    # https://packaging.python.org/en/latest/specifications/name-normalization/
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _way_out(owner: str) -> str:
    return f"Upgrade it, uninstall it, or block it: TENANCY_PLUGINS_BLOCKED={owner}."


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()).removesuffix(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import(entry: EntryPoint, owner: str, way_out: str) -> ModuleType:
    if entry.pattern.match(entry.value) is None:
        raise PluginLoadError(
            f"The plugin {owner} has the entry point {entry.value!r}, which names no module; its "
            f"value is written like acme_tenancy._plugin. {way_out}"
        )
    try:
        module: ModuleType = entry.load()
    except Exception as error:
        raise PluginLoadError(
            f"The plugin {owner} cannot be imported ({_in_a_line(error)}). {way_out}"
        ) from error
    api = getattr(module, "TENANCY_HOOK_API", hookspecs.HOOK_API)
    if api != hookspecs.HOOK_API:
        if type(api) is int and api > hookspecs.HOOK_API:
            way_out = (
                "Upgrade tenancy-core, or block the plugin: "  # it is not the plugin that is old
                f"TENANCY_PLUGINS_BLOCKED={owner}."
            )
        raise PluginLoadError(
            f"The plugin {owner} was written for hook API {api!r}; this tenancy-core has "
            f"{hookspecs.HOOK_API}. {way_out}"
        )
    if (flaw := _flaw(module, entry)) is not None:
        raise PluginLoadError(f"The plugin {owner} {flaw}. {way_out}")
    return module


def _load(entry: EntryPoint, owner: str, registry: Registry) -> None:
    way_out = _way_out(owner)
    module = _import(entry, owner, way_out)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name=owner)
    except pluggy.PluginValidationError as error:
        raise PluginLoadError(
            f"The plugin {owner} implements a hook in a way that pluggy refuses "
            f"({_in_a_line(error)}). {way_out}"
        ) from error
    for name, kind in _PROVIDERS.items():
        for provider in _call(manager, name, owner, Provider, way_out):
            if (flaw := _flaw_of_section(provider.section)) is not None:
                raise PluginLoadError(f"The {kind} {provider.name!r} of {owner} {flaw}. {way_out}")
            registry.add(kind, provider, owner)
    for check in _call(manager, "tenancy_checks", owner, Check, way_out):
        _refuse_taken(check.name, owner, registry.checks, "check")
        registry.checks.append((check, owner))
    for command in _call(manager, "tenancy_commands", owner, Command, way_out):
        _refuse_taken(command.name, owner, registry.commands, "command")
        registry.commands.append((command, owner))


def _flaw(module: ModuleType, entry: EntryPoint) -> str | None:
    """Say which hook of a module would be called wrongly or, worse, never."""
    hooks = 0
    for name in dir(module):
        function: Any = getattr(module, name, None)
        marked: object = getattr(function, f"{hookspecs.PROJECT}_impl", None)
        if not isinstance(marked, dict):
            is_spec = hasattr(function, f"{hookspecs.PROJECT}_spec")
            if name in _HOOKS and inspect.isfunction(function) and not is_spec:
                return f"defines {name} without @hookimpl, so it would never be called"
            continue
        options = cast("dict[str, Any]", marked)
        hook: str = options["specname"] or name
        if hook not in _HOOKS and not options["optionalhook"]:
            near = difflib.get_close_matches(hook, sorted(_HOOKS), n=1)
            return f"implements the hook {hook!r}, which does not exist" + (
                f" (did you mean {near[0]!r}?)"
                if near
                else f"; there is {', '.join(sorted(_HOOKS))}"
            )
        if inspect.iscoroutinefunction(function):
            return f"implements {name} as async def; hooks are called at start-up, without a loop"
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ]
        if needed and hook in _HOOKS:
            return f"implements {name}({', '.join(needed)}), and a hook takes no arguments"
        hooks += 1
    if not hooks:
        return (
            f"implements no hook: nothing in {entry.value}, which its entry point names, is marked "
            "with @hookimpl"
        )
    return None


def _flaw_of_section(section: Section[Any] | None) -> str | None:
    """Say what keeps a section from being read."""
    if section is None:
        return None
    if not isinstance(section, Section):  # pyright: ignore[reportUnnecessaryIsInstance]
        return "has a section that is no tenancy_core.providers.Section(name, model)"
    model: Any = section.model
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        return f"describes its section {section.name!r} by something that is no pydantic model"
    if issubclass(model, BaseSettings):
        return (
            f"describes its section {section.name!r} by a BaseSettings, which would read variables "
            "of its own accord; a section is a pydantic BaseModel"
        )
    return None


def _call(
    manager: pluggy.PluginManager, name: str, owner: str, wanted: type[Any], way_out: str
) -> list[Any]:
    hook: pluggy.HookCaller = getattr(manager.hook, name)
    try:
        # pluggy leaves None out: a hook that forgot to return would go unnoticed.
        answers: list[Any] = hook() or [None for _ in hook.get_hookimpls()]
        lists: list[Any] = [list(part) if hasattr(part, "__iter__") else part for part in answers]
    except Exception as error:
        raise PluginLoadError(
            f"The hook {name} of {owner} failed ({_in_a_line(error)}). {way_out}"
        ) from error
    items: list[Any] = []
    for part in lists:
        if type(part) is not list:
            raise PluginLoadError(
                f"The hook {name} of {owner} returned {type(part).__name__} where a list of "
                f"{wanted.__name__} is allowed. {way_out}"
            )
        items += part
    for item in items:
        if not isinstance(item, wanted):
            raise PluginLoadError(
                f"The hook {name} of {owner} returned a list with {type(item).__name__} where "
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
