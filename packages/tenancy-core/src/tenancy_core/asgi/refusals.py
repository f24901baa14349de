"""How an error is answered: RFC 9457 ``application/problem+json``, by one function."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.errors import (
    BackendUnavailable,
    InvalidCredentials,
    InvalidTransition,
    IsolationError,
    RateLimitExceeded,
    RequestRefused,
    ResolverError,
    TenancyError,
    TenantExists,
    TenantLimitReached,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

__all__ = ["ANSWERED", "Refusal", "answer", "close_code", "render", "send_refusal"]

_log = logging.getLogger("tenancy")

_CONTROL: Final[dict[type[TenancyError], tuple[int, str]]] = {
    TenantExists: (409, "There is already such a tenant."),
    VersionConflict: (409, "The tenant was changed meanwhile."),
    InvalidTransition: (409, "The tenant's status does not allow that."),
    TenantLimitReached: (403, "There cannot be more tenants."),
}
"""What the control plane raises, where an application offers it over HTTP."""

ANSWERED: Final = (RequestRefused, BackendUnavailable, ResolverError, IsolationError, *_CONTROL)
"""What an integration answers with :func:`answer` when an application's own code raises it. The
rest (no current tenant, a wrong configuration) is a mistake in the code: the framework's 500."""

_RETRY_AFTER: Final = 1.0
"""Seconds that a client should wait when a dependency is down and nobody knows for how long."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer.

    Attributes:
        status: HTTP status.
        headers: Without ``content-length``, which is added.
        body: Bytes.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def render(error: TenancyError) -> Refusal:
    """Turn an error into the answer that a client gets.

    The texts are those of the class: what a particular error has to say goes to the log, so that
    an unknown, a suspended and an unready tenant get the same bytes. Pass another function with
    this signature to the middleware or to ``install`` to answer in a format of your own.
    """
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
    ]
    if isinstance(error, RequestRefused):
        status, title, retry_after = error.status, error.title, error.retry_after
    elif known := [row for kind, row in _CONTROL.items() if isinstance(error, kind)]:
        (status, title), retry_after = known[0], None
    else:
        status, title = 503, "The service cannot answer right now."
        retry_after = error.retry_after if isinstance(error, BackendUnavailable) else None
    if status in (429, 503):
        seconds = max(1, math.ceil(_RETRY_AFTER if retry_after is None else retry_after))
        headers.append((b"retry-after", str(seconds).encode()))
    if status == 401:  # noqa: PLR2004 - HTTP
        presented = not isinstance(error, InvalidCredentials) or error.presented
        challenge = b'Bearer error="invalid_token"' if presented else b"Bearer"
        headers.append((b"www-authenticate", challenge))
    if isinstance(error, RateLimitExceeded) and error.limit is not None:
        window = math.ceil(error.window or 0)
        reset = math.ceil(retry_after or 0)
        # draft-ietf-httpapi-ratelimit-headers-10
        headers.append((b"ratelimit-policy", f'"tenant";q={error.limit};w={window}'.encode()))
        headers.append((b"ratelimit", f'"tenant";r=0;t={reset}'.encode()))
    code = error.code if isinstance(error, _NAMED) else "unavailable"
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
    }
    return Refusal(status, tuple(headers), json.dumps(body, separators=(",", ":")).encode())


_NAMED: Final = (RequestRefused, BackendUnavailable, ResolverError, *_CONTROL)


def answer(error: TenancyError, render: Callable[[TenancyError], Refusal] = render) -> Refusal:
    """Render what the application's code raised, and log what is not the client's doing.

    A framework logs an exception that nobody handles; this one is handled, and its text and cause
    would be lost.
    """
    refusal = render(error)
    if refusal.status >= 500:  # noqa: PLR2004 - HTTP
        _log.error("a request failed: %s: %s", error.code, error, exc_info=error)
    return refusal


def close_code(status: int) -> int:
    """Return the code that closes an accepted WebSocket where a request would get ``status``.

    1013 (try again later) or 1008 (policy violation), from IANA's registry of close codes.
    """
    return 1013 if status in (429, 503) else 1008


async def send_refusal(
    refusal: Refusal,
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer a request, or refuse a WebSocket's handshake with the same status.

    Where the server cannot send a response to a handshake (``websocket.http.response``), the
    socket is closed before it is accepted, which clients see as 403.
    """
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        kind = "websocket.http.response"
    head = scope.get("method") == "HEAD"
    headers = [*refusal.headers, (b"content-length", str(len(refusal.body)).encode())]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if head else refusal.body})
