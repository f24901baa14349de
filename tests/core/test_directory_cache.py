"""The first cache: bounded, believed for a time, and second chance for what is used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenancy_core._directory import L1Cache
from tenancy_core._directory.l1 import Entry
from tenancy_core.context import Binding
from tenancy_core.tenant import Placement, Tenant, TenantStatus


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def binding(identifier: str = "acme", **values: Any) -> Binding:
    now = datetime.now(UTC)
    return Binding(
        Tenant(
            **{
                "id": uuid4(),
                "identifier": identifier,
                "name": identifier,
                "status": TenantStatus.ACTIVE,
                "created_at": now,
                "updated_at": now,
                "isolation": "database",
                "placement": Placement(name="x"),
                **values,
            }
        ),
        None,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> L1Cache:
    return L1Cache(3, 60.0, clock)


def test_what_was_not_used_goes_before_what_was(cache: L1Cache) -> None:
    for name in ("a", "b", "c"):
        cache.put(binding(name))
    assert cache.get("a") is not None
    cache.put(binding("d"))
    assert [name for name in "abcd" if cache.get(name)] == ["a", "c", "d"]


def test_what_was_used_once_and_never_again_goes_in_the_end(cache: L1Cache) -> None:
    for name in ("a", "b", "c"):
        cache.put(binding(name))
        cache.get(name)
    for name in ("d", "e", "f"):
        cache.put(binding(name))
    assert [name for name in "abcdef" if name in cache._by_identifier] == ["d", "e", "f"]


def test_a_tenant_is_in_it_once_whatever_its_name_was(cache: L1Cache) -> None:
    first = binding("a")
    cache.put(first)
    renamed = binding("b", id=first.tenant.id)
    cache.put(renamed)
    assert cache.get("a") is None
    entry = cache.get("b")
    assert entry is not None
    assert entry.binding is renamed
    assert cache.get_by_id(first.tenant.id) is entry
    # And a name has one tenant: the old one's is taken over by another.
    taken = binding("b")
    cache.put(taken)
    assert cache.get_by_id(first.tenant.id) is None
    assert len(cache) == 1


def test_an_alias_goes_with_its_entry_however_that_goes(clock: Clock) -> None:
    for goes in ("forget", "expire", "evict", "replace", "clear"):
        cache = L1Cache(1, 60.0, clock)
        bound = binding()
        entry = cache.put(bound)
        cache.alias(b"acme", entry)
        assert cache.aliases == {b"acme": entry}
        if goes == "forget":
            cache.forget(bound.tenant.id)
        elif goes == "expire":
            clock.now += 60
            assert cache.get("acme") is None
        elif goes == "evict":
            cache.put(binding("beta"))
        elif goes == "replace":
            cache.put(binding(id=bound.tenant.id))
        else:
            cache.clear()
        assert cache.aliases == {}, goes


def test_an_alias_is_only_for_what_is_in_it_and_served(cache: L1Cache) -> None:
    suspended = cache.put(binding("s", status=TenantStatus.SUSPENDED))
    cache.alias(b"s", suspended)
    gone = cache.put(binding("g"))
    cache.forget(gone.tenant.id)
    cache.alias(b"g", gone)
    cache.alias(b"x", Entry(binding("x"), 2000))
    assert cache.aliases == {}


def test_an_alias_is_never_moved_to_another_tenant(cache: L1Cache) -> None:
    first, second = cache.put(binding("a")), cache.put(binding("b"))
    cache.alias(b"same", first)
    cache.alias(b"same", second)
    assert cache.aliases == {b"same": first}
    cache.forget(second.tenant.id)
    assert cache.aliases == {b"same": first}


def test_K2_nobody_can_fill_the_memory_with_spellings_of_one_tenant(cache: L1Cache) -> None:
    entry = cache.put(binding())
    for number in range(1000):
        cache.alias(b"acme:%d" % number, entry)
    assert len(cache.aliases) == len(entry.aliases) == 4


def test_a_tenant_that_is_not_served_is_kept_as_long_as_nobody_is(
    cache: L1Cache, clock: Clock
) -> None:
    cache.put(binding("s", status=TenantStatus.SUSPENDED))
    cache.put_nobody("n")
    clock.now += 4.9
    assert cache.get("s") is not None
    assert cache.is_nobody("n")
    clock.now += 0.1
    assert cache.get("s") is None
    assert not cache.is_nobody("n")


@given(st.floats(min_value=0.001, max_value=1e6))
def test_nobody_is_never_kept_longer_than_five_seconds_nor_than_a_tenant(ttl: float) -> None:
    clock = Clock()
    cache = L1Cache(3, ttl, clock)
    cache.put_nobody("n")
    clock.now += min(5.0, ttl) + 1e-6
    assert not cache.is_nobody("n")


class CacheMachine(RuleBasedStateMachine):
    """Whatever happens to it, it is bounded, consistent, and believes nothing for too long."""

    size = 4
    ttl = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = L1Cache(self.size, self.ttl, self.clock)
        self.tenants = {name: binding(name).tenant for name in "abcdefg"}
        self.put_at: dict[str, float] = {}

    names = st.sampled_from("abcdefg")

    @rule(name=names, served=st.booleans())
    def put(self, name: str, *, served: bool) -> None:
        status = TenantStatus.ACTIVE if served else TenantStatus.SUSPENDED
        bound = binding(name, id=self.tenants[name].id, status=status)
        self.tenants[name] = bound.tenant
        entry = self.cache.put(bound)
        self.put_at[name] = self.clock.now
        self.cache.alias(name.encode(), entry)
        assert self.cache.get(name) is entry
        assert not self.cache.is_nobody(name)

    @rule(name=names)
    def put_nobody(self, name: str) -> None:
        self.cache.put_nobody(name)

    @rule(name=names)
    def get(self, name: str) -> None:
        entry = self.cache.get(name)
        if entry is not None:
            assert entry.tenant is self.tenants[name]
            assert self.clock.now < self.put_at[name] + self.ttl
            assert self.cache.get_by_id(entry.tenant.id) is entry

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.cache.forget(self.tenants[name].id)
        assert self.cache.get(name) is None
        assert not self.cache.is_nobody(name)

    @rule(seconds=st.floats(min_value=0, max_value=6))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.put_at)
    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def bounded(self) -> None:
        assert len(self.cache) <= self.size
        assert self.cache.negative_entries <= self.size

    @invariant()
    def consistent(self) -> None:
        entries = list(self.cache._by_identifier.values())
        assert {id(entry) for entry in entries} == {
            id(entry) for entry in self.cache._by_id.values()
        }
        for raw, entry in self.cache.aliases.items():
            assert raw in entry.aliases
            assert entry in entries
            assert entry.tenant.active
            assert entry.tenant.identifier.encode() == raw


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestWhateverHappensTheCacheIsSound = CacheMachine.TestCase
