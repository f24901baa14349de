"""WebSockets of one tenant, closed from outside when the tenant is no longer served."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]

__all__ = ["RevocableSocket"]

_POLICY_VIOLATION: Final = 1008
"""RFC 6455, section 7.4.1."""

_CLOSED_WITHIN: Final = 5.0
"""Seconds for a close to be sent; whoever suspends a tenant waits for it."""

_log = logging.getLogger("tenancy")


class RevocableSocket:
    """Stands between the server and the application for one WebSocket.

    On revocation whatever the application waits for is cancelled first (some servers hold a close
    back until a pending ``receive`` returns, and a client that reads nothing would hold it back
    for ever), then the close is sent, and only then the application sees a disconnect: one that
    ends at once would take the connection with it, and the client would see 1006 and no reason. A
    later ``send`` raises ``OSError``, as the ASGI specification asks for closed connections.
    """

    __slots__ = ("_closed", "_lock", "_receive", "_receiving", "_revoked", "_send", "_sending")

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._receive = receive
        self._send = send
        self._lock = anyio.Lock()
        self._closed = anyio.Event()
        self._receiving: anyio.CancelScope | None = None
        self._sending: anyio.CancelScope | None = None
        self._revoked = False

    async def receive(self) -> Message:
        """ASGI ``receive``."""
        if not self._revoked:
            message: Message | None = None
            with anyio.CancelScope() as self._receiving:
                message = await self._receive()
            self._receiving = None
            if message is not None and not self._revoked:
                return message
        await self._closed.wait()
        return {"type": "websocket.disconnect", "code": _POLICY_VIOLATION, "reason": ""}

    async def send(self, message: Message) -> None:
        """ASGI ``send``."""
        async with self._lock:
            if not self._revoked:
                with anyio.CancelScope() as self._sending:
                    await self._send(message)
                self._sending = None
        if self._revoked:
            await self._closed.wait()
            raise OSError("The tenant of this WebSocket is no longer served.")

    async def revoke(self) -> None:
        """Close the socket with 1008. Idempotent, bounded in time, and never raises."""
        if self._revoked:
            return
        self._revoked = True
        for pending in (self._receiving, self._sending):
            if pending is not None:
                pending.cancel()
        close = {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""}
        try:
            with anyio.move_on_after(_CLOSED_WITHIN):
                async with self._lock:
                    await self._send(close)
        except Exception as error:  # noqa: BLE001 - servers raise what they like for a gone client
            _log.debug("closing a WebSocket: %s", type(error).__name__)
        finally:
            self._closed.set()
