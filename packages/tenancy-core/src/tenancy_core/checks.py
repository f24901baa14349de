"""The production checklist: what the installed packages check, and the runner."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import anyio

from tenancy_core._background import on_asyncio, outlast
from tenancy_core.config import ANY, INSTANCE_KEY
from tenancy_core.contract import Check, Finding, Severity
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CORE_CHECKS", "run_checks"]

_PATIENCE: Final = 30.0
"""Seconds that one item may take. Whoever looks for longer waits for something that hangs."""


async def run_checks(
    tenancy: Any,  # noqa: ANN401 - Tenancy is above
    checks: Iterable[Check],
    *,
    patience: float = _PATIENCE,
) -> list[Finding]:
    """Run every check; one that fails, or does not end, is itself a finding, never a pass.

    Args:
        tenancy: The open ``Tenancy``.
        checks: Run one after the other.
        patience: Seconds for each.

    Returns:
        All findings, the worst first.
    """
    findings: list[Finding] = []
    for check in checks:
        try:
            with anyio.move_on_after(patience) as time:
                found = list(await _run(check, tenancy))
                for finding in found:
                    if not isinstance(finding, Finding):  # pyright: ignore[reportUnnecessaryIsInstance]
                        raise TypeError(f"{type(finding).__name__} is no Finding")
                findings += found
            if time.cancelled_caught:
                findings.append(_without_answer(check, patience))
        except Exception as error:  # noqa: BLE001 - a check must not hide the others
            findings.append(
                Finding(
                    check.name,
                    Severity.ERROR,
                    f"The check itself failed: it raised {type(error).__name__}.",
                    "Mend what it needs, or report it to the package that brings it.",
                )
            )
    order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
    return sorted(findings, key=lambda finding: (order.index(finding.severity), finding.check))


async def _run(check: Check, tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401 - as above
    """Run a check so that nobody waits for it, nor for its clean-up, once the time is over."""

    async def run() -> Sequence[Finding]:
        return await check.run(tenancy)

    return await (outlast(run(), _end) if on_asyncio() else run())


async def _end(left: asyncio.Task[Sequence[Finding]]) -> None:
    left.cancel()
    # What it comes to is nobody's any more.
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await left


def _without_answer(check: Check, patience: float) -> Finding:
    return Finding(
        check.name,
        Severity.ERROR,
        f"This could not be looked at: there was no answer within {patience:g} seconds.",
        "See whether what it asks still answers, and check again.",
    )


async def _control_database_is_separate(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    config = tenancy.config
    if config.dialect == "sqlite" or config.control_database_url is not None:
        return []
    return [
        Finding(
            "core.control-database",
            Severity.WARNING,
            "The tenant store uses the application's own database role.",
            "Set TENANCY_CONTROL_DATABASE_URL to a role that tenant sessions do not use.",
        )
    ]


async def _echo_is_off(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    if not tenancy.config.database_echo:
        return []
    return [
        Finding(
            "core.database-echo",
            Severity.WARNING,
            "Every SQL statement is logged.",
            "Unset TENANCY_DATABASE_ECHO in production.",
        )
    ]


async def _audit_is_on(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    if tenancy.config.enable_audit_logging:
        return []
    return [
        Finding(
            "core.audit-logging",
            Severity.WARNING,
            "Changes of tenants leave no trace.",
            "Unset TENANCY_ENABLE_AUDIT_LOGGING; on is the default.",
        )
    ]


async def _tenants_are_proven(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    config = tenancy.config
    if config.require_verified_tenant or tenancy.proves_membership:
        return []
    if config.resolution_strategy == ("jwt",):
        return []
    return [
        Finding(
            "core.proof",
            Severity.WARNING,
            "Whoever names a tenant is served as that tenant: nothing proves the claim.",
            "Pass Tenancy(membership=…), or set TENANCY_REQUIRE_VERIFIED_TENANT=true with a "
            "resolver that proves its claims.",
        )
    ]


async def _tokens_are_bound(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    config = tenancy.config
    if "jwt" not in config.resolution_strategy:
        return []
    waived = [
        ("audience", "were made for another service", "aud")
        for issuer in config.token_issuers
        if ANY in issuer.audience
    ]
    if config.jwt_issuer == ANY:
        waived.append(("issuer", "come from another issuer with the same key", "iss"))
    return [
        Finding(
            "core.jwt",
            Severity.WARNING,
            f"The {what} of tokens is waived ('*'): those that {others} are accepted as well.",
            f"Let the issuer write the claim {claim}, and name what it says in the settings.",
        )
        for what, others, claim in dict.fromkeys(waived)
    ]


async def _metrics_are_installed(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    if not tenancy.config.enable_metrics or tenancy.observed:
        return []
    return [
        Finding(
            "core.metrics",
            Severity.INFO,
            "Metrics are on by default, and no package that collects them is installed.",
            "Install an observer plugin, or ignore this.",
        )
    ]


async def _soft_delete_is_on(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    if tenancy.config.enable_soft_delete:
        return []
    return [
        Finding(
            "core.soft-delete",
            Severity.WARNING,
            "A tenant that is served can be erased in one call.",
            "Unset TENANCY_ENABLE_SOFT_DELETE; on is the default: archive first, then erase.",
        )
    ]


async def _seals_are_kept_apart(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    config = tenancy.config
    keys = [key.get_secret_value() for key in config.signing_keys] or [INSTANCE_KEY]
    if keys[0] != INSTANCE_KEY or not config.enable_audit_logging:
        return []
    return [
        Finding(
            "core.signing-keys",
            Severity.INFO,
            "The key that seals the audit log lies in the database that holds the log.",
            "Set TENANCY_SIGNING_KEYS: then who can only write to the database cannot forge it.",
        )
    ]


async def _nothing_is_half_way(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401
    erased = created = 0
    async for tenant in tenancy.tenants.unfinished():
        if tenant.status is TenantStatus.ARCHIVED:
            erased += 1
        else:
            created += 1
    found = (
        ("creation", created, "it finishes them, or with remove=True erases them"),
        ("erasure", erased, "it finishes them"),
    )
    return [
        Finding(
            "core.unfinished",
            Severity.WARNING,
            f"Tenants whose {what} was begun and not finished: {number}.",
            f"Call tenancy.tenants.reconcile(): {remedy}.",
        )
        for what, number, remedy in found
        if number
    ]


CORE_CHECKS: Final = (
    Check(
        "core.control-database",
        "The tenant store has a role of its own",
        _control_database_is_separate,
    ),
    Check("core.database-echo", "SQL statements are not logged", _echo_is_off),
    Check("core.soft-delete", "A tenant is archived before it is erased", _soft_delete_is_on),
    Check("core.signing-keys", "The audit log's key is not beside the log", _seals_are_kept_apart),
    Check("core.unfinished", "No tenant is half-way", _nothing_is_half_way),
    Check("core.audit-logging", "Changes of tenants are audited", _audit_is_on),
    Check("core.proof", "Tenants are proven, not only named", _tenants_are_proven),
    Check("core.jwt", "Tokens are bound to an issuer and an audience", _tokens_are_bound),
    Check("core.metrics", "Metrics are collected", _metrics_are_installed),
)
"""The items that the core brings."""
