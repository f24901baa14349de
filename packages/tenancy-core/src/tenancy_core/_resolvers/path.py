"""The tenant is the path segment behind a prefix: ``/tenants/acme/…``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import InvalidIdentifier, TenantNotFound
from tenancy_core.tenant import IDENTIFIER_MAX_BYTES, IDENTIFIER_PATTERN, validate_identifier

if TYPE_CHECKING:
    from tenancy_core.contract import Connection

__all__ = ["PathResolver"]


class PathResolver:
    """Reads the raw path and never rewrites it: routes declare ``/tenants/{tenant}/…``.

    The raw path is split *before* the one segment is decoded, so that an encoded slash stays in
    its segment and makes it invalid.

    Attributes:
        missing: A path without a tenant is answered as an unknown tenant.
        openapi: The segment as a parameter.
    """

    __slots__ = ("_prefix", "openapi")

    missing = TenantNotFound

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode("ascii") + b"/"
        self.openapi = OpenAPISource(
            parameter={
                "name": prefix,
                "in": "path",
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
        path = connection.raw_path
        if not path.startswith(self._prefix):
            if b"%" in path and unquote_to_bytes(path).startswith(self._prefix):
                # A framework would decode it and route it to the tenant that it names.
                raise InvalidIdentifier("The prefix of the tenant is escaped in the path.")
            return None
        segment = path[len(self._prefix) :].partition(b"/")[0]
        try:
            decoded = unquote_to_bytes(segment).decode("ascii")
        except UnicodeDecodeError:
            raise InvalidIdentifier("The tenant in the path is not ASCII.") from None
        return TenantClaim(validate_identifier(decoded), "path")
