"""This package's items of the production checklist.

What ``rls`` refuses when it opens is looked at again here, because somebody may have changed it
since; and what no opening refuses is looked at as well. Nothing here imports a driver: each item
imports its room when it is run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import Check, Finding, Severity
from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError
from tenancy_postgres.hybrid.tiers import TIER
from tenancy_postgres.invalidation.check import INVALIDATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tenancy_postgres.checks.strategies import Strategies

    Judge = Callable[[Any, Strategies], AsyncIterator[Finding]]

__all__ = ["POSTGRES_CHECKS"]


def _check(name: str, title: str, place: str) -> Check:
    """Make an item.

    Args:
        name: Behind ``postgres.``.
        title: What holds when it passes.
        place: Its room and what judges there: ``roles.role``.
    """
    room, _, function = place.partition(".")

    async def run(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401 - as Check says
        strategies = import_module("tenancy_postgres.checks.strategies")
        judge: Judge = getattr(import_module(f"tenancy_postgres.checks.{room}"), function)
        # Two strategies of one service find the same in one database.
        found: dict[Finding, None] = {}
        try:
            async for finding in judge(tenancy, strategies.strategies_of(tenancy.parts.isolation)):
                found[finding] = None
        except (BackendUnavailable, ConfigurationError, IsolationError) as error:
            found[
                Finding(
                    f"postgres.{name}",
                    Severity.ERROR,
                    f"This could not be looked at. {error}",
                    "Mend that, and check again.",
                )
            ] = None
        return [*found]

    return Check(f"postgres.{name}", title, run)


POSTGRES_CHECKS: Final = (
    _check("role", "Tenants' sessions have a role that rights hold", "roles.role"),
    _check("control-role", "Tenants' sessions cannot use the tenant store", "control.control_role"),
    _check("force", "Row-level security is on for everybody, owners too", "tables.force"),
    _check("policies", "Tables have the policies that keep tenants apart", "tables.policies"),
    _check("keys", "Keys and indexes begin with the tenant", "tables.keys"),
    _check("views", "No view shows more than its reader may see", "views.views"),
    _check("functions", "No function lends its owner's rights to tenants", "functions.functions"),
    _check("pooler", "What stands between is used as it can be", "pooler.pooler"),
    _check("tls", "Connections are encrypted, and to whom they should be", "tls.tls"),
    _check("connections", "The server has as many connections as may be opened", "capacity.judge"),
    _check("connect", "A tenant's login opens the tenant's database only", "doors.connect"),
    INVALIDATION,
    TIER,
)
"""In the order in which they are run."""
