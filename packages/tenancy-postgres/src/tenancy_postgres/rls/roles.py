"""Whether the role of tenants' sessions could step around the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from sqlalchemy import text

from tenancy_postgres.quoting import quote_identifier, quote_setting
from tenancy_postgres.rls.store_rights import STORE, STORE_NAMES, uses_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["ADMIN_OPTION", "Danger", "dangers_of"]

Kind: TypeAlias = Literal[
    "bypass", "database", "maker", "owner", "preset", "server", "store", "superuser"
]


class Danger(NamedTuple):
    """One way for a role to step around what keeps tenants apart.

    Attributes:
        kind: What it comes from.
        sentence: What it is, without a full stop.
        remedies: Statements for a superuser that take it away; empty where none can.
    """

    kind: Kind
    sentence: str
    remedies: Sequence[str]


# Every membership counts, inherited or not: SET ROLE makes use of it, and ADMIN can change it.
_REACH: Final = text(
    f"""
    WITH RECURSIVE {STORE}, reach AS (
      SELECT oid, rolname AS root, CAST(NULL AS name) AS first, CAST(NULL AS name) AS grantor
        FROM pg_catalog.pg_roles WHERE rolname = ANY (CAST(:roles AS text[]))
      UNION
      SELECT m.roleid, r.root, coalesce(r.first, g.rolname),
             coalesce(r.grantor, pg_catalog.pg_get_userbyid(m.grantor))
        FROM reach AS r
        JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
        JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
    )
    SELECT r.rolname::text AS name, reach.root::text AS root, reach.first::text AS first,
           reach.grantor::text AS grantor, r.rolsuper AS superuser, r.rolbypassrls AS bypasses,
           r.rolcreaterole AS creates_roles, r.rolreplication AS replicates,
           d.datdba = r.oid AS owns_database,
           {uses_store("r.oid")} AS reads_store
      FROM reach JOIN pg_catalog.pg_roles AS r ON r.oid = reach.oid
      JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
     ORDER BY r.rolname, reach.root, reach.first, reach.grantor
    """  # noqa: S608 - constants
)

_PRESET: Final = text(
    """
    SELECT DISTINCT coalesce('role ' || r.rolname, 'database ' || d.datname, 'every role') AS place,
           concat_ws(
             ' IN ',
             CASE WHEN s.setrole <> 0 OR s.setdatabase = 0
                  THEN 'ROLE ' || coalesce(pg_catalog.quote_ident(r.rolname), 'ALL') END,
             'DATABASE ' || pg_catalog.quote_ident(d.datname)
           ) AS words
      FROM pg_catalog.pg_db_role_setting AS s
      LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
      LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
     WHERE (s.setrole = 0 OR r.rolname = ANY (CAST(:roles AS text[])))
       AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database())
       AND EXISTS (
         SELECT FROM pg_catalog.unnest(s.setconfig) AS line
          WHERE pg_catalog.starts_with(line, CAST(:setting AS text) || '=')
       )
     ORDER BY 1
    """
)

_LIKE_SUPERUSERS: Final = {
    **dict.fromkeys(
        ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"),
        "reaches the server's files",
    ),
    "pg_read_all_data": "reads statistics of all tenants' rows, passwords and the tenant store",
    "pg_write_all_data": "writes to the tenant store, and to whatever has no policies",
}
"""What they do that no policy restrains
(https://www.postgresql.org/docs/current/predefined-roles.html)."""

ADMIN_OPTION: Final = 160_000
"""From this version on CREATEROLE gives no membership in roles that somebody else made, and a
membership is taken away in the name of whoever gave it."""


async def dangers_of(
    connection: AsyncConnection,
    roles: frozenset[str],
    owners: frozenset[str],
    version: int,
    setting: str,
) -> list[Danger]:
    """Return why policies would not hold roles.

    Args:
        connection: Of any role.
        roles: That of tenants' sessions, and the one that they logged in with.
        owners: Roles that own tables of tenants, or the schemas that these are in.
        version: The server's, such as 170010.
        setting: The configuration's ``rls_setting``.
    """
    found = await connection.execute(_REACH, {**STORE_NAMES, "roles": sorted(roles)})
    dangers = [danger for row in found for danger in _dangers(row, roles, owners, version)]
    preset = await connection.execute(_PRESET, {"roles": sorted(roles), "setting": setting})
    dangers += [
        Danger(
            "preset",
            f"it is a tenant without being told: {setting} is set for {row.place}",
            [f"ALTER {row.words} RESET {quote_setting(setting)}"],
        )
        for row in preset
    ]
    return _each_once(dangers)


def _each_once(dangers: Iterable[Danger]) -> list[Danger]:
    """Join what is said of several ways to one role."""
    found: dict[tuple[Kind, str], dict[str, None]] = {}
    for danger in dangers:
        found.setdefault((danger.kind, danger.sentence), {}).update(dict.fromkeys(danger.remedies))
    return [Danger(kind, sentence, [*lines]) for (kind, sentence), lines in found.items()]


def _dangers(
    row: Row[Any], roles: frozenset[str], owners: frozenset[str], version: int
) -> Iterator[Danger]:
    found = [*_rights(row, version), *_belongings(row, owners)]
    if row.name in roles:
        yield from (Danger(kind, f"it {does}", remedies) for kind, does, remedies in found)
        return
    giver = f" GRANTED BY {quote_identifier(row.grantor)}" if version >= ADMIN_OPTION else ""
    leave = [f"REVOKE {quote_identifier(row.first)} FROM {quote_identifier(row.root)}{giver}"]
    for kind, does, _ in found:
        yield Danger(kind, f"it is a member of {row.name!r}, which {does}", leave)


def _rights(row: Row[Any], version: int) -> Iterator[tuple[Kind, str, Sequence[str]]]:
    alter = f"ALTER ROLE {quote_identifier(row.name)}"
    if row.superuser:
        yield "superuser", "is a superuser", [f"{alter} NOSUPERUSER"]
    elif row.bypasses:
        yield "bypass", "has BYPASSRLS", [f"{alter} NOBYPASSRLS"]
    if row.replicates:
        yield (
            "server",
            "has REPLICATION and can copy the whole server",
            [f"{alter} NOREPLICATION"],
        )
    if row.creates_roles and version < ADMIN_OPTION:
        yield (
            "maker",
            "has CREATEROLE and can become a member of any owner",
            [f"{alter} NOCREATEROLE"],
        )


def _belongings(row: Row[Any], owners: frozenset[str]) -> Iterator[tuple[Kind, str, Sequence[str]]]:
    if row.name in owners:
        yield "owner", "owns tables of tenants and can switch row-level security off", ()
    if row.owns_database:
        yield "database", "owns the database, and can drop what is in it", ()
    if row.name in _LIKE_SUPERUSERS:
        yield "server", _LIKE_SUPERUSERS[row.name], ()
    elif row.reads_store and not row.superuser:
        yield "store", "has rights on the tenant store", ()
