"""The tenant is named by a request header."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import TenantNotIdentified
from tenancy_core.tenant import IDENTIFIER_MAX_BYTES, IDENTIFIER_PATTERN, validate_identifier

if TYPE_CHECKING:
    from tenancy_core.contract import Connection

__all__ = ["HeaderResolver"]


class HeaderResolver:
    """Reads ``tenant_header_name``.

    Attributes:
        raw_header: The one header whose bytes decide; lets the middleware find a cached tenant
            without decoding anything.
        openapi: The header as a parameter.
        missing: How a request without a claim is refused when no other resolver finds one.
    """

    __slots__ = ("openapi", "raw_header")

    missing = TenantNotIdentified

    def __init__(self, name: str) -> None:
        self.raw_header = name.lower().encode("ascii")
        self.openapi = OpenAPISource(
            parameter={
                "name": name,
                "in": "header",
                "description": "The tenant that the request is for.",
                "schema": {
                    "type": "string",
                    "maxLength": IDENTIFIER_MAX_BYTES,
                    "pattern": IDENTIFIER_PATTERN,
                },
            }
        )

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See :class:`~tenancy_core.contract.Resolver`."""
        value = connection.header(self.raw_header)
        if value is None:
            return None
        return TenantClaim(validate_identifier(value), "header")
