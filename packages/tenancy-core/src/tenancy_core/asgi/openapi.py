"""Where a request names its tenant, written into an OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import OpenAPISource

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core._tenancy import Tenancy

__all__ = ["describe_tenant"]

_METHODS: Final = frozenset(
    {"get", "put", "post", "delete", "options", "head", "patch", "trace", "query"}
)


def describe_tenant(
    document: dict[str, Any], tenancy: Tenancy, is_excluded: Callable[[str], bool]
) -> dict[str, Any]:
    """Add the tenant's source to every operation of a document, in place.

    A header becomes a parameter, a token a security scheme, a subdomain a server with a variable.
    Where several sources are possible none of them is marked as required.

    Args:
        document: OpenAPI 3, as plain dicts.
        tenancy: Its resolver says what the sources are.
        is_excluded: Whether a path is served without a tenant.

    Returns:
        The same document.
    """
    sources = list(_sources(tenancy.resolver))
    operations = [
        operation
        for path, item in document.get("paths", {}).items()
        if not is_excluded(path)
        for method, operation in item.items()
        if method in _METHODS
    ]
    for source in sources:
        if source.parameter is not None:
            parameter = {**source.parameter, "required": len(sources) == 1}
            for operation in operations:
                _add_parameter(operation, parameter)
        if source.security is not None:
            name, scheme = source.security
            components = document.setdefault("components", {})
            components.setdefault("securitySchemes", {})[name] = dict(scheme)
            for operation in operations:
                operation.setdefault("security", []).append({name: []})
        if source.server is not None:
            servers = document.setdefault("servers", [])
            if dict(source.server) not in servers:
                servers.append(dict(source.server))
    return document


def _sources(resolver: Any) -> list[OpenAPISource]:  # noqa: ANN401 - a resolver, a chain or a guard
    parts = getattr(resolver, "resolvers", None)
    if parts is not None:
        return [source for part in parts for source in _sources(part)]
    resolver = getattr(resolver, "inner", resolver)
    source = getattr(resolver, "openapi", None)
    return [source] if isinstance(source, OpenAPISource) else []


def _add_parameter(operation: dict[str, Any], parameter: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    same = (parameter["name"].lower(), parameter["in"])
    if all((known.get("name", "").lower(), known.get("in")) != same for known in parameters):
        parameters.append(parameter)
