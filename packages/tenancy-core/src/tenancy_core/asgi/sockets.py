"""WebSockets of one tenant, closed from outside when the tenant is no longer served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]

__all__ = ["RevocableSocket"]

_POLICY_VIOLATION: Final = 1008
"""RFC 6455, section 7.4.1."""


class RevocableSocket:
    """Stands between the server and the application for one accepted WebSocket.

    On revocation the pending ``receive`` is cancelled first (some servers hold a ``send`` back
    until it returns), then the close is sent, and the application sees a disconnect. A later
    ``send`` raises ``OSError``, as the ASGI specification asks for closed connections.
    """

    __slots__ = ("_lock", "_receive", "_revoked", "_send", "_waiting")

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._receive = receive
        self._send = send
        self._lock = anyio.Lock()
        self._waiting: anyio.CancelScope | None = None
        self._revoked = False

    async def receive(self) -> Message:
        """ASGI ``receive``."""
        if not self._revoked:
            with anyio.CancelScope() as self._waiting:
                message = await self._receive()
            self._waiting = None
            if not self._revoked:
                return message
        return {"type": "websocket.disconnect", "code": _POLICY_VIOLATION, "reason": ""}

    async def send(self, message: Message) -> None:
        """ASGI ``send``."""
        async with self._lock:
            if self._revoked:
                raise OSError("The tenant of this WebSocket is no longer served.")
            await self._send(message)

    async def revoke(self) -> None:
        """Close the socket with 1008. Idempotent."""
        if self._revoked:
            return
        self._revoked = True
        if self._waiting is not None:
            self._waiting.cancel()
        async with self._lock:
            try:
                await self._send(
                    {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""}
                )
            except (OSError, RuntimeError):
                return  # the client is gone already
