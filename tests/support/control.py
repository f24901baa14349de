"""Control-plane operations, what kills them at any step, and what must be so afterwards."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from support.notes import Base, write
from tenancy_core import Tenancy, TenancyConfig, TenantNotFound, TenantStatus
from tenancy_core.crypto import Sensitive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tenancy_core import Tenant

ACME: Final = UUID("00000000-0000-4000-8000-00000000acae")
BETA: Final = UUID("00000000-0000-4000-8000-00000000be1a")

OLD_KEY: Final = "old-encryption-key-of-32-characters-"
NEW_KEY: Final = "new-encryption-key-of-32-characters-"

CARD: Final = "4111-1111-1111-1111"


def control_config(folder: Path, **settings: Any) -> TenancyConfig:
    """Settings for a control database in a folder, with encryption, and no background SQL."""
    return TenancyConfig(
        **{
            "database_url": f"sqlite+aiosqlite:///{folder}/control.db",
            "enable_encryption": True,
            "encryption_keys": [NEW_KEY, OLD_KEY],
            # Whoever counts statements must not count those of a poll.
            "invalidation_poll_seconds": 3600,
            "l1_cache_ttl_seconds": 3600,
            **settings,
        }
    )


def control_tenancy(folder: Path, **settings: Any) -> Tenancy:
    """A ``Tenancy`` on :func:`control_config`."""
    return Tenancy(control_config(folder, **settings), metadata=Base.metadata)


# -- operations ------------------------------------------------------------------------------------


async def _create(tenancy: Tenancy) -> None:
    await tenancy.tenants.create("gamma", metadata={"card": Sensitive(CARD)}, actor="ada")


async def _rename(tenancy: Tenancy) -> None:
    await tenancy.tenants.rename(ACME, "renamed", name="Renamed", actor="ada")


async def _set_plan(tenancy: Tenancy) -> None:
    await tenancy.tenants.set_plan(ACME, "pro", limits={"rate_limit_per_minute": 7})


async def _set_metadata(tenancy: Tenancy) -> None:
    await tenancy.tenants.set_metadata(ACME, {"card": Sensitive(CARD), "colour": "red"})


async def _put_secret(tenancy: Tenancy) -> None:
    await tenancy.tenants.put_secret(ACME, "token", "canary-of-the-token")


async def _suspend(tenancy: Tenancy) -> None:
    await tenancy.tenants.suspend(ACME, reason="unpaid")


async def _archive(tenancy: Tenancy) -> None:
    await tenancy.tenants.archive(ACME, reason="left")


async def _restore(tenancy: Tenancy) -> None:
    await tenancy.tenants.restore(ACME, reason="came back")


async def _erase(tenancy: Tenancy) -> None:
    await tenancy.tenants.erase(ACME, reason="asked for it", actor="ada")


async def _rewrap_keys(tenancy: Tenancy) -> None:
    await tenancy.tenants.rewrap_keys(actor="ada")


OPERATIONS: Final[dict[str, Callable[[Tenancy], Awaitable[None]]]] = {
    "create": _create,
    "rename": _rename,
    "set_plan": _set_plan,
    "set_metadata": _set_metadata,
    "put_secret": _put_secret,
    "suspend": _suspend,
    "archive": _archive,
    "restore": _restore,
    "erase": _erase,
    "rewrap_keys": _rewrap_keys,
}

WRITES_AGAIN: Final = frozenset({"set_metadata", "put_secret"})
"""Each call is a change: what is encrypted anew is never equal to what is there."""


async def prepare(folder: Path, operation: str) -> None:
    """Make the tenants ``acme`` and ``beta``, each with data and secrets, for an operation."""
    async with control_tenancy(folder, encryption_keys=[OLD_KEY]) as tenancy:
        for tenant_id, name in ((ACME, "acme"), (BETA, "beta")):
            await tenancy.tenants.create(
                name,
                name=f"{name} inc",
                tenant_id=tenant_id,
                metadata={"vat": Sensitive(f"vat of {name}")},
                actor=f"actor-of-{name}",
            )
            await tenancy.tenants.put_secret(tenant_id, "password", f"password of {name}")
            async with tenancy.scope(name):
                await write(tenancy, f"note of {name}")
        if operation == "restore":
            await tenancy.tenants.suspend(ACME)
        if operation in {"restore", "erase"}:
            await tenancy.tenants.archive(ACME)


async def outcome(tenancy: Tenancy, operation: str) -> bool:  # noqa: PLR0911 - a table
    """Whether an operation is complete, as far as the record tells."""
    service = tenancy.tenants
    try:
        tenant = await service.get("gamma" if operation == "create" else ACME)
    except TenantNotFound:
        return False
    match operation:
        case "create":
            revealed = await service.reveal(tenant)
            return tenant.active and revealed == {"card": Sensitive(CARD)}
        case "rename":
            return (tenant.identifier, tenant.name) == ("renamed", "Renamed")
        case "set_plan":
            return tenant.plan == "pro" and tenant.limits == {"rate_limit_per_minute": 7}
        case "set_metadata":
            return await service.reveal(tenant) == {"card": Sensitive(CARD), "colour": "red"}
        case "put_secret":
            secret = await service.get_secret(ACME, "token")
            return secret is not None and secret.get_secret_value() == "canary-of-the-token"
        case "suspend" | "restore":
            return tenant.status is TenantStatus.SUSPENDED
        case "archive":
            return tenant.status is TenantStatus.ARCHIVED
        case "erase":
            return tenant.status is TenantStatus.ERASED
        case _:
            log = [await actions(tenancy, one) for one in (ACME, BETA)]
            return all("tenant.key_rewrapped" in one for one in log)


# -- what must be so -------------------------------------------------------------------------------


async def actions(tenancy: Tenancy, tenant_id: UUID) -> list[str]:
    """What the audit log says was done, in order; fails if it has a gap or does not verify."""
    log = await tenancy.audit.read(tenant_id, limit=1000)
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    report = await tenancy.audit.verify(tenant_id)
    assert report.ok, report.reason
    return [event.action for event in log]


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the control database."""
    with closing(sqlite3.connect(folder / "control.db")) as connection:
        return connection.execute(query).fetchall()


