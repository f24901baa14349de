"""An item of the production checklist: who is not where the settings would put them now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import Check, Finding, Severity
from tenancy_core.tenant import TenantStatus
from tenancy_postgres.hybrid.isolation import HybridIsolation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenancy_core.tenant import Tenant

__all__ = ["TIER"]

_NAME: Final = "postgres.tier"

_SHOWN: Final = 10
"""Most tenants that a finding names."""

_REMEDY: Final = (
    "A plan decides once, when a tenant is created; only moving its data changes it. Move them, or "
    "make TENANCY_PREMIUM_PLANS and TENANCY_PREMIUM_TENANTS say what is so."
)
_MISSING: Final = (
    "Name it in TENANCY_STANDARD_ISOLATION_STRATEGY or TENANCY_PREMIUM_ISOLATION_STRATEGY: its "
    "tenants are served, and can be moved, only while it is one of the two."
)


@dataclass
class _Group:
    count: int = 0
    names: list[str] = field(default_factory=list[str])

    def add(self, tenant: Tenant) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.names.append(tenant.identifier)

    def __str__(self) -> str:
        more = ", …" if self.count > _SHOWN else ""
        return f"{self.count} ({', '.join(self.names)}{more})"


async def _tenants_are_in_their_tier(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401 - as Check says
    isolation = tenancy.parts.isolation
    if not isinstance(isolation, HybridIsolation):
        return []
    groups: dict[tuple[str, str], _Group] = {}
    async for tenant in tenancy.tenants.iterate():
        suggested = isolation.suggested(tenant)
        if tenant.status is not TenantStatus.ERASED and tenant.isolation != suggested:
            group = groups.setdefault((tenant.isolation, suggested), _Group())
            group.add(tenant)
    return [_finding(isolation, *pair, group) for pair, group in sorted(groups.items())]


def _finding(isolation: HybridIsolation, found: str, suggested: str, group: _Group) -> Finding:
    standard, premium = isolation.tiers
    if found not in isolation.tiers:
        return Finding(
            _NAME,
            Severity.ERROR,
            f"Tenants of {found!r} are refused, because this service has {standard!r} and "
            f"{premium!r}: {group}.",
            _MISSING,
        )
    if suggested == premium:
        severity, would = Severity.WARNING, "would be premium if they were created now"
    else:
        severity, would = Severity.INFO, "would be standard if they were created now"
    return Finding(
        _NAME, severity, f"Tenants of {found!r} {would}, in {suggested!r}: {group}.", _REMEDY
    )


TIER: Final = Check(
    _NAME,
    "Tenants are in the tier that their plan asks for",
    _tenants_are_in_their_tier,
)
