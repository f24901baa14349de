"""What a tenant is: the identifier rule and the immutable record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from tenancy_core.errors import InvalidIdentifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

__all__ = [
    "IDENTIFIER_MAX_BYTES",
    "IDENTIFIER_PATTERN",
    "Placement",
    "Tenant",
    "TenantStatus",
    "not_found",
    "thaw",
    "validate_identifier",
]

IDENTIFIER_MAX_BYTES: Final = 48
"""Longest identifier, in bytes: leaves room for prefix and hash in a 63-byte database name."""

IDENTIFIER_PATTERN: Final = "^[a-z0-9](-?[a-z0-9])*$"
"""The rule as an ECMA regular expression, for JSON Schema."""

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_IDENTIFIER: Final = re.compile(r"[a-z0-9](?:-?[a-z0-9])*")


def validate_identifier(value: str, /) -> str:
    """Return ``value`` if it is a canonical identifier; never repair it.

    Args:
        value: What the outside world calls the tenant.

    Returns:
        The same string.

    Raises:
        InvalidIdentifier: It is not ASCII ``[a-z0-9](-?[a-z0-9])*`` or longer than 48 bytes. The
            message does not repeat the value, which an attacker may have chosen.
    """
    if len(value) > IDENTIFIER_MAX_BYTES or _IDENTIFIER.fullmatch(value) is None:
        raise InvalidIdentifier(
            "A tenant identifier is 1 to 48 characters of a-z and 0-9, with single hyphens inside."
        )
    return value


def not_found(wanted: object, /) -> str:
    """Say that there is no such tenant.

    Args:
        wanted: An identifier or an id, as it was asked for.
    """
    hint = ""
    if isinstance(wanted, str) and _ID.fullmatch(wanted) is not None:
        hint = " That looks like an id: pass it as a UUID, UUID('…')."
    return f"There is no tenant {str(wanted)!r}.{hint}"


class TenantStatus(StrEnum):
    """``provisioning → active ⇄ suspended → archived → erased``, and ``failed``."""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    ARCHIVED = "archived"
    ERASED = "erased"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tenant's data lives; fixed at creation, never a URL or a credential.

    Attributes:
        server: Alias of a database server; ``default`` is the one of ``database_url``.
        name: Derived name of the schema, database or file, unique in the store.
    """

    server: str = "default"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer, as the store knows it at ``version``. Immutable, hashed by ``id``.

    Attributes:
        id: Immutable key of all data.
        identifier: What the outside world says (``acme``); may be renamed.
        name: For people.
        status: See :class:`TenantStatus`.
        plan: Name of the plan, a key of the setting ``plans``, or None.
        limits: Overrides of the plan for this tenant, such as ``rate_limit_per_minute``.
        isolation: Name of the strategy that holds its data.
        placement: Where that strategy put it.
        metadata: The application's own JSON values; not printed.
        version: Increases by one with every change.
        created_at: Aware, UTC.
        updated_at: Aware, UTC.
    """

    id: UUID
    identifier: str
    name: str
    status: TenantStatus
    created_at: datetime
    updated_at: datetime
    isolation: str
    plan: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    placement: Placement = Placement()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    version: int = 1

    def __post_init__(self) -> None:
        # The record is shared by all requests of a process, so what hangs on it is frozen too.
        object.__setattr__(self, "limits", MappingProxyType(dict(self.limits)))
        object.__setattr__(self, "metadata", _freeze(self.metadata))

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def active(self) -> bool:
        """Whether requests are served."""
        return self.status is TenantStatus.ACTIVE


def _freeze(value: Any) -> Any:  # noqa: ANN401 - JSON has no closed type
    if isinstance(value, (dict, MappingProxyType)):
        items = cast("Mapping[str, Any]", value)
        return MappingProxyType({key: _freeze(item) for key, item in items.items()})
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in cast("Sequence[Any]", value))
    return value


def thaw(value: Any) -> Any:  # noqa: ANN401 - JSON has no closed type
    """Return a frozen ``metadata`` or ``limits`` as plain, JSON-serialisable dicts and lists."""
    if isinstance(value, (dict, MappingProxyType)):
        items = cast("Mapping[str, Any]", value)
        return {key: thaw(item) for key, item in items.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in cast("Sequence[Any]", value)]
    return value
