"""What a tenant may be called, which plan and limits it may have, and what follows on what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import RateLimit
from tenancy_core.errors import InvalidTransition
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Collection

    from tenancy_core.config import TenancyConfig
    from tenancy_core.tenant import Tenant

__all__ = [
    "ARCHIVE",
    "CREATE",
    "ERASE",
    "OPERATIONS",
    "SERVED",
    "UNFINISHED",
    "check_limits",
    "check_metadata",
    "check_name",
    "check_plan",
    "check_secret_name",
    "require_status",
]

UNFINISHED: Final = frozenset({TenantStatus.PROVISIONING, TenantStatus.FAILED})
SERVED: Final = frozenset({TenantStatus.ACTIVE, TenantStatus.SUSPENDED})

CREATE: Final = "create"
ARCHIVE: Final = "archive"
ERASE: Final = "erase"
OPERATIONS: Final = (CREATE, ARCHIVE, ERASE)
"""What has a journal."""

_LIMITS: Final = frozenset({"rate_limit_per_minute", "rate_limit_burst"})
_MOST_NAME: Final = 200
_SECRET_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Refuse a name for people that is empty, too long, or breaks a line or a terminal.

    Raises:
        ValueError: Says so.
    """
    if not 1 <= len(name) <= _MOST_NAME or not name.isprintable() or name.strip() != name:
        raise ValueError(
            f"A tenant's name is 1 to {_MOST_NAME} printable characters, without spaces at its "
            "ends."
        )


def check_plan(plan: str | None, config: TenancyConfig) -> None:
    """Refuse a plan that the setting ``plans`` does not have; any, if that is empty.

    Raises:
        ValueError: Says so.
    """
    if plan is not None and config.plans and plan not in config.plans:
        raise ValueError(
            f"There is no plan {plan!r}; TENANCY_PLANS has {', '.join(sorted(config.plans))}."
        )
    if plan is not None and not (0 < len(plan) <= 64 and plan.isprintable()):  # noqa: PLR2004 - width of the column
        raise ValueError("A plan's name is 1 to 64 printable characters.")


def check_limits(limits: Mapping[str, int], plan: str | None, config: TenancyConfig) -> None:
    """Refuse limits that are unknown or cannot be kept.

    Raises:
        ValueError: Says so.
    """
    for key, value in limits.items():
        if key not in _LIMITS:
            raise ValueError(f"There is no limit {key!r}; there is {', '.join(sorted(_LIMITS))}.")
        if type(value) is not int or value < 1:
            raise ValueError(f"The limit {key!r} is a whole number from 1.")
    count = limits.get("rate_limit_per_minute", config.plan_limit(plan).count)
    RateLimit(count, burst=limits.get("rate_limit_burst", 0))


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that is no dict; what is in it is checked where it is sealed.

    Raises:
        ValueError: Says so.
    """
    if not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # any JSON
        raise ValueError(  # noqa: TRY004 - as for everything else that is no JSON there
            f"Metadata is a dict of JSON values, not a {type(metadata).__name__}."
        )


def check_secret_name(name: str) -> None:
    """Refuse a secret's name that is malformed.

    Raises:
        ValueError: Says so.
    """
    if _SECRET_NAME.fullmatch(name) is None:
        raise ValueError(
            "A secret's name is 1 to 64 characters: a letter, then letters, digits, '.', '_' and "
            "'-', all lower-case."
        )


def require_status(tenant: Tenant, allowed: Collection[TenantStatus], what: str) -> None:
    """Refuse what the tenant's status does not allow.

    Args:
        tenant: Whom.
        allowed: In which status.
        what: Completes "it cannot …".

    Raises:
        InvalidTransition: Says so.
    """
    if tenant.status not in allowed:
        raise InvalidTransition(
            f"Tenant {tenant.identifier or tenant.id} is {tenant.status}; it cannot {what}. "
            f"It would have to be {' or '.join(sorted(allowed))}.{_way_out(tenant.status, allowed)}"
        )


def _way_out(status: TenantStatus, allowed: Collection[TenantStatus]) -> str:
    if status in SERVED and TenantStatus.ARCHIVED in allowed:
        return " Call archive() first."
    if status is TenantStatus.ARCHIVED and SERVED & set(allowed):
        return " Call restore() first."
    if status in UNFINISHED and SERVED & set(allowed):
        return " Call create() again, or reconcile(), first."
    return ""
