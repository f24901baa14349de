"""The first cache: tenants in the memory of one process."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tenancy_core.context import Binding
    from tenancy_core.tenant import Tenant

__all__ = ["Entry", "L1Cache"]

_ALIASES_PER_ENTRY: Final = 4
"""Spellings kept per tenant (a host with and without its port …); more would be a way to fill
memory from outside."""


class Entry:
    """A cached tenant.

    Attributes:
        binding: What a request binds to its context.
        expires: Reading of the clock at which the entry is no longer believed.
        used: Whether it was hit since the eviction hand last passed.
        aliases: Raw header bytes under which it is found without being decoded.
    """

    __slots__ = ("aliases", "binding", "expires", "used")

    def __init__(self, binding: Binding, expires: float) -> None:
        self.binding = binding
        self.expires = expires
        self.used = False
        self.aliases: list[bytes] = []

    @property
    def tenant(self) -> Tenant:
        """The tenant."""
        return self.binding.tenant


class L1Cache:
    """At most ``size`` tenants for at most ``ttl`` seconds, and as many identifiers of nobody.

    Nobody, and a tenant that is not served, are kept for a tenth of the time and 5 s at most; for
    the same time, because a stranger could tell one from the other by when an answer takes longer.

    Eviction is second chance (CLOCK): a hit only sets a bit, so that the path of a request takes
    no lock and reorders nothing; the hand passes over what was hit since it last came by.

    Attributes:
        aliases: Raw header bytes → entry. The middleware reads it directly; only raw values that
            were validated are ever in it, and only entries of active tenants.
    """

    __slots__ = (
        "_by_id",
        "_by_identifier",
        "_negative",
        "_size",
        "_ttl",
        "_unserved_ttl",
        "aliases",
        "clock",
    )

    def __init__(self, size: int, ttl: float, clock: Callable[[], float]) -> None:
        self._size = size
        self._ttl = ttl
        self._unserved_ttl = min(5.0, ttl / 10)
        self.clock = clock
        self._by_identifier: OrderedDict[str, Entry] = OrderedDict()
        self._by_id: dict[UUID, Entry] = {}
        self._negative: OrderedDict[str, float] = OrderedDict()
        self.aliases: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        return len(self._by_identifier)

    @property
    def negative_entries(self) -> int:
        """How many identifiers are remembered as nobody's."""
        return len(self._negative)

    def get(self, identifier: str) -> Entry | None:
        """Return the entry of an identifier if it is still believed."""
        return self._fresh(self._by_identifier.get(identifier))

    def get_by_id(self, tenant_id: UUID) -> Entry | None:
        """Return the entry of a tenant's id if it is still believed."""
        return self._fresh(self._by_id.get(tenant_id))

    def _fresh(self, entry: Entry | None) -> Entry | None:
        if entry is None:
            return None
        if entry.expires <= self.clock():
            self._remove(entry)
            return None
        entry.used = True
        return entry

    def is_nobody(self, identifier: str) -> bool:
        """Whether the identifier was looked up lately and is nobody's."""
        expires = self._negative.get(identifier)
        if expires is None:
            return False
        if expires <= self.clock():
            del self._negative[identifier]
            return False
        return True

    def put(self, binding: Binding) -> Entry:
        """Keep a tenant."""
        tenant = binding.tenant
        for old in (self._by_id.get(tenant.id), self._by_identifier.get(tenant.identifier)):
            if old is not None:
                self._remove(old)
        while len(self._by_identifier) >= self._size:
            self._evict()
        ttl = self._ttl if tenant.active else self._unserved_ttl
        entry = Entry(binding, self.clock() + ttl)
        self._by_identifier[tenant.identifier] = entry
        self._by_id[tenant.id] = entry
        self._negative.pop(tenant.identifier, None)
        return entry

    def put_nobody(self, identifier: str) -> None:
        """Remember that an identifier is nobody's."""
        self._negative[identifier] = self.clock() + self._unserved_ttl
        self._negative.move_to_end(identifier)
        while len(self._negative) > self._size:
            self._negative.popitem(last=False)

    def alias(self, raw: bytes, entry: Entry) -> None:
        """Let the middleware find an active tenant by raw, validated header bytes."""
        if not entry.tenant.active or len(entry.aliases) >= _ALIASES_PER_ENTRY:
            return
        if self._by_id.get(entry.tenant.id) is entry and raw not in self.aliases:
            entry.aliases.append(raw)
            self.aliases[raw] = entry

    def forget(self, tenant_id: UUID) -> None:
        """Drop a tenant. A remembered nobody may be this tenant by now, so those go as well."""
        entry = self._by_id.get(tenant_id)
        if entry is not None:
            self._remove(entry)
        self._negative.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._by_identifier.clear()
        self._by_id.clear()
        self._negative.clear()
        self.aliases.clear()

    def _evict(self) -> None:
        while True:
            identifier, entry = next(iter(self._by_identifier.items()))
            if not entry.used:
                self._remove(entry)
                return
            entry.used = False
            self._by_identifier.move_to_end(identifier)

    def _remove(self, entry: Entry) -> None:
        tenant = entry.tenant
        if self._by_identifier.get(tenant.identifier) is entry:
            del self._by_identifier[tenant.identifier]
        if self._by_id.get(tenant.id) is entry:
            del self._by_id[tenant.id]
        for raw in entry.aliases:
            if self.aliases.get(raw) is entry:
                del self.aliases[raw]
