"""The strategy."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from tenancy_core.errors import ConfigurationError, IsolationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import IsolationStrategy
    from tenancy_core.providers import BuildContext
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["HybridIsolation"]


Build: TypeAlias = "Callable[[BuildContext, PostgresSettings], IsolationStrategy]"


class HybridIsolation:
    """Implements :class:`~tenancy_core.contract.IsolationStrategy` with two of the others.

    Which one holds a tenant's data is decided once, when it is created: by its plan, or by its
    identifier. It is written into the tenant's record, and requests go by the record only. A plan
    that is changed later moves nothing.

    Args:
        config: Says who is premium.
        standard: Of most tenants.
        premium: Of the others; it may be the same kind, not the same object.

    Attributes:
        name: ``hybrid``; no tenant's record has it.
        standard: Of most tenants.
        premium: Of the others.
        tiers: The names of the two.
    """

    name = "hybrid"

    def __init__(
        self, config: TenancyConfig, standard: IsolationStrategy, premium: IsolationStrategy
    ) -> None:
        self.standard = standard
        self.premium = premium
        self._plans = frozenset(config.premium_plans)
        self._tenants = frozenset(config.premium_tenants)
        self.tiers = (config.standard_isolation_strategy, config.premium_isolation_strategy)
        self._strategies = dict(zip(self.tiers, (standard, premium), strict=True))
        self._stack: AsyncExitStack | None = None

    @classmethod
    def from_context(
        cls, context: BuildContext, settings: PostgresSettings, kinds: Mapping[str, Build]
    ) -> Self:
        """Make the strategy, and its two, from the settings.

        Args:
            context: What the core hands over.
            settings: Of this package.
            kinds: What makes the strategies that there are, by their names.

        Raises:
            ConfigurationError: They do not fit together.
        """
        config = context.config
        made = [
            _kind(name, setting, kinds)(context, settings)
            for name, setting in (
                (config.standard_isolation_strategy, "TENANCY_STANDARD_ISOLATION_STRATEGY"),
                (config.premium_isolation_strategy, "TENANCY_PREMIUM_ISOLATION_STRATEGY"),
            )
        ]
        if config.standard_isolation_strategy == config.premium_isolation_strategy:
            raise ConfigurationError(
                "TENANCY_STANDARD_ISOLATION_STRATEGY and TENANCY_PREMIUM_ISOLATION_STRATEGY are "
                f"both {config.premium_isolation_strategy!r}. Set "
                f"TENANCY_ISOLATION_STRATEGY={config.premium_isolation_strategy}, or make them "
                "different."
            )
        return cls(config, *made)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for strategy in self._strategies.values():
                opened: Any = strategy
                await stack.enter_async_context(opened)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(kind, error, trace)

    # -- who is where --------------------------------------------------------------------------

    def suggested(self, tenant: Tenant) -> str:
        """Return the name of the strategy that a tenant would get if it were created now."""
        premium = tenant.plan in self._plans or tenant.identifier in self._tenants
        return self.tiers[premium]

    def place(self, tenant: Tenant, /, *, server: str | None) -> Tenant:
        """See :class:`~tenancy_core.contract.PlacesTenants`.

        Raises:
            ValueError: The tenant's strategy does not know this server.
        """
        name = self.suggested(tenant)
        placed = replace(tenant, isolation=name)
        place: Any = getattr(self._strategies[name], "place", None)
        if place is not None:
            return place(placed, server=server)  # type: ignore[no-any-return]
        if server not in (None, placed.placement.server):
            raise ValueError(
                f"Tenant {tenant.identifier!r} is isolated by {name!r}, which has one server, "
                f"{placed.placement.server!r}, and not {server!r}."
            )
        return placed

    def of(self, tenant: Tenant) -> IsolationStrategy:
        """Return the strategy that holds a tenant's data.

        Raises:
            IsolationError: It is neither of the two.
        """
        strategy = self._strategies.get(tenant.isolation)
        if strategy is None:
            raise IsolationError(
                f"Tenant {tenant.identifier} is isolated by {tenant.isolation!r}, and this "
                f"service has {' and '.join(self.tiers)}."
            )
        return strategy

    # -- the contract --------------------------------------------------------------------------

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """See the contract."""
        return self.of(tenant).session(tenant, read_only=read_only)

    def connection(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """See the contract."""
        return self.of(tenant).connection(tenant, read_only=read_only)

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract."""
        await self.of(tenant).provision(tenant)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        return await self.of(tenant).exists(tenant)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract."""
        await self.of(tenant).destroy(tenant)

    async def rotate_credentials(self, tenant: Tenant, /) -> None:
        """See :class:`~tenancy_core.contract.RotatesCredentials`.

        Raises:
            ConfigurationError: The tenant's strategy has no credentials of tenants.
        """
        rotate: Any = getattr(self.of(tenant), "rotate_credentials", None)
        if rotate is None:
            raise ConfigurationError(
                f"Tenant {tenant.identifier} is isolated by {tenant.isolation!r}, where tenants "
                "have no credentials of their own."
            )
        await rotate(tenant)


def _kind(name: str, setting: str, kinds: Mapping[str, Build]) -> Build:
    kind = kinds.get(name)
    if kind is None:
        raise ConfigurationError(f"{setting} is {name!r}; there is {', '.join(sorted(kinds))}.")
    return kind
