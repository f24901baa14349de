"""The keys that an issuer publishes (RFC 7517, section 5), fetched when they are needed."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import httpx2

from tenancy_core._resolvers.jwt.keys import KeySet, jwk_key
from tenancy_core._resolvers.jwt.strict_json import read_object
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tenancy_core._resolvers.jwt.keys import Key

__all__ = ["COOL_DOWN", "MAX_AGE", "MAX_BYTES", "MAX_KEYS", "MAX_STALE", "TIMEOUT", "PublishedKeys"]

_log = logging.getLogger("tenancy")

MAX_AGE: Final = 300.0
"""Seconds that keys are used without asking again: within these a key that its issuer has removed
is refused. One request in five minutes and process is no load for an issuer."""

MAX_STALE: Final = 3600.0
"""Seconds that keys are used while their issuer cannot be asked. An outage of less than an hour is
not noticed; who can keep a service from asking keeps a removed key alive no longer than that."""

COOL_DOWN: Final = 10.0
"""Least seconds from the end of one request to the next: whatever tokens say, an issuer is asked
six times a minute. A key that is used in the moment in which it is published waits that long."""

TIMEOUT: Final = 5.0
"""Seconds for one request, from the look-up of the name to the last byte: as long as any resolver
may take."""

MAX_BYTES: Final = 512 * 1024
"""Longest answer. Sets of large providers have some 10 kB."""

MAX_KEYS: Final = 100
"""Most keys in a set. Reading one takes some 50 µs, in which nothing else is served."""

_HEADERS: Final = {
    "accept": "application/jwk-set+json, application/json",
    # What is not packed cannot unpack to more than it was.
    "accept-encoding": "identity",
    "user-agent": "tenancy-core",
}


class _Unusable(Exception):
    """An answer that is no key set. The text is ours."""


class PublishedKeys:
    """The keys behind a ``jwks_url``.

    Nothing is fetched before the first token comes. One request is under way at a time, however
    many tokens wait for it; redirects, proxies and other settings of the environment are not
    followed.

    Args:
        url: https, or http on the loopback.
        algorithms: What the issuer's tokens may be signed with.
        name: What the log calls it.
        clock: Seconds, never going back.
    """

    __slots__ = (
        "_algorithms",
        "_asked_at",
        "_clock",
        "_failed",
        "_fetched_at",
        "_keys",
        "_lock",
        "_name",
        "_tls",
        "_url",
    )

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        *,
        name: str,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._url = url
        self._algorithms = frozenset(algorithms)
        self._name = name
        self._clock = clock
        # Reads the machine's certificates, which takes too long for a request.
        self._tls: Any = (
            httpx2.create_ssl_context(trust_env=False) if url.startswith("https:") else False
        )
        # So does what the first of these imports.
        httpx2.AsyncHTTPTransport(verify=self._tls, trust_env=False)
        self._lock = anyio.Lock()
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._asked_at: float | None = None
        self._failed = False

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """See :class:`~tenancy_core._resolvers.jwt.keys.KeySource`.

        Raises:
            BackendUnavailable: The keys cannot be fetched, and there are none that may be used; or
                the one that is asked for may have come since.
        """
        keys = self._usable(MAX_AGE)
        if keys is None and self._lock.locked():
            # Somebody asks already. Who knows the key need not wait for an issuer that is slow.
            keys = self._usable(MAX_STALE)
        if keys is None or (kid is not None and kid not in keys):
            await self._refresh()
            keys = self._usable(MAX_STALE)
            if keys is None or (self._failed and kid is not None and kid not in keys):
                raise BackendUnavailable(f"The keys of {self._name} cannot be fetched.")
        return keys.find(kid, algorithm)

    def _usable(self, age: float) -> KeySet | None:
        if self._keys is None or self._clock() >= self._fetched_at + age:
            return None
        return self._keys

    async def _refresh(self) -> None:
        async with self._lock:
            if self._asked_at is not None and self._clock() < self._asked_at + COOL_DOWN:
                return  # as fresh as can be had
            try:
                # Its outcome is everybody's: whoever began does not take it away by leaving.
                with anyio.fail_after(TIMEOUT, shield=True):
                    keys = self._read(await self._fetch())
            except Exception as error:  # noqa: BLE001 - whatever it is, there are no keys
                self._failed = True
                reason = str(error) if isinstance(error, _Unusable) else type(error).__name__
                _log.warning("the keys of %s cannot be fetched: %s", self._name, reason)
            except BaseException:
                # The shield holds against anyio's cancellation only. Whoever comes and goes does
                # not make an issuer be asked more often; nor, where there are no keys yet, does he
                # keep others from asking.
                if self._keys is not None:
                    self._asked_at = self._clock()
                raise
            else:
                self._keys, self._failed, self._fetched_at = keys, False, self._clock()
            self._asked_at = self._clock()

    async def _fetch(self) -> bytes:
        async with (
            httpx2.AsyncClient(
                verify=self._tls, trust_env=False, follow_redirects=False, timeout=TIMEOUT
            ) as client,
            client.stream("GET", self._url, headers=_HEADERS) as answer,
        ):
            if answer.status_code != 200:  # noqa: PLR2004 - HTTP
                raise _Unusable(f"the status is {answer.status_code}, and 200 is expected")
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise _Unusable("the answer is packed, which was not asked for")
            body = bytearray()
            # A cancellation is what ends all the generators of the client in order: one that is
            # left half-way waits for the garbage collector.
            with anyio.CancelScope() as reading:
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > MAX_BYTES:
                        reading.cancel()
            if len(body) > MAX_BYTES:
                raise _Unusable(f"the answer is longer than {MAX_BYTES} bytes")
            return bytes(body)

    def _read(self, body: bytes) -> KeySet:
        try:
            published: object = read_object(body).get("keys")
        except ValueError:
            raise _Unusable("the answer is not one strict JSON object") from None
        if not isinstance(published, list):
            raise _Unusable("the answer has no list of keys")
        if len(cast("list[object]", published)) > MAX_KEYS:
            raise _Unusable(f"there are more than {MAX_KEYS} keys")
        found = [jwk_key(jwk, self._algorithms) for jwk in cast("list[object]", published)]
        keys = KeySet(key for key in found if key is not None)
        if not len(keys):
            # Valid: an issuer may take all keys back.
            _log.warning("none of the keys of %s can be used", self._name)
        return keys
