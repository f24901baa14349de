"""Where a request names its tenant, written into an OpenAPI document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import OpenAPISource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tenancy_core._tenancy import Tenancy

__all__ = ["describe_tenant"]

_METHODS: Final = frozenset(
    {"get", "put", "post", "delete", "options", "head", "patch", "trace", "query"}
)


def describe_tenant(
    document: dict[str, Any], tenancy: Tenancy, is_excluded: Callable[[str], bool]
) -> dict[str, Any]:
    """Add the tenant's source to every operation of a document, in place.

    A header becomes a parameter, a token a security scheme beside what an operation asks for
    itself, a subdomain a server with a variable. Where there are several resolvers none of their
    sources is marked as required.

    Args:
        document: OpenAPI 3, as plain dicts.
        tenancy: Its resolver says what the sources are.
        is_excluded: Whether a path is served without a tenant.

    Returns:
        The same document.
    """
    resolvers = _resolvers(tenancy.resolver)
    required = len(resolvers) == 1
    operations = [
        (path, operation)
        for path, item in document.get("paths", {}).items()
        if not is_excluded(path)
        for method, operation in item.items()
        if method in _METHODS
    ]
    for source in (getattr(resolver, "openapi", None) for resolver in resolvers):
        if not isinstance(source, OpenAPISource):
            continue
        if source.parameter is not None:
            for path, operation in operations:
                _add_parameter(operation, path, source.parameter, required=required)
        if source.security is not None:
            name, scheme = source.security
            components = document.setdefault("components", {})
            components.setdefault("securitySchemes", {})[name] = dict(scheme)
            default = document.get("security", [])
            for _, operation in operations:
                _add_security(operation, name, default, required=required)
        if source.server is not None:
            servers = document.setdefault("servers", [])
            if dict(source.server) not in servers:
                servers.append(dict(source.server))
    return document


def _resolvers(resolver: Any) -> list[Any]:  # noqa: ANN401 - a resolver, a chain or a guard
    parts = getattr(resolver, "resolvers", None)
    if parts is not None:
        return [inner for part in parts for inner in _resolvers(part)]
    return [getattr(resolver, "inner", resolver)]


def _add_parameter(
    operation: dict[str, Any], path: str, source: Mapping[str, Any], *, required: bool
) -> None:
    name: str = source["name"]
    if source["in"] == "path":
        # Its name is the route's own choice: /tenants/{tenant}, /tenants/{customer} …
        match = re.match(re.escape(name) + r"/\{(\w+)\}", path)
        if match is None:
            return
        name, required = match[1], True
    parameters = operation.setdefault("parameters", [])
    same = (name.lower(), source["in"])
    if all((known.get("name", "").lower(), known.get("in")) != same for known in parameters):
        parameters.append({**source, "name": name, "required": required})


def _add_security(
    operation: dict[str, Any], name: str, default: list[Any], *, required: bool
) -> None:
    # The entries of the list are alternatives; the schemes within one are needed together.
    known: list[dict[str, Any]] = operation.get("security", default) or [{}]
    with_tenant: list[dict[str, Any]] = [{**alternative, name: []} for alternative in known]
    operation["security"] = with_tenant if required else [*with_tenant, *known]
