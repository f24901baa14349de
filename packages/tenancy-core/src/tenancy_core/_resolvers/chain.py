"""Several resolvers in order, and what happens when they disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenancy_core.errors import TenantMismatch, TenantNotIdentified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenancy_core.contract import Connection, Resolver, TenantClaim

__all__ = ["ChainResolver"]


class ChainResolver:
    """Asks each resolver in turn.

    With ``reject`` all of them run and have to agree; a claim that is proven is preferred to an
    equal one that is not. Without it the first claim wins. A resolver that refuses or fails ends
    the chain in either case: nothing ever falls through to a weaker source.

    Attributes:
        missing: How a request without any claim is refused.
    """

    __slots__ = ("_reject", "resolvers")

    missing = TenantNotIdentified

    def __init__(self, resolvers: Sequence[Resolver], *, reject_conflicts: bool) -> None:
        self.resolvers = tuple(resolvers)
        self._reject = reject_conflicts

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See :class:`~tenancy_core.contract.Resolver`.

        Raises:
            TenantMismatch: Two resolvers named different tenants.
        """
        found: TenantClaim | None = None
        for resolver in self.resolvers:
            claim = await resolver.resolve(connection)
            if claim is None:
                continue
            if found is None:
                found = claim
                if not self._reject:
                    break
            elif claim.identifier != found.identifier:
                raise TenantMismatch
            elif claim.verified and not found.verified:
                found = claim
        return found
