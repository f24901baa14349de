"""How a plugin offers a product, and what it is given to build it with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import MetaData

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import TenantStore
    from tenancy_core.crypto import TenantSecrets
    from tenancy_core.sql.budget import ConnectionBudget

__all__ = ["BuildContext", "Provider", "Section"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SECTION: Final = re.compile(r"[a-z][a-z0-9_]*")

SectionT = TypeVar("SectionT")
ProductT_co = TypeVar("ProductT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Section(Generic[SectionT]):
    """A plugin's own settings: ``TENANCY_<NAME>_<FIELD>``.

    Attributes:
        name: Lower-case, for instance ``sqlite`` for ``TENANCY_SQLITE_ROOT``.
        model: A pydantic model; each of its fields is one variable, and each that is a
            ``SecretStr`` also has ``TENANCY_<NAME>_<FIELD>_FILE``.
    """

    name: str
    model: type[SectionT]

    def __post_init__(self) -> None:
        if _SECTION.fullmatch(self.name) is None:
            raise ValueError(f"A section's name is a-z, 0-9 and underscores, not {self.name!r}.")


@dataclass(frozen=True, slots=True)
class Provider(Generic[SectionT, ProductT_co]):
    """One product under one name.

    Attributes:
        name: What the settings say to select it.
        build: Makes the product: synchronous, no I/O, imports the driver. Its second argument is
            the validated section, or None where there is none.
        section: The plugin's settings, or None.
        dialects: SQLAlchemy dialect names an isolation strategy is for; empty means any.
    """

    name: str
    build: Callable[[BuildContext, Any], ProductT_co]
    section: Section[SectionT] | None = None
    dialects: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(
                f"A provider's name is letters, digits, '-', '_' and '.', not {self.name!r}."
            )
        if isinstance(self.dialects, str):
            raise TypeError(f"dialects is a set of names: frozenset({{{self.dialects!r}}}).")


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What the core hands to a provider's ``build``.

    Attributes:
        config: The validated settings.
        metadata: The application's tables, created when a tenant is provisioned; None if the
            application creates them itself.
        connections: The process's one ceiling on database connections.
        store: The tenant store; None while the store itself is being built.
        clock: Seconds, never going back; for what this process caches and counts on its own.
        secrets: Tenants' secrets; None while the store is being built, and without encryption.
    """

    config: TenancyConfig
    metadata: MetaData | None
    connections: ConnectionBudget
    store: TenantStore | None = None
    clock: Callable[[], float] = monotonic
    secrets: TenantSecrets | None = None
