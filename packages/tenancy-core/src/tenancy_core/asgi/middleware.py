"""The middleware: pure ASGI, no framework, nothing allocated for a tenant that is cached.

Order in a request: excluded paths and CORS preflights pass without a tenant; a cached, active
tenant named by one header is bound at once; everything else goes through
:class:`~tenancy_core.asgi.admission.Admission`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tenancy_core.asgi.admission import Admission
from tenancy_core.asgi.paths import ExcludedPaths
from tenancy_core.asgi.refusals import Refusal, render, send_refusal
from tenancy_core.asgi.sockets import RevocableSocket
from tenancy_core.config import check_excluded_path
from tenancy_core.context import binding
from tenancy_core.contract import Connection
from tenancy_core.errors import ConfigurationError, TenancyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from tenancy_core._tenancy import Tenancy
    from tenancy_core.context import Binding

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["TenancyMiddleware"]

# CPython looks a method of an imported name up anew for every call; bound once, each costs a
# request some 500 instructions less.
_bind = binding.set
_unbind = binding.reset


class TenancyMiddleware:
    """Binds each HTTP request and WebSocket to its tenant, or refuses it.

    Inside it, ``current_tenant()`` and ``tenancy.session()`` work, and ``scope["state"]`` holds
    ``tenant``.

    Args:
        app: What runs as the tenant.
        tenancy: Open it by the application's lifespan, before the first request.
        excluded_paths: Served without a tenant, beside ``TENANCY_EXCLUDED_PATHS``.
        render: Turns a refusal into an answer.

    Raises:
        ConfigurationError: An excluded path could never match.
    """

    __slots__ = ("_admission", "_app", "_clock", "_entries", "_excluded", "_excluded_bytes",
                 "_header", "_prefixes", "_render", "_tenancy")  # fmt: skip

    def __init__(
        self,
        app: App,
        tenancy: Tenancy,
        *,
        excluded_paths: Iterable[str] = (),
        render: Callable[[TenancyError], Refusal] = render,
    ) -> None:
        extra = tuple(excluded_paths)
        for path in extra:
            try:
                check_excluded_path(path)
            except ValueError as error:
                raise ConfigurationError(f"excluded_paths={list(extra)!r} {error}.") from None
        self._app = app
        self._tenancy = tenancy
        self._excluded = ExcludedPaths((*tenancy.config.excluded_paths, *extra))
        self._prefixes = self._excluded.prefixes
        # Behind the root, where that is excluded, a query may follow in what some servers say.
        self._excluded_bytes = frozenset((path + b"?")[1] for path in self._prefixes)
        self._render = render
        self._admission: Admission | None = None
        # Copied out of the admission, because every request reads them.
        self._header = b""
        self._entries: dict[Any, Any] = {}
        self._clock = tenancy.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        # Every instruction counts here (tests/bench/count_instructions.py): subscripts instead of
        # get(), one exception for whatever is missing, and a byte before a prefix is compared.
        token = None
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            try:
                path = scope["raw_path"]
                if not scope["root_path"] and not (
                    path[1] in self._excluded_bytes and path.startswith(self._prefixes)
                ):
                    header = self._header
                    raw = None
                    for name, value in scope["headers"]:
                        if name == header:
                            if raw is not None:
                                break
                            raw = value
                    else:
                        entry = self._entries[raw]
                        if entry.expires > self._clock():
                            entry.used = True
                            bound = entry.binding
                            scope["state"]["tenant"] = bound.tenant
                            token = _bind(bound)
            except (LookupError, TypeError):
                pass  # something is absent: an unknown tenant, or an optional part of the scope
        if token is not None:
            try:
                await self._app(scope, receive, send)
            finally:
                _unbind(token)
            return
        await self._admit(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        connection = Connection(scope)
        if _is_preflight(scope) or self._excluded.match(connection.raw_path):
            await self._app(scope, receive, send)
            return
        admission = self._current_admission()
        try:
            bound = await admission.admit(connection)
        except ConfigurationError:
            raise
        except TenancyError as error:
            await send_refusal(self._render(error), scope, receive, send)
            return
        state["tenant"] = bound.tenant
        if kind == "websocket":
            await self._serve_socket(admission, bound, scope, receive, send)
        else:
            await self._serve(bound, scope, receive, send)

    async def _serve(self, bound: Binding, scope: Scope, receive: Receive, send: Send) -> None:
        token = _bind(bound)
        try:
            await self._app(scope, receive, send)
        finally:
            _unbind(token)

    async def _serve_socket(
        self, admission: Admission, bound: Binding, scope: Scope, receive: Receive, send: Send
    ) -> None:
        socket = RevocableSocket(receive, send)
        end_watch = self._tenancy.watch(bound.tenant, socket.revoke)
        try:
            try:
                await admission.confirm(bound)
            except TenancyError as error:
                with suppress(OSError):  # it was closed meanwhile
                    await send_refusal(self._render(error), scope, socket.receive, socket.send)
            else:
                await self._serve(bound, scope, socket.receive, socket.send)
        finally:
            end_watch()

    def _current_admission(self) -> Admission:
        """Return the admission of this opening of the ``Tenancy``; each opening has its own."""
        parts = self._tenancy.parts
        admission = self._admission
        if admission is None or admission.parts is not parts:
            admission = self._admission = Admission(self._tenancy)
            # Without a fast way nothing is ever found here.
            self._header = admission.raw_header or b""
            self._entries = parts.directory.l1.aliases if admission.fast else {}
        return admission


def _is_preflight(scope: Scope) -> bool:
    """Whether this is a CORS preflight (Fetch standard, section 3.2.2), which has no tenant."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names
