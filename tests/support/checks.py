"""The production checklist on a real server: what it finds, and whether its remedies work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.scoped import Base, settings_for
from tenancy_core import Tenancy
from tenancy_core.contract import Severity

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase
    from tenancy_core.contract import Finding

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


def shop(
    database: PostgresDatabase,
    strategy: str = "rls",
    *,
    section: dict[str, Any] | None = None,
    **settings: Any,
) -> Tenancy:
    """Return a service with the three roles of a database, not open yet."""
    own: dict[str, Any] = {"workers": 1}
    if strategy == "rls":
        own["admin_url"] = database.owner_url
    config = settings_for(
        database,
        **{
            "isolation_strategy": strategy,
            "sections": {"postgres": {**own, **(section or {})}},
            **settings,
        },
    )
    return Tenancy(config, metadata=Base.metadata)


async def found(tenancy: Tenancy, name: str) -> list[Finding]:
    """Return what one item of the checklist finds; its name is without ``postgres.``."""
    return [one for one in await tenancy.check() if one.check == f"postgres.{name}"]


async def severities(tenancy: Tenancy, name: str) -> list[Severity]:
    """Return how bad that is."""
    return [one.severity for one in await found(tenancy, name)]


async def the_one(tenancy: Tenancy, name: str, severity: Severity, *words: str) -> Finding:
    """Return the one finding of an item, which has these words in its message."""
    (finding,) = await found(tenancy, name)
    assert finding.severity is severity, finding
    for word in words:
        assert word in finding.message
    return finding


def lines_of(finding: Finding) -> list[str]:
    """Return the statements of a remedy."""
    head, *lines = finding.remedy.splitlines()
    assert head.startswith("Run, as "), finding
    return [line for line in lines if line.endswith(";")]


async def mend(database: PostgresDatabase, *findings: Finding, role: str | None = None) -> None:
    """Run the remedies, as a superuser unless a role is named."""
    async with database.connection(role) as connection:
        for finding in findings:
            lines = lines_of(finding)
            assert lines
            for line in lines:
                await connection.execute(line)
