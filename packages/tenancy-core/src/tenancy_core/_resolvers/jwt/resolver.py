"""The resolver: from a token to the tenant that it proves."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from tenancy_core._resolvers.jwt.bearer import bearer_token
from tenancy_core._resolvers.jwt.claims import ClaimRules, issuer_of
from tenancy_core._resolvers.jwt.compact import take_apart
from tenancy_core._resolvers.jwt.keys import OneKey, pem_key, secret_key
from tenancy_core._resolvers.jwt.rejected import Rejected
from tenancy_core.config import ANY
from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import ConfigurationError, InvalidCredentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core._resolvers.jwt.compact import Compact
    from tenancy_core._resolvers.jwt.keys import Key, KeySource
    from tenancy_core.config import JwtIssuer, TenancyConfig
    from tenancy_core.contract import Connection

__all__ = ["JwtResolver"]

_log = logging.getLogger("tenancy")

_REMEMBERED: Final = 1024
"""Signatures of key pairs that are known to hold, some 200 bytes each. Verifying one takes 30 to
500 µs, finding it 2 µs; those of a shared secret are as quick to verify."""

_TYPES: Final = ("jwt", "at+jwt")
"""Of tokens that are for a service: of no special kind (RFC 7519, section 5.1), and access tokens
(RFC 9068, section 2.1). Other kinds have a type so that they are not taken for one of these
(RFC 8725, section 3.11)."""


@dataclass(frozen=True, slots=True)
class _Trusted:
    """An issuer with what is bound to it."""

    algorithms: frozenset[str]
    keys: KeySource
    rules: ClaimRules


class JwtResolver:
    """Reads ``Authorization: Bearer``, verifies the token, and takes the tenant from a claim.

    Args:
        config: The ``jwt_*`` settings.
        clock: Seconds, never going back; for the age of fetched keys.
        now: Seconds since 1970, UTC; for the dates in tokens.

    Attributes:
        missing: A request without a token is refused with 401 when no other resolver finds a claim.
        openapi: The token as a security scheme.

    Raises:
        ConfigurationError: A key does not fit its algorithms.
    """

    __slots__ = ("_now", "_trusted", "_types", "_verified")

    missing = InvalidCredentials
    openapi = OpenAPISource(
        security=(
            "tenantToken",
            {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "A token that proves the tenant.",
            },
        )
    )

    def __init__(
        self,
        config: TenancyConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._types: frozenset[str | None] = (
            frozenset(name.lower().removeprefix("application/") for name in config.jwt_types)
            if config.jwt_types
            else frozenset({None, *_TYPES})
        )
        self._verified: dict[bytes, Key] = {}
        self._trusted: dict[str, list[_Trusted]] = {}
        for number, issuer in enumerate(config.token_issuers, 1):
            entry = number if config.jwt_issuers else None
            self._trusted.setdefault(issuer.issuer, []).append(
                _Trusted(
                    frozenset(issuer.accepted),
                    _key_source(issuer, entry, clock),
                    ClaimRules(
                        audience=None if ANY in issuer.audience else frozenset(issuer.audience),
                        tenant_claim=issuer.tenant_claim or config.jwt_tenant_claim,
                        tenants=frozenset(issuer.tenants) or None,
                        leeway=config.jwt_leeway,
                        max_lifetime=config.jwt_max_lifetime,
                    ),
                )
            )

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See :class:`~tenancy_core.contract.Resolver`.

        Raises:
            InvalidCredentials: The token does not hold.
            InvalidIdentifier: There are two tokens, or it is too long to be read.
            BackendUnavailable: The keys of its issuer cannot be fetched.
        """
        try:
            token = bearer_token(connection)
            if token is None:
                return None
            return TenantClaim(await self._verify(token), "jwt", verified=True)
        except Rejected as reason:
            _log.debug("a token was refused: %s", reason)
        # Raised here, so that the reason hangs nowhere on what others may print.
        raise InvalidCredentials

    async def _verify(self, token: bytes) -> str:
        parts = take_apart(token)
        if parts.type not in self._types:
            raise Rejected("it is a token of another type")
        issuer = issuer_of(parts.claims)
        trusted = self._trusted.get(ANY)
        if trusted is None:
            if issuer is None:
                raise Rejected("it has no iss")
            trusted = self._trusted.get(issuer)
            if trusted is None:
                raise Rejected("its issuer is not trusted")
        for one in trusted:
            if parts.algorithm not in one.algorithms:
                continue
            key = await one.keys.find(parts.kid, parts.algorithm)
            if key is not None and self._verifies(key, parts, token):
                return one.rules.tenant_of(parts.claims, int(self._now()))
        raise Rejected("no key of its issuer verifies its signature")

    def _verifies(self, key: Key, parts: Compact, token: bytes) -> bool:
        """Whether the key made the signature; computed once for each token and key pair.

        Nothing else is remembered: what a token says, until when, and whether its issuer has the
        key is looked at every time. A key that is fetched anew is another object, so nothing
        outlives it.
        """
        if parts.algorithm.startswith("HS"):
            return key.verifies(parts.algorithm, parts.message, parts.signature)
        digest = sha256(token).digest()
        if self._verified.get(digest) is key:
            return True
        if not key.verifies(parts.algorithm, parts.message, parts.signature):
            return False
        if len(self._verified) >= _REMEMBERED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = key
        return True


def _key_source(issuer: JwtIssuer, entry: int | None, clock: Callable[[], float]) -> KeySource:
    if issuer.jwks_url is not None:
        from tenancy_core._resolvers.jwt.jwks import PublishedKeys  # noqa: PLC0415 - its client is heavy

        name = _called("jwks_url", entry)
        return PublishedKeys(issuer.jwks_url, issuer.accepted, name=name, clock=clock)
    try:
        if issuer.secret is not None:
            return OneKey(secret_key(issuer.secret.get_secret_value(), issuer.accepted))
        # The configuration has seen to it that there is one of the three.
        return OneKey(pem_key(issuer.public_key or "", issuer.accepted))
    except ValueError as error:
        name = _called("public_key" if issuer.secret is None else "secret", entry)
        problem = f"{name} {error}."
    # Without a chain: error trackers print the variables of every frame in it.
    raise ConfigurationError(problem)


def _called(field: str, entry: int | None) -> str:
    if entry is None:
        return f"TENANCY_JWT_{field.upper()}"
    return f"TENANCY_JWT_ISSUERS, entry {entry}: {field}"
