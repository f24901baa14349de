"""Everything that plugins offer, by kind and name, with the distribution that owns each name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tenancy_core._plugins.catalogue import BRINGS, DATABASES
from tenancy_core.config import is_reserved, secret_settings
from tenancy_core.errors import (
    DuplicateProviderError,
    UnknownProviderError,
    UnsupportedCombinationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tenancy_core.contract import Check, Command
    from tenancy_core.providers import Provider, Section

__all__ = ["ISOLATION", "Offer", "Registry"]

CORE: Final = "tenancy-core"
"""The distribution that is its own first plugin."""

RESOLVER: Final = "resolver"
ISOLATION: Final = "isolation strategy"
CACHE: Final = "cache backend"
BUS: Final = "invalidation bus"
LIMITER: Final = "rate limiter"
STORE: Final = "tenant store"
OBSERVER: Final = "observer"
AUDIT_SINK: Final = "audit sink"


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider and who brought it.

    Attributes:
        provider: What the plugin registered.
        owner: Name of its distribution.
    """

    provider: Provider[Any, Any]
    owner: str


@dataclass(slots=True)
class Registry:
    """The tables that the hooks filled.

    Attributes:
        checks: Items of the production checklist.
        commands: Commands of the command line.
    """

    checks: list[tuple[Check, str]] = field(default_factory=list["tuple[Check, str]"])
    commands: list[tuple[Command, str]] = field(default_factory=list["tuple[Command, str]"])
    _offers: dict[str, dict[str, Offer]] = field(default_factory=dict[str, dict[str, Offer]])
    _sections: dict[str, tuple[Section[Any], str]] = field(
        default_factory=dict[str, "tuple[Section[Any], str]"]
    )

    def add(self, kind: str, provider: Provider[Any, Any], owner: str) -> None:
        """Put a provider into its table.

        Raises:
            DuplicateProviderError: The name, or its section's name, has another owner.
        """
        table = self._offers.setdefault(kind, {})
        keys = [provider.name]
        if kind == ISOLATION and provider.dialects:
            keys = [f"{provider.name}@{dialect}" for dialect in sorted(provider.dialects)]
        for key in keys:
            taken = _taken(table, key)
            if taken is not None:
                raise DuplicateProviderError(
                    f"The {kind} {key!r} is offered by {taken.owner} and by {owner}. "
                    "Uninstall one of them, or block it: TENANCY_PLUGINS_BLOCKED="
                    f"{owner}."
                )
            table[key] = Offer(provider, owner)
        section = provider.section
        if section is not None:
            known = self._sections.setdefault(section.name, (section, owner))
            if known[1] != owner:
                raise DuplicateProviderError(
                    f"The settings section {section.name!r} is used by {known[1]} and by {owner}. "
                    f"Uninstall one of them, or block it: TENANCY_PLUGINS_BLOCKED={owner}."
                )
            if known[0].model is not section.model:
                raise DuplicateProviderError(
                    f"{owner} describes its settings section {section.name!r} by two models. "
                    f"Upgrade it, or block it: TENANCY_PLUGINS_BLOCKED={owner}."
                )

    @property
    def sections(self) -> Sequence[str]:
        """Names of all settings sections, sorted."""
        return sorted(self._sections)

    def section_variables(self, flat: Iterable[str]) -> dict[str, str]:
        """Return the variables of all sections with their owners.

        Raises:
            DuplicateProviderError: One of them is a flat setting of the core, or another plugin's.
        """
        core = set(flat)
        found: dict[str, str] = {}
        for name, (section, owner) in self._sections.items():
            secret = secret_settings(section.model)
            for setting in section.model.model_fields:
                variable = f"TENANCY_{name.upper()}_{setting.upper()}"
                for spelling in (variable, *([f"{variable}_FILE"] if setting in secret else [])):
                    other = CORE if spelling in core or is_reserved(spelling) else None
                    if (other := other or found.get(spelling)) is not None:
                        raise DuplicateProviderError(
                            f"{owner} calls a setting {spelling}, which is a setting of {other}. "
                            f"Block the plugin: TENANCY_PLUGINS_BLOCKED={owner}."
                        )
                    found[spelling] = owner
        return found

    def names(self, kind: str) -> Sequence[str]:
        """Return the names of a kind, sorted."""
        return sorted(self._offers.get(kind, {}))

    def offers(self, kind: str) -> Sequence[Offer]:
        """Return all offers of a kind, in the order of their names."""
        table = self._offers.get(kind, {})
        return [table[name] for name in sorted(table)]

    def find(self, kind: str, name: str, setting: str) -> Offer:
        """Return the offer of a name.

        Raises:
            UnknownProviderError: Nobody offers it; says what exists and what to install.
        """
        found = self._offers.get(kind, {}).get(name)
        if found is not None:
            return found
        names = self.names(kind)
        brings = BRINGS.get((kind, name))
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        raise UnknownProviderError(
            f"{setting} asks for the {kind} {name!r}, which nothing that is installed offers. "
            f"There is {_listed(names)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + (f" It comes with: pip install {brings}" if brings else "")
        )

    def find_isolation(self, name: str, dialect: str) -> Offer:
        """Return the isolation strategy of a name for a database.

        Raises:
            UnknownProviderError: Nothing is installed for the database, or nobody knows the name.
            UnsupportedCombinationError: The strategy exists, but not on this database.
        """
        table = self._offers.get(ISOLATION, {})
        found = table.get(f"{name}@{dialect}") or table.get(name)
        if found is not None:
            return found
        here = sorted(
            key.partition("@")[0] for key in table if "@" not in key or key.endswith(f"@{dialect}")
        )
        package = DATABASES.get(dialect)
        if not here:
            raise UnknownProviderError(
                f"TENANCY_DATABASE_URL is a {dialect} database, and no isolation strategy for it "
                "is installed." + (f" Run: pip install {package}" if package else "")
            )
        elsewhere = sorted(
            {key.partition("@")[2] for key in table if key.startswith(f"{name}@")}
            | {
                key.partition("@")[2]
                for kind, key in BRINGS
                if kind == ISOLATION and key.startswith(f"{name}@")
            }
        )
        if f"{name}@{dialect}" in {key for kind, key in BRINGS if kind == ISOLATION}:
            raise UnknownProviderError(
                f"TENANCY_ISOLATION_STRATEGY asks for {name!r}, which the installed version of "
                f"{package} does not offer. On {dialect} there is {_listed(here)}."
            )
        if elsewhere:
            packages = sorted({DATABASES[there] for there in elsewhere if there in DATABASES})
            raise UnsupportedCombinationError(
                f"TENANCY_ISOLATION_STRATEGY asks for {name!r}, which {dialect} does not have. "
                f"On {dialect} there is {_listed(here)}: set TENANCY_ISOLATION_STRATEGY={here[0]}, "
                f"or use another database ({name!r} is there for {_listed(elsewhere)}"
                + (f": pip install {' or '.join(packages)})." if packages else ").")
            )
        near = difflib.get_close_matches(name, here, n=1, cutoff=0.6)
        raise UnknownProviderError(
            f"TENANCY_ISOLATION_STRATEGY asks for {name!r}, which nothing that is installed "
            f"offers. On {dialect} there is {_listed(here)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )


def _taken(table: dict[str, Offer], key: str) -> Offer | None:
    """Return who has a key; a strategy for every dialect has its name on each of them."""
    if (found := table.get(key)) is not None:
        return found
    name, _, dialect = key.partition("@")
    if dialect:
        return table.get(name)
    return next((offer for taken, offer in table.items() if taken.startswith(f"{key}@")), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) if names else "none"
