"""What every transaction of a tenant sets besides the tenant itself: time-outs and a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenancy_postgres.quoting import quote_literal

if TYPE_CHECKING:
    from tenancy_core.config import TenancyConfig
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["RideAlong"]


class RideAlong:
    """Text for the BEGIN message, rendered once per plan.

    Args:
        config: Gives the plans.
        settings: Gives the application's name.
    """

    __slots__ = ("_application_name", "_config", "_plans")

    def __init__(self, config: TenancyConfig, settings: PostgresSettings) -> None:
        self._config = config
        self._application_name = settings.application_name
        self._plans = {name: self._time_outs(name) for name in config.plans}

    def of(self, tenant: Tenant) -> str:
        """Return ``;SET LOCAL …`` for a tenant: its plan's time-outs, and its name."""
        settings = self.of_plan(tenant)
        if self._application_name:
            name = f"{self._application_name}/{tenant.identifier}"
            settings += f";SET LOCAL application_name={quote_literal(name)}"
        return settings

    def of_plan(self, tenant: Tenant) -> str:
        """Return the time-outs of a tenant's plan, or nothing."""
        return "" if tenant.plan is None else self._plans.get(tenant.plan, "")

    def _time_outs(self, plan: str) -> str:
        given = self._config.plans[plan]
        return "".join(
            f";SET LOCAL {setting}={round(seconds * 1000)}"
            for setting, seconds in (
                ("statement_timeout", given.statement_timeout),
                ("lock_timeout", given.lock_timeout),
                ("idle_in_transaction_session_timeout", given.idle_timeout),
            )
            if seconds is not None
        )
