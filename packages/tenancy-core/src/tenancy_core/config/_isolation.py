"""Which settings belong to which isolation strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenancy_core.errors import InvalidIdentifier
from tenancy_core.tenant import validate_identifier

if TYPE_CHECKING:
    from tenancy_core.config._model import TenancyConfig

__all__ = ["check_isolation"]

_HYBRID: Final = "hybrid"
_HYBRID_ONLY: Final = (
    "standard_isolation_strategy",
    "premium_isolation_strategy",
    "premium_plans",
    "premium_tenants",
)


def check_isolation(config: TenancyConfig) -> None:
    """Refuse a setting that the chosen strategy would not read.

    Raises:
        ValueError: Says which.
    """
    name, given = config.isolation_name, config.model_fields_set
    if name != _HYBRID:
        for field in _HYBRID_ONLY:
            if field in given:
                raise ValueError(
                    f"TENANCY_{field.upper()} is set, and TENANCY_ISOLATION_STRATEGY is {name!r}: "
                    "only 'hybrid' reads it. Remove one of the two"
                )
    elif config.dialect == "postgresql" and not (config.premium_plans or config.premium_tenants):
        raise ValueError(
            "TENANCY_ISOLATION_STRATEGY is 'hybrid', and nobody is premium: set "
            "TENANCY_PREMIUM_PLANS, TENANCY_PREMIUM_TENANTS, or both"
        )
    for plan in config.premium_plans:
        if config.plans and plan not in config.plans:
            raise ValueError(
                f"TENANCY_PREMIUM_PLANS names {plan!r}; TENANCY_PLANS has "
                f"{', '.join(sorted(config.plans))}"
            )
    for tenant in config.premium_tenants:
        try:
            validate_identifier(tenant)
        except InvalidIdentifier as error:
            raise ValueError(
                f"TENANCY_PREMIUM_TENANTS names {tenant!r}, which no tenant can be called. {error}"
            ) from None
    names = {name, config.standard_isolation_strategy, config.premium_isolation_strategy}
    apart = "database" in (names if name == _HYBRID else {name})
    if "database_url_template" in given and (config.dialect == "sqlite" or not apart):
        raise ValueError(
            "TENANCY_DATABASE_URL_TEMPLATE is set, and nothing reads it: it belongs to the "
            "isolation strategy 'database' of a database server. Remove it"
        )
