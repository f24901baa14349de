"""A resolver from a plugin, time-boxed, its mistakes turned into one kind of error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from tenancy_core.contract import TenantClaim
from tenancy_core.errors import (
    BackendUnavailable,
    RequestRefused,
    ResolverError,
    TenantNotIdentified,
)
from tenancy_core.tenant import validate_identifier

if TYPE_CHECKING:
    from tenancy_core.contract import Connection, Resolver

__all__ = ["RESOLVER_TIMEOUT", "GuardedResolver"]

RESOLVER_TIMEOUT: Final = 5.0
"""Seconds that a resolver from outside the core may take."""


class GuardedResolver:
    """Runs a resolver that the core did not write.

    Attributes:
        name: Of the resolver, for the error.
        missing: As the resolver says, else "not identified".
    """

    __slots__ = ("_resolver", "_timeout", "missing", "name")

    def __init__(self, name: str, resolver: Resolver, *, timeout: float = RESOLVER_TIMEOUT) -> None:
        self.name = name
        self._resolver = resolver
        self._timeout = timeout
        missing: object = getattr(resolver, "missing", None)
        self.missing: type[RequestRefused] = (
            missing
            if isinstance(missing, type) and issubclass(missing, RequestRefused)
            else TenantNotIdentified
        )

    @property
    def inner(self) -> Resolver:
        """The resolver itself."""
        return self._resolver

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See :class:`~tenancy_core.contract.Resolver`.

        Raises:
            ResolverError: It raised, took too long, or returned something else than a claim.
        """
        try:
            with anyio.fail_after(self._timeout):
                claim: object = await self._resolver.resolve(connection)
        except (RequestRefused, ResolverError, BackendUnavailable):
            raise  # the answers that the contract knows; any other error is the resolver's own
        except TimeoutError as error:
            raise ResolverError(
                f"The resolver {self.name!r} took longer than {self._timeout:g} seconds."
            ) from error
        except Exception as error:
            raise ResolverError(
                f"The resolver {self.name!r} raised {type(error).__name__}."
            ) from error
        if claim is None:
            return None
        if not isinstance(claim, TenantClaim):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ResolverError(
                f"The resolver {self.name!r} returned {type(claim).__name__}; "
                "a TenantClaim or None is allowed."
            )
        identifier: object = claim.identifier
        verified: object = claim.verified
        # A "no" or a None would be read as proven or as unproven, by chance.
        if not isinstance(identifier, str) or not isinstance(verified, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ResolverError(
                f"The resolver {self.name!r} returned a TenantClaim whose identifier is no str, "
                "or whose verified is no bool."
            )
        validate_identifier(claim.identifier)
        return claim