def checksums(folder: Path, *, without: str = "") -> dict[str, str]:
    """SHA-256 of the tenants' files, but for those whose name contains ``without``."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "tenants").iterdir())
        if not without or without not in path.name
    }


async def assert_consistent(tenancy: Tenancy, folder: Path) -> None:
    """What holds for a control plane on which nothing is half-way, whatever was done to it.

    Each version of a record is one audit event and one entry of the change sequence; a file is
    there for each tenant that has a place, and nothing else.
    """
    records: dict[str, tuple[str, int, str]] = {
        tenant_id: (status, version, place)
        for tenant_id, status, version, place in rows(
            folder, "SELECT id, status, version, placement_name FROM tenancy_tenants"
        )
    }
    for tenant_id, (status, version, _) in records.items():
        log = await actions(tenancy, UUID(tenant_id))
        assert len(log) == version, (status, log)
        assert status not in {"provisioning", "failed"}
    entries = rows(folder, "SELECT sequence, tenant_id FROM tenancy_changes ORDER BY sequence")
    assert [sequence for sequence, _ in entries] == list(range(1, len(entries) + 1))
    assert rows(folder, "SELECT value FROM tenancy_counters WHERE name = 'changes'") == [
        (len(entries),)
    ]
    assert Counter(owner for _, owner in entries) == {
        tenant_id: version for tenant_id, (_, version, _) in records.items()
    }
    alive = {key for key, (status, _, _) in records.items() if status != "erased"}
    files = {path.name for path in (folder / "tenants").iterdir() if path.suffix == ".db"}
    assert files == {f"{records[key][2]}.db" for key in alive}
    strangers = {path.name for path in (folder / "tenants").iterdir()} - {
        f"{file}{suffix}" for file in files for suffix in ("", "-wal", "-shm")
    }
    assert not strangers
    assert {key for (key,) in rows(folder, "SELECT tenant_id FROM tenancy_secrets")} == alive
    journal = rows(folder, "SELECT tenant_id, operation FROM tenancy_journal")
    archived = {key for key, (status, _, _) in records.items() if status == "archived"}
    assert {key for key, operation in journal if operation == "archive"} == archived
    assert {key for key, operation in journal if operation == "create"} == alive
    assert not [key for key, operation in journal if operation == "erase"]


async def assert_untouched(tenancy: Tenancy, tenant: Tenant) -> None:
    """A bystander is as it was."""
    assert await tenancy.tenants.get(tenant.id) == tenant


# -- killed ----------------------------------------------------------------------------------------

KILLED: Final = """
from pathlib import Path
import tenancy_sqlite.files
from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect
from support.control import OPERATIONS, control_tenancy

async def work(folder, operation, left):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        asyncio.run(die(Path(folder), operation, int(left)))
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)

async def die(folder, operation, left):
    async with control_tenancy(folder) as tenancy:

        def step(*_):
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1

        def around(owner, name):
            real = getattr(owner, name)

            def stepping(*given, **named):
                step()
                result = real(*given, **named)
                step()
                return result

            setattr(owner, name, stepping)

        for name in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(Engine, name, step)
        around(DefaultDialect, "do_commit")
        around(tenancy_sqlite.files.TenantFiles, "create")
        around(tenancy_sqlite.files.Path, "unlink")
        await OPERATIONS[operation](tenancy)
"""
"""A crew's program: ``work(folder, operation, left)`` dies (exit 9) at the step after ``left``
steps; a step is before and after each statement, each COMMIT and each operation on a file."""


# -- without files ---------------------------------------------------------------------------------


class Places:
    """An isolation strategy that only remembers which places there are.

    Attributes:
        there: Their names.
        failing: What the next calls of a method raise, by its name.
        during: Called (and awaited) in the middle of a method, by its name.
    """

    name = "database"

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.failing: dict[str, Exception] = {}
        self.during: dict[str, Callable[[Tenant], Awaitable[object]]] = {}

    async def _meet(self, method: str, tenant: Tenant) -> None:
        if method in self.during:
            await self.during[method](tenant)
        if method in self.failing:
            raise self.failing[method]

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract; what fails leaves something behind."""
        if "provision" in self.during:
            await self.during["provision"](tenant)
        self.there.add(tenant.placement.name)
        if "provision" in self.failing:
            raise self.failing["provision"]

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        return tenant.placement.name in self.there

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract."""
        await self._meet("destroy", tenant)
        self.there.discard(tenant.placement.name)

    def session(self, _tenant: Tenant, /, *, read_only: bool = False) -> Any:
        """Nobody opens one."""
        raise NotImplementedError

    def connection(self, _tenant: Tenant, /, *, read_only: bool = False) -> Any:
        """Nobody opens one."""
        raise NotImplementedError


async def snapshot(tenancy: Tenancy) -> tuple[object, ...]:
    """Everything that a refused call must leave as it is (of a store in memory)."""
    state: Any = tenancy.parts.store
    state = state._state
    return tuple(
        dict(kept) if isinstance(kept, dict) else kept
        for kept in (getattr(state, name) for name in type(state).__slots__)
    )
