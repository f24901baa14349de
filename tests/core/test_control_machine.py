"""Random calls of the control plane against a model of it (rows C2, C5 and C6 of the threats)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from support.control import NEW_KEY, Places
from tenancy_core import Tenancy, TenancyConfig, TenantStatus
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import (
    BackendUnavailable,
    InvalidTransition,
    TenancyError,
    TenantExists,
    TenantLimitReached,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from uuid import UUID

NAMES = st.sampled_from(["a", "b", "c", "d"])
MOST = 3


class Known:
    """What the model knows of one tenant."""

    def __init__(self, identifier: str, status: str) -> None:
        self.identifier = identifier
        self.name = identifier
        self.status = status
        self.before = ""
        self.erasing = False
        self.plan: str | None = None
        self.version = 0


class ControlPlane(RuleBasedStateMachine):
    """Calls, what the model says of them, and what holds whatever was called."""

    keys: Bundle[UUID] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.places = Places()
        self.store = MemoryTenantStore()
        config = TenancyConfig(
            database_url="sqlite+aiosqlite:///./unused.db",
            max_tenants=MOST,
            enable_encryption=True,
            encryption_keys=[NEW_KEY],
        )
        self.tenancy = Tenancy(config, store=self.store, isolation=self.places)
        self.known: dict[UUID, Known] = {}
        self.held: dict[str, UUID] = {}
        self.versions: dict[UUID, int] = {}
        self.committed = 0

    @initialize()
    def open(self) -> None:
        self.run(self.tenancy.__aenter__())
        self.service = self.tenancy.tenants

    def teardown(self) -> None:
        self.run(self.tenancy.__aexit__(None, None, None))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def call(self, expected: type[TenancyError] | None, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a call that raises exactly what the model says, and count what it committed."""
        before = self.run(self.store.last_change())
        try:
            result = self.run(work)
        except TenancyError as error:
            if type(error) is not expected:
                raise
            if expected is not BackendUnavailable:
                assert self.run(self.store.last_change()) == before
            return None
        assert expected is None, expected
        return result

    def taken(self, name: str, key: UUID | None) -> bool:
        """Whether a name is another's, or was a moment ago (no time passes here)."""
        owners = {one.identifier: owner for owner, one in self.known.items() if one.identifier}
        return owners.get(name, key) != key or self.held.get(name, key) != key

    # -- calls -------------------------------------------------------------------------------------

    @rule(target=keys, name=NAMES, fails=st.booleans())
    def create(self, name: str, fails: bool) -> Any:
        unfinished = [
            key
            for key, one in self.known.items()
            if one.identifier == name and one.status == "failed"
        ]
        alive = sum(one.status != "erased" for one in self.known.values())
        expected: type[TenancyError] | None = None
        if not unfinished:
            owned = any(one.identifier == name for one in self.known.values())
            if owned:
                expected = TenantExists
            elif alive >= MOST:
                expected = TenantLimitReached
            elif self.taken(name, None):
                expected = TenantExists
        if fails and expected is None:
            self.places.failing["provision"] = BackendUnavailable("down")
            expected = BackendUnavailable
        self.call(expected, self.service.create(name))
        self.places.failing.clear()
        if expected not in (None, BackendUnavailable):
            return multiple()
        made = self.run(self.service.get(name))
        assert made.status == ("failed" if fails else "active")
        self.known.setdefault(made.id, Known(name, "")).status = made.status.value
        return multiple() if unfinished else made.id

    @rule(key=keys, name=NAMES)
    def rename(self, key: UUID, name: str) -> None:
        one = self.known[key]
        expected: type[TenancyError] | None = None
        if one.status not in {"active", "suspended"}:
            expected = InvalidTransition
        elif self.taken(name, key):
            expected = TenantExists
        self.call(expected, self.service.rename(key, name))
        if expected is None and name != one.identifier:
            self.held[one.identifier] = key
            one.identifier = name

    @rule(key=keys, plan=st.sampled_from([None, "pro"]))
    def set_plan(self, key: UUID, plan: str | None) -> None:
        one = self.known[key]
        served = one.status in {"active", "suspended"}
        self.call(None if served else InvalidTransition, self.service.set_plan(key, plan))
        if served:
            one.plan = plan

    @rule(key=keys, method=st.sampled_from(["suspend", "resume"]))
    def turn(self, key: UUID, method: str) -> None:
        one = self.known[key]
        served = one.status in {"active", "suspended"}
        self.call(None if served else InvalidTransition, getattr(self.service, method)(key))
        if served:
            one.status = {"suspend": "suspended", "resume": "active"}[method]

    @rule(key=keys)
    def archive(self, key: UUID) -> None:
        one = self.known[key]
        allowed = one.status in {"active", "suspended", "archived"}
        self.call(None if allowed else InvalidTransition, self.service.archive(key))
        if one.status in {"active", "suspended"}:
            one.before, one.status = one.status, "archived"

    @rule(key=keys)
    def restore(self, key: UUID) -> None:
        one = self.known[key]
        allowed = one.status in {"active", "suspended", "archived"} and not one.erasing
        self.call(None if allowed else InvalidTransition, self.service.restore(key))
        if allowed and one.status == "archived":
            one.status = one.before

    @rule(key=keys, fails=st.booleans())
    def erase(self, key: UUID, fails: bool) -> None:
        one = self.known[key]
        if one.status == "erased":
            self.call(None, self.service.erase(key))
            return
        if one.status in {"active", "suspended"}:
            self.call(InvalidTransition, self.service.erase(key))
            return
        if fails:
            self.places.failing["destroy"] = BackendUnavailable("down")
        self.call(BackendUnavailable if fails else None, self.service.erase(key))
        self.places.failing.clear()
        one.status, one.erasing = "archived", True
        if not fails:
            self._erased(key)

    def _erased(self, key: UUID) -> None:
        one = self.known[key]
        self.held[one.identifier] = key
        one.status, one.identifier, one.plan, one.erasing = "erased", "", None, False

    @rule(remove=st.booleans())
    def reconcile(self, remove: bool) -> None:
        for one in self.run(self._reconcile(remove=remove)):
            if one.outcome == "erased":
                self._erased(one.tenant.id)
            else:
                assert one.outcome == "provisioned"
                self.known[one.tenant.id].status = "active"
        assert not [one for one in self.known.values() if one.erasing or one.status == "failed"]

    async def _reconcile(self, *, remove: bool) -> Any:
        return await self.service.reconcile(older_than=timedelta(0), remove=remove)

    @rule(key=keys, value=st.sampled_from(["x", None]))
    def put_secret(self, key: UUID, value: str | None) -> None:
        erased = self.known[key].status == "erased"
        expected = InvalidTransition if erased else None
        self.call(expected, self.service.put_secret(key, "token", value))

    @rule(key=keys)
    def change_what_was_seen_long_ago(self, key: UUID) -> None:
        if self.known[key].status != "erased":
            self.call(VersionConflict, self.service.suspend(key, expected_version=0))

    @rule(key=consumes(keys))
    def lose_sight_of(self, key: UUID) -> None:
        """Nobody calls it again; it is still looked at."""
        assert key in self.known

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        names = []
        total = 0
        for key, one in self.known.items():
            tenant = self.run(self.service.get(key))
            assert (tenant.identifier, tenant.status, tenant.plan) == (
                one.identifier,
                one.status,
                one.plan,
            )
            assert tenant.version >= self.versions.get(key, 1)
            self.versions[key] = tenant.version
            total += tenant.version
            names.append(tenant.identifier)
            log = self.run(self.tenancy.audit.read(key, limit=1000))
            assert [event.sequence for event in log] == list(range(1, tenant.version + 1))
            assert self.run(self.tenancy.audit.verify(key)).ok
            there = tenant.placement.name in self.places.there
            if tenant.status in {TenantStatus.ACTIVE, TenantStatus.SUSPENDED}:
                assert there
            if tenant.status is TenantStatus.ERASED:
                assert not there
                assert not self.run(self.store.secret_names(key))
                assert not any(event.personal or event.actor for event in log)
        taken = [name for name in names if name]
        assert len(set(taken)) == len(taken)
        assert self.run(self.store.last_change()) == total
        assert len(self.places.there) <= sum(one.status != "erased" for one in self.known.values())


def test_whatever_is_called_in_whatever_order_the_control_plane_is_as_the_model_says() -> None:
    run_state_machine_as_test(
        ControlPlane,
        settings=settings(max_examples=60, stateful_step_count=30, derandomize=True),
    )
