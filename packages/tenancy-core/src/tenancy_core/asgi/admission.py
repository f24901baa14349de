"""From a connection to a tenant that may be served, or to the reason why not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tenancy_core._ratelimit import MissLimiter
from tenancy_core._resolvers.host import is_trusted
from tenancy_core.contract import RateLimitDecision
from tenancy_core.errors import (
    BackendUnavailable,
    InvalidCredentials,
    RateLimitExceeded,
    RequestRefused,
    ResolverError,
    TenancyError,
    TenantInactive,
    TenantNotFound,
    TenantNotIdentified,
    TenantUnready,
)
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from tenancy_core._tenancy import Tenancy
    from tenancy_core.context import Binding
    from tenancy_core.contract import Connection, TenantClaim
    from tenancy_core.tenant import Tenant

__all__ = ["Admission"]

_log = logging.getLogger("tenancy")


class Admission:
    """The way of a request up to the application, for one opening of a ``Tenancy``.

    Attributes:
        fast: Whether a cached, active tenant needs nothing else: no membership hook, no limiter,
            no proof. The middleware then admits it by the raw header bytes alone.
        raw_header: The one header whose bytes decide, or None.
    """

    __slots__ = (
        "_config",
        "_directory",
        "_limiter",
        "_membership",
        "_misses",
        "_missing",
        "_observers",
        "_proxies",
        "_require_verified",
        "_resolver",
        "fast",
        "parts",
        "raw_header",
    )

    def __init__(self, tenancy: Tenancy) -> None:
        parts = tenancy.parts
        config = tenancy.config
        self.parts = parts
        self._config = config
        self._resolver = parts.resolver
        self._missing: type[RequestRefused] = getattr(
            parts.resolver, "missing", TenantNotIdentified
        )
        if config.require_verified_tenant and self._missing is TenantNotIdentified:
            # To name a tenant would not be enough.
            self._missing = InvalidCredentials
        self._directory = parts.directory
        self._membership = tenancy.membership
        self._limiter = parts.limiter
        self._observers = parts.observers
        self._require_verified = config.require_verified_tenant
        self._proxies = config.trusted_proxies
        self._misses = MissLimiter(clock=tenancy.clock)
        self.raw_header = parts.raw_header
        self.fast = (
            self.raw_header is not None
            and self._membership is None
            and self._limiter is None
            and not self._require_verified
        )

    async def admit(self, connection: Connection) -> Binding:
        """Return the binding of the tenant that the connection may act for.

        Raises:
            RequestRefused: With the status that the client is answered.
            ResolverError: A resolver or hook failed.
            BackendUnavailable: The store could not be asked.
        """
        tenant: Tenant | None = None
        try:
            claim = await self._claim(connection)
            try:
                bound = await self._look_up(connection, claim)
                tenant = bound.tenant
                if not tenant.active or self._membership is not None:
                    await self._gate(connection, tenant, claim)
            except TenantNotFound:
                # Whatever the reason: were only unknown tenants limited, the limit would tell
                # them from those that exist and are not served.
                self._count_miss(connection)
                raise
            if self._limiter is not None:
                await self._limit(tenant)
        except RequestRefused as error:
            self._observers.refused(error.code, error.status, tenant)
            raise
        except TenancyError as error:
            _log.error("a request could not be admitted: %s: %s", error.code, error)
            self._observers.refused(error.code, 503, tenant)
            raise
        self._remember(connection, bound)
        return bound

    async def confirm(self, bound: Binding) -> None:
        """Refuse a tenant that was suspended after it was looked up.

        A socket asks once it is watched: what happened before that, nobody would tell it.

        Raises:
            TenantNotFound: It is no longer served.
            BackendUnavailable: The store could not be asked.
        """
        try:
            found = await self._directory.find_by_id(bound.tenant.id)
            if found is None or not found.tenant.active:
                raise TenantNotFound
        except TenancyError as error:
            status = error.status if isinstance(error, RequestRefused) else 503
            self._observers.refused(error.code, status, bound.tenant)
            raise
        except Exception as error:
            self._observers.refused(BackendUnavailable.code, 503, bound.tenant)
            raise BackendUnavailable(
                f"The tenant store failed ({type(error).__name__})."
            ) from error

    async def _claim(self, connection: Connection) -> TenantClaim:
        try:
            claim = await self._resolver.resolve(connection)
        except InvalidCredentials as error:
            if error.presented:
                self._count_miss(connection)
            raise
        if claim is not None and (claim.verified or not self._require_verified):
            return claim
        refusal = self._missing() if claim is None else InvalidCredentials()
        if isinstance(refusal, InvalidCredentials):
            refusal.presented = False
        raise refusal

    async def _look_up(self, connection: Connection, claim: TenantClaim) -> Binding:
        directory = self._directory
        entry = directory.l1.get(claim.identifier)
        if entry is not None:
            return entry.binding
        # What is proven is no guess, and an address may be that of a proxy.
        if not claim.verified and not directory.l1.is_nobody(claim.identifier):
            self._misses.check(self._address(connection))
        try:
            bound = await directory.find(claim.identifier)
        except TenancyError:
            raise
        except Exception as error:
            raise BackendUnavailable(
                f"The tenant store failed ({type(error).__name__})."
            ) from error
        if bound is None:
            raise TenantNotFound
        return bound

    def _count_miss(self, connection: Connection) -> None:
        """Count a guess: a tenant that is not served, or credentials that do not hold.

        Raises:
            RateLimitExceeded: Its address has made too many.
        """
        address = self._address(connection)
        self._misses.check(address)
        self._misses.count(address)

    def _address(self, connection: Connection) -> str | None:
        """Return whom a miss is counted for: the peer, or whom a trusted proxy speaks for."""
        if is_trusted(connection, self._proxies):
            forwarded = connection.headers(b"x-forwarded-for")
            if forwarded:
                return forwarded[-1].rpartition(b",")[2].strip(b" \t")[:64].decode("latin-1")
        return connection.client_address

    async def _gate(self, connection: Connection, tenant: Tenant, claim: TenantClaim) -> None:
        member = await self._is_member(connection, tenant, claim)
        if tenant.active:
            if not member:
                raise TenantNotFound
            return
        # Strangers cannot tell a tenant that is not served from one that does not exist.
        if member and tenant.status is TenantStatus.SUSPENDED:
            raise TenantInactive
        if member and tenant.status is TenantStatus.PROVISIONING:
            raise TenantUnready
        raise TenantNotFound

    async def _is_member(self, connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        if self._membership is None:
            return claim.verified
        try:
            answer: Any = await self._membership(connection, tenant, claim)
        except (RequestRefused, ResolverError, BackendUnavailable):
            raise  # its own way to refuse; any other error is a mistake in it
        except Exception as error:
            raise ResolverError(f"The membership hook raised {type(error).__name__}.") from error
        return answer is True

    async def _limit(self, tenant: Tenant) -> None:
        assert self._limiter is not None  # noqa: S101 - the caller looked
        limit = self._config.rate_limit(tenant)
        try:
            decision: object = await self._limiter.hit(str(tenant.id), limit)
            if not isinstance(decision, RateLimitDecision):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(type(decision).__name__)
        except Exception as error:
            if self._config.rate_limit_fail_closed:
                raise BackendUnavailable(
                    f"The rate limiter failed ({type(error).__name__})."
                ) from error
            _log.warning("the rate limiter failed (%s): not limited", type(error).__name__)
            return
        if not decision.allowed:
            # The window is first, and so also takes the place of a NaN.
            retry_after = min(limit.window, decision.retry_after)
            raise RateLimitExceeded(retry_after=retry_after, limit=limit.count, window=limit.window)

    def _remember(self, connection: Connection, bound: Binding) -> None:
        """Let the next request with the same header bytes take the fast way."""
        if not self.fast or self.raw_header is None:
            return
        entry = self._directory.entry(bound)
        if entry is None:
            return
        for name, value in connection.scope["headers"]:
            if name == self.raw_header:
                self._directory.l1.alias(value, entry)
                return
