"""Whether tenants' sessions get at the tenant store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.tables import NAMESPACE
from tenancy_postgres.checks.store import store_connection
from tenancy_postgres.checks.whose import logins_of, roles_of
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.roles import ADMIN_OPTION
from tenancy_postgres.rls.store_rights import STORE, STORE_NAMES, uses_store
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["control_role"]

_NAME: Final = "postgres.control-role"
_SUPERUSER: Final = "a superuser"

# In the store's database. Every membership counts, inherited or not: SET ROLE makes use of it.
_READERS: Final = text(
    f"""
    WITH RECURSIVE {STORE}, reach AS (
      SELECT oid, rolname AS root, CAST(NULL AS name) AS first, CAST(NULL AS name) AS grantor
        FROM pg_catalog.pg_roles
       WHERE rolname = ANY (CAST(:roles AS text[])) AND NOT rolsuper
      UNION
      SELECT m.roleid, r.root, coalesce(r.first, g.rolname),
             coalesce(r.grantor, pg_catalog.pg_get_userbyid(m.grantor))
        FROM reach AS r
        JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
        JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
    )
    SELECT r.rolname::text AS name, reach.root::text AS root, reach.first::text AS first,
           reach.grantor::text AS grantor, r.rolname = current_user AS is_store,
           pg_catalog.current_setting('server_version_num')::int AS version
      FROM reach JOIN pg_catalog.pg_roles AS r ON r.oid = reach.oid
     WHERE NOT r.rolsuper
       AND (
         r.rolname = current_user
         OR {uses_store("r.oid")}
       )
     ORDER BY reach.root, r.rolname, reach.first
    """  # noqa: S608 - constants
)
_PUBLIC: Final = "'public'"
_PUBLIC_READS: Final = text(f"WITH {STORE} SELECT {uses_store(_PUBLIC)}")


async def control_role(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield how the role of sessions gets at the tenant store."""
    found: dict[str, frozenset[str]] = {}
    for isolation in strategies.shared:
        roles, _ = await roles_of(isolation)
        found[_server_of(isolation.tenants.place)] = roles
    for database in strategies.database:
        for server in database.servers.values():
            if not server.address.own:
                facts = await server.facts()
                name = server.address.url.username or ""
                before = found.get(_server_of(facts.place), frozenset())
                found[_server_of(facts.place)] = before | {name}
    async with store_connection(tenancy) as connection:
        if connection is None:
            return
        store = await facts_of(connection)
        # Where the server is another one, a role of the same name is another one.
        roles = found.get(_server_of(store.place), frozenset())
        if strategies.database:
            roles |= {*await logins_of(connection)}
        rows = (await connection.execute(_READERS, {**STORE_NAMES, "roles": sorted(roles)})).all()
        anybody = (await connection.execute(_PUBLIC_READS, STORE_NAMES)).scalar_one()
    if anybody:
        yield Finding(
            _NAME,
            Severity.ERROR,
            "Every role that may connect to the database of the tenant store may use it: PUBLIC "
            "has rights on it.",
            to_run("the owner of the tenant store", _revokes("PUBLIC")),
        )
        return
    for finding in _reaching(rows, tenancy.config.control_setting):
        yield finding


def _server_of(place: str) -> str:
    """Return the part of a place that two databases of a server have in common."""
    return place.partition(" ")[2]


def _reaching(rows: Iterable[Any], setting: str) -> Iterator[Finding]:
    ways: dict[str, list[Any]] = {}
    for row in rows:
        ways.setdefault(row.root, []).append(row)
    for root, found in ways.items():
        if any(row.is_store and row.first is None for row in found):
            yield Finding(
                _NAME,
                Severity.ERROR,
                f"Tenants' sessions have the role {root!r} of the tenant store, and can change it.",
                f"Give the tenant store a role of its own in {_other(setting)}, and let tenants' "
                "sessions have no rights in its schema.",
            )
            continue
        lines = [line for row in found for line in _closing(row)]
        whose = dict.fromkeys(f"{row.name!r}" for row in found if row.first is not None)
        how = f", as a member of {listed(whose)}" if whose else ""
        yield Finding(
            _NAME,
            Severity.ERROR,
            f"The role {root!r} of tenants' sessions reaches the tenant store{how}.",
            to_run(_SUPERUSER, lines),
        )


def _other(setting: str) -> str:
    return "TENANCY_CONTROL_DATABASE_URL" if setting == "TENANCY_DATABASE_URL" else setting


def _closing(row: Any) -> Sequence[str]:  # noqa: ANN401 - a row
    if row.first is None:
        return _revokes(quote_identifier(row.name))
    giver = f" GRANTED BY {quote_identifier(row.grantor)}" if row.version >= ADMIN_OPTION else ""
    return [f"REVOKE {quote_identifier(row.first)} FROM {quote_identifier(row.root)}{giver}"]


def _revokes(grantee: str) -> Sequence[str]:
    schema = quote_identifier(NAMESPACE)
    return [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {grantee}",
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {grantee}",
        f"REVOKE ALL ON SCHEMA {schema} FROM {grantee}",
    ]
