"""Identifier → tenant, by way of the caches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tenancy_core._directory.flight import SingleFlight
from tenancy_core.context import Binding
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tenancy_core._directory.announcer import ChangeAnnouncer
    from tenancy_core._directory.codec import TenantCodec
    from tenancy_core._directory.l1 import Entry, L1Cache
    from tenancy_core.contract import CacheBackend, TenantStore
    from tenancy_core.tenant import Tenant

__all__ = ["Directory"]

_log = logging.getLogger("tenancy")


class Directory:
    """L1, then L2 if there is one, then the store; one look-up at a time per tenant.

    A record that was read before a change and arrives after it is answered but never kept: the
    epoch counts what was forgotten, and a look-up remembers the epoch in which it began.

    Args:
        store: The durable truth.
        l1: The cache in this process.
        shared: The cache between processes, or None.
        shared_ttl: Seconds that the shared cache keeps a tenant.
        codec: Writes and reads what the shared cache keeps.
        owner: The ``Tenancy`` that bindings name.
        announcer: Tells other processes, or None.
    """

    __slots__ = (
        "_announcer",
        "_codec",
        "_epoch",
        "_flights",
        "_listeners",
        "_owner",
        "_shared",
        "_shared_ttl",
        "_store",
        "l1",
    )

    def __init__(
        self,
        store: TenantStore,
        l1: L1Cache,
        *,
        shared: CacheBackend | None,
        shared_ttl: float,
        codec: TenantCodec,
        owner: Any,  # noqa: ANN401 - Tenancy is above
        announcer: ChangeAnnouncer | None = None,
    ) -> None:
        self._announcer = announcer
        self._store = store
        self.l1 = l1
        self._shared = shared
        self._shared_ttl = shared_ttl
        self._codec = codec
        self._owner = owner
        self._flights: SingleFlight[Binding | None] = SingleFlight()
        self._epoch = 0
        self._listeners: list[Callable[[UUID | None], Awaitable[None]]] = []

    # -- asking --------------------------------------------------------------------------------

    async def find(self, identifier: str) -> Binding | None:
        """Return the tenant of a validated identifier, in whatever status; None for nobody.

        Raises:
            BackendUnavailable: It is in no cache, and the store cannot be reached.
        """
        entry = self.l1.get(identifier)
        if entry is not None:
            return entry.binding
        if self.l1.is_nobody(identifier):
            return None
        # Who asks after a change does not join a look-up that began before it.
        flight = (self._epoch, identifier)
        return await self._flights.run(flight, lambda: self._load(identifier))

    async def find_by_id(self, tenant_id: UUID) -> Binding | None:
        """As :meth:`find`, by id."""
        entry = self.l1.get_by_id(tenant_id)
        if entry is not None:
            return entry.binding
        flight = (self._epoch, tenant_id)
        return await self._flights.run(flight, lambda: self._load_by_id(tenant_id))

    def entry(self, binding: Binding) -> Entry | None:
        """Return the cache entry that holds exactly this binding, if it is kept."""
        entry = self.l1.get_by_id(binding.tenant.id)
        return entry if entry is not None and entry.binding is binding else None

    async def _load(self, identifier: str) -> Binding | None:
        epoch = self._epoch
        # The key holds the generation in which the look-up began: a record that is overtaken by a
        # change of generation is written where nobody reads it.
        key = await self._shared_key(identifier)
        tenant = None if key is None else await self._from_shared(key)
        if tenant is None:
            tenant = await self._store.get_by_identifier(identifier)
            if tenant is None:
                if epoch == self._epoch:
                    self.l1.put_nobody(identifier)
                return None
            # Not one that is not served: nobody is not kept there either, and to a stranger the
            # two must cost the same.
            if epoch == self._epoch and key is not None and tenant.active:
                await self._to_shared(key, tenant)
        return self._keep(tenant, epoch)

    async def _load_by_id(self, tenant_id: UUID) -> Binding | None:
        epoch = self._epoch
        tenant = await self._store.get(tenant_id)
        return None if tenant is None else self._keep(tenant, epoch)

    def _keep(self, tenant: Tenant, epoch: int) -> Binding:
        binding = Binding(tenant, self._owner)
        if epoch == self._epoch and tenant.identifier:
            self.l1.put(binding)
        return binding

    # -- the shared cache: never fatal ---------------------------------------------------------

    async def _key(self, shared: CacheBackend, identifier: str) -> str:
        return self._codec.key(await shared.generation(), identifier)

    async def _shared_key(self, identifier: str) -> str | None:
        """Return where the shared cache keeps a tenant; None if there is none that answers."""
        if self._shared is None:
            return None
        try:
            return await self._key(self._shared, identifier)
        except Exception as error:  # noqa: BLE001 - whatever a cache does, the store answers
            _log.warning("the shared cache failed, the store answers: %s", type(error).__name__)
            return None

    async def _from_shared(self, key: str) -> Tenant | None:
        assert self._shared is not None  # noqa: S101 - there is a key
        try:
            data = await self._shared.get(key)
            return None if data is None else self._codec.decode(key, data)
        except Exception as error:  # noqa: BLE001 - whatever a cache does, the store answers
            _log.warning("the shared cache failed, the store answers: %s", type(error).__name__)
            return None

    async def _to_shared(self, key: str, tenant: Tenant) -> None:
        assert self._shared is not None  # noqa: S101 - there is a key
        try:
            data = self._codec.encode(key, tenant, ttl=self._shared_ttl)
            await self._shared.set(key, data, ttl=self._shared_ttl)
        except Exception as error:  # noqa: BLE001 - whatever a cache does, the store answers
            _log.warning("the shared cache failed: %s", type(error).__name__)

    # -- forgetting ----------------------------------------------------------------------------

    def on_change(self, listener: Callable[[UUID | None], Awaitable[None]]) -> None:
        """Call ``listener`` with the id of every tenant that is forgotten because it changed.

        With None where it is unknown who changed: it may have been anybody.
        """
        self._listeners.append(listener)

    async def forget(self, tenant_id: UUID, *identifiers: str) -> None:
        """Drop what is cached about a tenant, here and in the shared cache.

        Args:
            tenant_id: Of the tenant that changed.
            *identifiers: All that it has, or had before the change.

        Raises:
            BackendUnavailable: The shared cache could not be told. Everybody else was.
        """
        try:
            await self._forget_before_telling(tenant_id, identifiers)
        finally:
            await self._tell(tenant_id)

    async def announce(self, tenant_id: UUID, *identifiers: str) -> None:
        """As :meth:`forget`, where this process made the change: others are told as well.

        Args:
            tenant_id: Of the tenant that changed.
            *identifiers: All that it has, or had before the change.

        Raises:
            BackendUnavailable: As :meth:`forget`. That other processes could not be told is no
                error: they ask.
        """
        try:
            # What others fetch anew comes from the shared cache, if it is there.
            await self._forget_before_telling(tenant_id, identifiers)
        finally:
            try:
                # Before the listeners, one of which may wait for a client that does not answer.
                if self._announcer is not None:
                    await self._announcer.announce(tenant_id)
            finally:
                await self._tell(tenant_id)

    async def forget_here(self, tenant_id: UUID | None) -> None:
        """Drop what this process has cached, because another says that it changed.

        The shared cache is left as it is: whoever made the change has told it.

        Args:
            tenant_id: Of the tenant; None for everybody.
        """
        if tenant_id is None:
            self.forget_all()
        else:
            self._epoch += 1
            self.l1.forget(tenant_id)
        await self._tell(tenant_id)

    async def _forget_before_telling(self, tenant_id: UUID, identifiers: tuple[str, ...]) -> None:
        self._epoch += 1
        self.l1.forget(tenant_id)
        if self._shared is not None:
            await self._forget_shared(self._shared, identifiers)

    async def _tell(self, tenant_id: UUID | None) -> None:
        for listener in self._listeners:
            await listener(tenant_id)

    async def _forget_shared(self, shared: CacheBackend, identifiers: tuple[str, ...]) -> None:
        try:
            for identifier in identifiers:
                await shared.delete(await self._key(shared, identifier))
            if not identifiers:
                await shared.generation(bump=True)
        except Exception as error:
            raise BackendUnavailable(
                "The change is committed, and the shared cache could not be told "
                f"({type(error).__name__}); it forgets by its time-to-live."
            ) from error

    async def forget_everybody(self) -> None:
        """As :meth:`forget`, where it is unknown who changed.

        Raises:
            BackendUnavailable: As :meth:`forget`.
        """
        self.forget_all()
        try:
            await self.forget_shared()
        finally:
            await self._tell(None)

    async def forget_shared(self) -> None:
        """Make the shared cache forget everybody.

        Raises:
            BackendUnavailable: It could not be told.
        """
        if self._shared is not None:
            await self._forget_shared(self._shared, ())

    def forget_all(self) -> None:
        """Drop everything that is cached in this process."""
        self._epoch += 1
        self.l1.clear()
