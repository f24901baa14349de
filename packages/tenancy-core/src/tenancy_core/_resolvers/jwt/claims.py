"""What the claims of a token have to say (RFC 7519, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

from tenancy_core._resolvers.jwt.rejected import Rejected
from tenancy_core.errors import InvalidIdentifier
from tenancy_core.tenant import validate_identifier

__all__ = ["ClaimRules", "issuer_of"]

_LAST_DATE: Final = 253402300799
"""9999-12-31T23:59:59Z: what comes later is no date that systems agree on."""


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """The rules of one issuer.

    Attributes:
        audience: One of these has to be in ``aud``; None: ``aud`` is not looked at.
        tenant_claim: Name of the claim that names the tenant.
        tenants: The only tenants that may be named; None: all.
        leeway: Seconds that clocks may differ, either way.
        max_lifetime: Most seconds from ``iat`` to ``exp``; None: ``iat`` may be absent.
    """

    audience: frozenset[str] | None
    tenant_claim: str
    tenants: frozenset[str] | None = None
    leeway: float = 30
    max_lifetime: float | None = None

    def tenant_of(self, claims: dict[str, Any], now: int) -> str:
        """Return the tenant that verified claims name.

        Args:
            claims: Of a token whose signature holds, and whose issuer these rules are for.
            now: Seconds since 1970, UTC, whole: dates in tokens are, too.

        Raises:
            Rejected: It is out of time, for somebody else, or names no tenant.
        """
        self._check_time(claims, now)
        self._check_audience(claims.get("aud"))
        named: object = claims.get(self.tenant_claim)
        if not isinstance(named, str):
            raise Rejected("the tenant in it is no text, or there is none")
        try:
            identifier = validate_identifier(named)
        except InvalidIdentifier:
            raise Rejected("the tenant in it is no identifier") from None
        if self.tenants is not None and identifier not in self.tenants:
            raise Rejected("its issuer may not name this tenant")
        return identifier

    def _check_time(self, claims: dict[str, Any], now: int) -> None:
        expires = _date(claims, "exp")
        if expires is None:
            raise Rejected("it has no exp")
        if now > expires + self.leeway:
            raise Rejected("it has expired")
        starts = _date(claims, "nbf")
        if starts is not None and now < starts - self.leeway:
            raise Rejected("it is not valid yet (nbf)")
        issued = _date(claims, "iat")
        if issued is not None and now < issued - self.leeway:
            raise Rejected("it was issued in the future (iat)")
        if self.max_lifetime is None:
            return
        if issued is None:
            raise Rejected("it has no iat, which a maximal lifetime needs")
        if expires - issued > self.max_lifetime:
            raise Rejected("it lives longer than is allowed")

    def _check_audience(self, value: object) -> None:
        if self.audience is None:
            return
        if value is None:
            raise Rejected("it has no aud")
        named = cast("list[object]", value) if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in named):
            raise Rejected("its aud is neither a text nor a list of texts")
        if self.audience.isdisjoint(named):
            raise Rejected("it is for another audience")


def issuer_of(claims: dict[str, Any]) -> str | None:
    """Return ``iss``, or None where it is absent.

    Raises:
        Rejected: It is no text.
    """
    issuer: object = claims.get("iss")
    if "iss" in claims and not isinstance(issuer, str):
        raise Rejected("its iss is no text")
    return cast("str | None", issuer)


def _date(claims: dict[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value: object = claims[name]
    # Exactly int: True is one as well, and a float or a text is what another reader may round.
    if type(value) is not int or not 0 <= value <= _LAST_DATE:
        raise Rejected(f"its {name} is no whole number of seconds up to the year 9999")
    return value
