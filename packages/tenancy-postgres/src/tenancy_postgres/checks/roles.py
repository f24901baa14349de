"""The role of tenants' sessions: whether rights hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.foreign_rights import foreign_rights
from tenancy_postgres.checks.whose import logins_of, roles_of
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.roles import Danger, dangers_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tenancy_postgres.checks.strategies import Strategies
    from tenancy_postgres.database.server import Server
    from tenancy_postgres.rls import RlsIsolation
    from tenancy_postgres.schema import SchemaIsolation

__all__ = ["role"]

_NAME: Final = "postgres.role"
_SUPERUSER: Final = "a superuser"


async def role(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield what the role of sessions may that it should not."""
    setting = tenancy.config.rls_setting
    for rls in strategies.rls:
        async for finding in _under_rls(rls, setting):
            yield finding
    for schema in strategies.schema:
        async for finding in _under_schema(schema, setting):
            yield finding
    for database in strategies.database:
        for server in database.servers.values():
            async for finding in _on_server(server, setting):
                yield finding


async def _under_rls(isolation: RlsIsolation, setting: str) -> AsyncIterator[Finding]:
    roles, name = await roles_of(isolation)
    async with isolation.administering() as connection:
        owners = isolation.owners(await isolation.judge(connection))
        dangers = await dangers_of(connection, roles, owners, isolation.tenants.version, setting)
    what = f"Row policies do not hold the role {name!r} of tenants' sessions"
    for danger in dangers:
        if danger.kind != "store":
            remedy = _remedy(danger, name, isolation.admin.role)
            yield Finding(_NAME, Severity.ERROR, f"{what}: {danger.sentence}.", remedy)


async def _under_schema(isolation: SchemaIsolation, setting: str) -> AsyncIterator[Finding]:
    roles, name = await roles_of(isolation)
    async with isolation.administering() as connection:
        admin = isolation.admin
        owners = frozenset({admin.role})
        dangers = await dangers_of(connection, roles, owners, admin.version, setting)
        rights: list[Finding] = []
        if isolation.has_roles:
            rights = [one async for one in foreign_rights(connection, admin.role, admin.version)]
    for finding in rights:
        yield finding
    for danger in dangers:
        if danger.kind in {"bypass", "preset", "store"}:
            continue
        severity, sentence = Severity.ERROR, danger.sentence
        if danger.kind == "owner":
            severity = Severity.WARNING
            who = sentence.partition(" owns ")[0]
            sentence = f"{who} makes tenants' schemas, and can drop them"
        yield Finding(
            _NAME,
            severity,
            f"No right holds the role {name!r} of tenants' sessions: {sentence}.",
            _remedy(danger, name, admin.role),
        )
    if not isolation.has_roles:
        yield Finding(
            _NAME,
            Severity.WARNING,
            f"All tenants have the role {name!r}, so names keep them apart, and not rights: SQL "
            "that names another tenant's schema reaches it.",
            "Set TENANCY_POSTGRES_SCHEMA_ROLES=true, give the role that makes schemas CREATEROLE, "
            "and provision the tenants again: await tenancy.parts.isolation.provision(tenant).",
        )


async def _on_server(server: Server, setting: str) -> AsyncIterator[Finding]:
    facts = await server.facts()
    async with server.administering() as connection:
        own = server.address.own
        names = await logins_of(connection) if own else [server.address.url.username or ""]
        dangers = await dangers_of(
            connection, frozenset(names), frozenset({facts.role}), facts.version, setting
        )
    for danger in dangers:
        if danger.kind in {"bypass", "preset", "store"}:
            continue
        sentence = danger.sentence
        if danger.kind == "owner":
            who = sentence.partition(" owns ")[0]
            sentence = f"{who} makes tenants' databases, and opens all of them"
        whose = "A role of a tenant's own" if own else f"The role {names[0]!r} of all tenants"
        yield Finding(
            _NAME,
            Severity.ERROR,
            f"{whose} on the server {server.address.alias!r} is not held by rights: {sentence}.",
            _remedy(danger, "" if own else names[0], facts.role),
        )
    if not own:
        yield Finding(
            _NAME,
            Severity.WARNING,
            f"All tenants on the server {server.address.alias!r} have the role {names[0]!r}: "
            "whoever has its password opens every database.",
            f"Write {{user}} and {{password}} into {server.address.setting}, and provision the "
            "tenants again: await tenancy.parts.isolation.provision(tenant).",
        )


def _remedy(danger: Danger, name: str, maker: str) -> str:
    if danger.remedies:
        return to_run(_SUPERUSER, danger.remedies)
    if name and name != maker:
        line = f"REASSIGN OWNED BY {quote_identifier(name)} TO {quote_identifier(maker)}"
        return to_run(f"{_SUPERUSER} in this database", [line])
    return (
        "Give tenants' sessions a role of their own, that owns nothing, in TENANCY_DATABASE_URL: "
        "CREATE ROLE app LOGIN NOSUPERUSER NOBYPASSRLS;"
    )
