"""A plugin's module under type checkers: providers and their products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tenancy_core import Connection, Resolver, TenantClaim
from tenancy_core.contract import Check, Command, Finding, Severity
from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tenancy_core import Tenancy


class Settings(BaseModel):
    header: str = "X-API-Key"


class ApiKeyResolver:
    def __init__(self, header: str) -> None:
        self._header = header.lower().encode("ascii")

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        key = connection.header(self._header)
        return None if key is None else TenantClaim(key, "api-key", verified=True)


def build(context: BuildContext, settings: Settings) -> ApiKeyResolver:
    return ApiKeyResolver(settings.header or context.config.tenant_header_name)


def build_a_string(context: BuildContext, settings: Settings) -> str:
    return settings.header


def build_without_context(settings: Settings) -> ApiKeyResolver:
    return ApiKeyResolver(settings.header)


@hookimpl
def tenancy_resolvers() -> Iterable[Provider[Any, Resolver]]:
    return [Provider("api-key", build, section=Section("apikey", Settings))]


async def look(tenancy: Tenancy) -> Sequence[Finding]:
    if tenancy.config.require_verified_tenant:
        return []
    return [Finding("acme.proof", Severity.WARNING, "It is not proven.", "Prove it.")]


async def run(tenancy: Tenancy, arguments: Sequence[str]) -> int:
    return len(arguments) if tenancy.is_open else 2


def look_at_once(tenancy: Tenancy) -> Sequence[Finding]:
    return []


@hookimpl
def tenancy_checks() -> Iterable[Check]:
    yield Check("acme.proof", "Tenants are proven", look)
    yield Check("acme.sync", "Never", look_at_once)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@hookimpl
def tenancy_commands() -> Iterable[Command]:
    return [Command("keys", "List the keys", run)]


Provider[Settings, Resolver]("x", build_a_string)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Provider[Settings, Resolver]("x", build_without_context)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
