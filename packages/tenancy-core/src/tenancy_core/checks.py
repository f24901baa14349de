"""The production checklist: what the installed packages check, and the runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import Check, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CORE_CHECKS", "run_checks"]


async def run_checks(tenancy: Any, checks: Iterable[Check]) -> list[Finding]:  # noqa: ANN401 - Tenancy is above
    """Run every check; one that fails is itself a finding, never a pass.

    Returns:
        All findings, the worst first.
    """
    findings: list[Finding] = []
    for check in checks:
        try:
            found = list(await check.run(tenancy))
            for finding in found:
                if not isinstance(finding, Finding):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise TypeError(f"{type(finding).__name__} is no Finding")
            findings += found
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
    if tenancy.config.require_verified_tenant or tenancy.proves_membership:
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


CORE_CHECKS: Final = (
    Check(
        "core.control-database",
        "The tenant store has a role of its own",
        _control_database_is_separate,
    ),
    Check("core.database-echo", "SQL statements are not logged", _echo_is_off),
    Check("core.audit-logging", "Changes of tenants are audited", _audit_is_on),
    Check("core.proof", "Tenants are proven, not only named", _tenants_are_proven),
    Check("core.metrics", "Metrics are collected", _metrics_are_installed),
)
"""The items that the core brings."""
