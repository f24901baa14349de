"""What tables lack before tenants may share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.rls.normal import normal_form
from tenancy_postgres.rls.policies import (
    ACCESS,
    FLOOR,
    policy_expression,
    protection_statements,
    removal_statements,
)
from tenancy_postgres.rls.state import PUBLIC, states_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.rls.state import PolicyState, TableState

__all__ = ["Verdict", "verify"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about a table.

    Attributes:
        table: The application's.
        is_there: Whether it is in the database.
        owners: Roles that can switch its protection off.
        roles: For whom its policies are now.
        lacks: What is wrong, as sentences without a full stop; empty where it is safe.
    """

    table: Table
    is_there: bool
    owners: frozenset[str]
    roles: frozenset[str]
    lacks: tuple[str, ...]

    def remedy(self, role: str, setting: str) -> list[str]:
        """Return statements for the owner that protect the table; not those for its children.

        Its policies stay those of other roles as well: another service may have one of its own.
        """
        if not self.lacks or scope_column(self.table) is None:
            return []
        return [
            *removal_statements(self.table),
            *protection_statements(self.table, sorted({role} | self.roles), setting),
        ]


async def verify(
    connection: AsyncConnection, tables: Sequence[Table], role: str, setting: str
) -> list[Verdict]:
    """Compare tables with what row-level security demands of them. Nothing is changed.

    Args:
        connection: Of any role that sees the catalogs.
        tables: The application's; of those that all tenants share it only looks whether they are
            there.
        role: Of tenants' sessions.
        setting: The configuration's ``rls_setting``.

    Returns:
        A verdict for each table, in their order.
    """
    states = await states_of(connection, tables, role)
    return [
        Verdict(
            table=table,
            is_there=bool(found),
            owners=frozenset(state.owner for state in found),
            roles=_roles(found),
            lacks=tuple(_lacks(table, found, role, setting)),
        )
        for table, found in zip(tables, states, strict=True)
    ]


def _roles(found: Sequence[TableState]) -> frozenset[str]:
    ours = [
        policy.roles
        for state in found
        if state.is_parent
        for policy in state.policies.values()
        if policy.name in {ACCESS, FLOOR}
    ]
    return frozenset[str]().union(*ours) - {PUBLIC}


def _lacks(table: Table, found: Sequence[TableState], role: str, setting: str) -> Iterator[str]:
    if scope_column(table) is None:
        return
    expected = normal_form(policy_expression(table, setting))
    for state in found:
        for lack in _lacks_of(state, expected, role):
            yield lack if state.is_parent else f"its partition or child {state.name}: {lack}"


def _lacks_of(state: TableState, expected: tuple[str, ...], role: str) -> Iterator[str]:
    if not state.is_table:
        yield "it is a view or a foreign table, which has no row-level security"
        return
    if not state.enabled:
        yield "row-level security is not enabled"
    if not state.forced:
        yield f"row-level security is not forced, so its owner {state.owner!r} is not held by it"
    for right in state.privileges:
        yield f"the role {role!r} has the right {right}, which no policy restrains"
    # Without any policy a child shows nothing to who asks for it by name.
    if state.is_parent or state.policies:
        for name, permissive in ((ACCESS, True), (FLOOR, False)):
            policy = state.policies.get(name)
            if policy is None:
                yield f"the policy {name} is missing"
            else:
                yield from _differences(policy, expected, role, permissive=permissive)
    for policy in state.policies.values():
        if PUBLIC in policy.roles and policy.permissive:
            yield f"the policy {policy.name} is for PUBLIC, so it lets in roles that nobody named"


def _differences(
    policy: PolicyState, expected: tuple[str, ...], role: str, *, permissive: bool
) -> Iterator[str]:
    if policy.permissive is not permissive:
        yield f"the policy {policy.name} is not {'PERMISSIVE' if permissive else 'RESTRICTIVE'}"
    if not policy.for_all:
        yield f"the policy {policy.name} is not FOR ALL commands"
    if role not in policy.roles:
        yield f"the policy {policy.name} is not for the role {role!r}"
    if normal_form(policy.reads) != expected:
        yield f"USING of the policy {policy.name} is not the condition that tenancy generates"
    if normal_form(policy.writes) != expected:
        yield f"WITH CHECK of the policy {policy.name} is not the condition that tenancy generates"
