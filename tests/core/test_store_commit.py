"""A commit whose answer is lost: it is read back, and never guessed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from tenancy_core import Tenancy
from tenancy_core._stores.sql import SqlTenantStore, transaction
from tenancy_core.errors import BackendUnavailable, CommitUnknown
from tenancy_core.sql import ConnectionBudget
from tenancy_core.tenant import Placement, Tenant, TenantStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


class LostAnswer:
    """The network at the moment of a COMMIT: it carries the question or not, and no answer."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._commit = AsyncConnection.commit
        self._patch = patch
        self.arrives = True
        self.lost = 0

    def __call__(self, *, arrives: bool) -> None:
        """Lose the answer to the next COMMIT."""
        self.arrives = arrives
        fault = self

        async def commit(connection: AsyncConnection) -> None:
            fault._patch.undo()
            fault.lost += 1
            if fault.arrives:
                await fault._commit(connection)
            error = OperationalError("COMMIT", {}, ConnectionResetError())
            error.connection_invalidated = True
            raise error

        self._patch.setattr(AsyncConnection, "commit", commit)


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> LostAnswer:
    monkeypatch.setattr(transaction, "_READ_BACK_PAUSE", 0.01)
    patch = pytest.MonkeyPatch()
    return LostAnswer(patch)


@pytest.fixture
async def store(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[SqlTenantStore]:
    async with SqlTenantStore(make_config(), ConnectionBudget(4)) as opened:
        yield opened


def tenant() -> Tenant:
    now = datetime.now(UTC)
    return Tenant(
        id=uuid4(),
        identifier="acme",
        name="Acme",
        status=TenantStatus.ACTIVE,
        created_at=now,
        updated_at=now,
        isolation="database",
        placement=Placement(name="tenant_acme"),
    )


async def test_A3_a_commit_that_arrived_is_known_to_have_arrived(
    store: SqlTenantStore, lose: LostAnswer
) -> None:
    acme = tenant()
    lose(arrives=True)
    async with store.transaction() as writing:
        await writing.create(acme)
        await writing.enqueue(acme.id)
    assert lose.lost == 1
    assert await store.get(acme.id) is not None
    assert await store.last_change() == 1


async def test_A3_a_commit_that_did_not_arrive_is_an_error_and_nothing_else(
    store: SqlTenantStore, lose: LostAnswer
) -> None:
    acme = tenant()
    lose(arrives=False)
    with pytest.raises(BackendUnavailable, match="nothing was changed"):
        async with store.transaction() as writing:
            await writing.create(acme)
            await writing.enqueue(acme.id)
    assert await store.get(acme.id) is None
    assert await store.last_change() == 0


async def test_A3_somebody_elses_change_is_not_taken_for_ours(
    store: SqlTenantStore, lose: LostAnswer
) -> None:
    acme = tenant()
    async with store.transaction() as writing:
        await writing.create(acme)
        await writing.enqueue(acme.id)
    lose(arrives=False)
    with pytest.raises(BackendUnavailable):
        async with store.transaction() as writing:
            await writing.update(replace(acme, name="B", version=2), expected_version=1)
            await writing.enqueue(acme.id)
    found = await store.get(acme.id)
    assert found is not None
    assert (found.name, found.version) == ("Acme", 1)


async def test_a_commit_that_cannot_be_read_back_is_unknown_and_says_so(
    store: SqlTenantStore, lose: LostAnswer
) -> None:
    acme = tenant()

    def unreachable(*_: Any) -> None:
        raise OperationalError("BEGIN", {}, ConnectionRefusedError())

    lose(arrives=True)
    with pytest.raises(CommitUnknown, match="Read the tenant again"):
        async with store.transaction() as writing:
            await writing.create(acme)
            await writing.enqueue(acme.id)
            event.listen(store._database.engine.sync_engine, "begin", unreachable)
    event.remove(store._database.engine.sync_engine, "begin", unreachable)
    assert await store.get(acme.id) is not None


async def test_A3_a_control_plane_action_survives_a_lost_answer(
    make_config: Callable[..., TenancyConfig], lose: LostAnswer
) -> None:
    async with Tenancy(make_config()) as tenancy:
        acme = await tenancy.tenants.create("acme")
        lose(arrives=True)
        assert (await tenancy.tenants.suspend("acme")).status is TenantStatus.SUSPENDED
        assert lose.lost == 1
        log = await tenancy.parts.store.audit(acme.id)
        assert [entry.action for entry in log].count("tenant.suspended") == 1
