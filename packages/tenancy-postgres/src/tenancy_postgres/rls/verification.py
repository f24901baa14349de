"""What tables lack before tenants may share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.keys import open_keys_of
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
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.rls.keys import OpenKey
    from tenancy_postgres.rls.state import PolicyState, TableState

__all__ = ["Flaw", "Verdict", "verify"]

Kind: TypeAlias = Literal["force", "keys", "policies", "rights", "rules"]


class Flaw(NamedTuple):
    """One thing that a table lacks.

    Attributes:
        kind: What it is about.
        sentence: What is wrong, without a full stop.
        remedies: Statements for the owner that put it right; empty where none can.
    """

    kind: Kind
    sentence: str
    remedies: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about a table.

    Attributes:
        table: The application's.
        is_there: Whether it is in the database.
        relations: Its number there, and those of its partitions and other relatives.
        owners: Roles that can switch its protection off, or drop it.
        flaws: What is wrong; empty where it is safe.
    """

    table: Table
    is_there: bool
    relations: tuple[int, ...]
    owners: frozenset[str]
    flaws: tuple[Flaw, ...]

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is wrong, as sentences without a full stop."""
        return tuple(flaw.sentence for flaw in self.flaws)

    @property
    def remedies(self) -> tuple[str, ...]:
        """Statements for the owner that put right what statements can."""
        return tuple(dict.fromkeys(line for flaw in self.flaws for line in flaw.remedies))


async def verify(
    connection: AsyncConnection, tables: Sequence[Table], role: str, setting: str
) -> list[Verdict]:
    """Compare tables with what row-level security demands of them. Nothing is changed.

    Args:
        connection: Of any role that sees the catalogs, in a transaction.
        tables: The application's; of those that all tenants share it only looks whether they are
            there.
        role: Of tenants' sessions.
        setting: The configuration's ``rls_setting``.

    Returns:
        A verdict for each table, in their order.
    """
    states = await states_of(connection, tables, role)
    pairs = [*zip(tables, states, strict=True)]
    scoped = {
        state.oid: (table, column.name)
        for table, found in pairs
        if (column := scope_column(table)) is not None
        for state in found
    }
    keys = await open_keys_of(connection, scoped, role)
    return [
        _verdict(table, found, [*_flaws(table, found, keys, role, setting)])
        for table, found in pairs
    ]


def _verdict(table: Table, found: Sequence[TableState], flaws: Sequence[Flaw]) -> Verdict:
    return Verdict(
        table=table,
        is_there=bool(found),
        relations=tuple(state.oid for state in found),
        owners=frozenset(owner for state in found for owner in (state.owner, state.schema_owner)),
        flaws=tuple(flaws),
    )


def _flaws(
    table: Table,
    found: Sequence[TableState],
    keys: Mapping[int, Sequence[OpenKey]],
    role: str,
    setting: str,
) -> Iterator[Flaw]:
    if scope_column(table) is None:
        return
    expected = normal_form(policy_expression(table, setting))
    protection = _protection(table, found, role, setting)
    for state in found:
        of_it = "" if state.is_parent else f"its partition or child {state.name}: "
        for kind, sentence, remedies in _lacks_of(state, expected, role):
            remade = protection if state.is_parent else _alone(state)
            yield Flaw(kind, of_it + sentence, remade if remedies is None else remedies)
        for key in keys.get(state.oid, ()):
            yield Flaw("keys", of_it + key.sentence, key.remedies)


def _protection(
    table: Table, found: Sequence[TableState], role: str, setting: str
) -> Sequence[str]:
    """Return what makes both policies anew.

    They stay those of other roles as well: another service may have one of its own.
    """
    others = {
        name
        for state in found
        if state.is_parent
        for policy in state.policies.values()
        if policy.name in {ACCESS, FLOOR}
        for name in policy.roles
    }
    roles = sorted({role, *others} - {PUBLIC})
    return [*removal_statements(table), *protection_statements(table, roles, setting)]


def _alone(state: TableState) -> Sequence[str]:
    """Return what closes a partition or child: without policies its own name shows nothing."""
    return [
        *(f"DROP POLICY {quote_identifier(one)} ON {state.name}" for one in state.policies),
        f"ALTER TABLE {state.name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {state.name} FORCE ROW LEVEL SECURITY",
    ]


def _lacks_of(
    state: TableState, expected: tuple[str, ...], role: str
) -> Iterator[tuple[Kind, str, Sequence[str] | None]]:
    """Return sentences, each with what puts it right; None where its protection is made anew."""
    if not state.is_table:
        yield "policies", "it is a view or a foreign table, which has no row-level security", ()
        return
    if not state.enabled:
        yield "force", "row-level security is not enabled", None
    if not state.forced:
        owner = state.owner
        yield (
            "force",
            f"row-level security is not forced, so its owner {owner!r} is not held by it",
            None,
        )
    if state.privileges:
        rights = ", ".join(state.privileges)
        others = sorted(state.grantees - {role, PUBLIC})
        taken = f", or can take {', '.join(map(repr, others))} with it" if others else ""
        grantees = ", ".join(["PUBLIC", *map(quote_identifier, [role, *others])])
        yield (
            "rights",
            f"the role {role!r} has the right {rights}{taken}, which no policy restrains",
            [f"REVOKE {rights} ON {state.name} FROM {grantees}"],
        )
    for rule in state.rules:
        yield (
            "rules",
            f"the rule {rule} runs as the owner {state.owner!r}, whom no policy holds",
            [f"DROP RULE {quote_identifier(rule)} ON {state.name}"],
        )
    # Without any policy a child shows nothing to who asks for it by name.
    if state.is_parent or state.policies:
        for name, permissive in ((ACCESS, True), (FLOOR, False)):
            policy = state.policies.get(name)
            if policy is None:
                yield "policies", f"the policy {name} is missing", None
            else:
                for difference in _differences(policy, expected, role, permissive=permissive):
                    yield "policies", difference, None
    yield from _openings(state)


def _openings(state: TableState) -> Iterator[tuple[Kind, str, Sequence[str] | None]]:
    """Return what lets in more than our policies do, for roles that the floor is not for."""
    floor = state.policies.get(FLOOR)
    held = frozenset[str]() if floor is None else floor.roles
    for policy in state.policies.values():
        if not policy.permissive:
            continue
        drop = [f"DROP POLICY {quote_identifier(policy.name)} ON {state.name}"]
        remedies = None if policy.name == ACCESS else drop
        if PUBLIC in policy.roles:
            yield (
                "policies",
                f"the policy {policy.name} is for PUBLIC, so it lets in roles that nobody named",
                remedies,
            )
        elif policy.name != ACCESS and (reached := sorted(policy.reachable - held)):
            names = ", ".join(map(repr, reached))
            yield (
                "policies",
                (
                    f"the policy {policy.name} is for {names}, whom the role can become and "
                    f"{FLOOR} does not hold"
                ),
                remedies,
            )


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
