"""The tenant is the one label in front of the base domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenancy_core._resolvers.host import requested_host
from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import TenantNotFound
from tenancy_core.tenant import validate_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    from tenancy_core.contract import Connection

__all__ = ["SubdomainResolver"]

_NO_TENANT: Final = frozenset({"www"})


class SubdomainResolver:
    """``acme.example.com`` → ``acme``. Other hosts, the base itself and ``www`` name no tenant.

    Attributes:
        raw_header: ``host`` where it alone decides, that is without trusted proxies.
        openapi: The host as a server with a variable.
        missing: A host that is nobody's is answered as an unknown tenant.
    """

    __slots__ = ("_proxies", "_suffix", "openapi", "raw_header")

    missing = TenantNotFound

    def __init__(self, domain: str, proxies: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._suffix = f".{domain}"
        self._proxies = tuple(proxies)
        self.raw_header = None if self._proxies else b"host"
        self.openapi = OpenAPISource(
            server={
                "url": f"//{{tenant}}{self._suffix}",
                "variables": {
                    "tenant": {"default": "tenant", "description": "The tenant's identifier."}
                },
            }
        )

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See :class:`~tenancy_core.contract.Resolver`."""
        host = requested_host(connection, self._proxies)
        if not host.endswith(self._suffix):
            return None
        label = host[: -len(self._suffix)]
        if "." in label or label in _NO_TENANT:
            return None
        return TenantClaim(validate_identifier(label), "subdomain")
