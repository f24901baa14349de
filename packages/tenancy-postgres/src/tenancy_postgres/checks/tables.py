"""The tables that all tenants are in, as they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.scoped import TENANT_COLUMN, scope_column
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.rls.keys import loose_keys_of
from tenancy_postgres.rls.policies import FLOOR
from tenancy_postgres.rls.strangers import strangers_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from tenancy_postgres.checks.strategies import Strategies
    from tenancy_postgres.rls import Verdict

__all__ = ["force", "keys", "policies"]

_OWNER: Final = "the owner of the tables"
_DECLARE: Final = (
    "Compare the table with your models, and make it what they say; see "
    "docs/how-to/operate-postgresql.md."
)


async def force(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield tables whose row-level security is off, or does not hold their owner."""
    for isolation in strategies.rls:
        async with isolation.administering() as connection:
            verdicts = await isolation.judge(connection)
        for verdict in verdicts:
            if finding := _of(verdict, "postgres.force", {"force"}):
                yield finding


async def policies(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield tables whose policies are not ours, and rights that no policy restrains."""
    for isolation in strategies.rls:
        role = isolation.tenants.role
        async with isolation.administering() as connection:
            verdicts = await isolation.judge(connection)
            known = [number for verdict in verdicts for number in verdict.relations]
            strangers = await strangers_of(connection, known, role)
        for verdict in verdicts:
            if finding := _of(verdict, "postgres.policies", {"policies", "rights", "rules"}):
                yield finding
        if strangers:
            yield Finding(
                "postgres.policies",
                Severity.ERROR,
                f"The role {role!r}, or one that it can take, has rights on tables with a column "
                f"{TENANT_COLUMN!r} that have no row-level security, or a policy without {FLOOR}, "
                f"and are not in metadata=: {listed(one.name for one in strangers)}.",
                to_run(_OWNER, (one.remedy for one in strangers)),
            )


async def keys(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield keys that reach across tenants, and indexes that do not begin with the tenant."""
    for isolation in strategies.rls:
        async with isolation.administering() as connection:
            verdicts = await isolation.judge(connection)
            scoped = {
                number: (verdict.table, column.name)
                for verdict in verdicts
                if (column := scope_column(verdict.table)) is not None
                for number in verdict.relations
            }
            loose = await loose_keys_of(connection, scoped)
        for verdict in verdicts:
            if finding := _of(verdict, "postgres.keys", {"keys"}):
                yield finding
        for number, found in loose.items():
            name = scoped[number][0].fullname
            yield Finding(
                "postgres.keys",
                Severity.WARNING,
                f"{name}: {listed(key.sentence for key in found)}, so a tenant's query reads "
                "through the rows of others.",
                to_run(_OWNER, (line for key in found for line in key.remedies)),
            )


def _of(verdict: Verdict, check: str, kinds: Collection[str]) -> Finding | None:
    flaws = [flaw for flaw in verdict.flaws if flaw.kind in kinds]
    if not flaws:
        return None
    lines = [line for flaw in flaws for line in flaw.remedies]
    return Finding(
        check,
        Severity.ERROR,
        f"{verdict.table.fullname}: {'; '.join(flaw.sentence for flaw in flaws)}.",
        to_run(_OWNER, lines) if lines else _DECLARE,
    )
