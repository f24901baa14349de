"""WebSockets: one tenant for the life of the socket, and none once that tenant is not served."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import CountingStore, WhoAmI, opened, record, websocket_scope
from tenancy_core import TenancyMiddleware, TenantStatus, current_tenant
from tenancy_core.asgi.sockets import RevocableSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from tenancy_core import Connection, Tenancy, TenancyConfig, Tenant, TenantClaim
    from tenancy_core.contract import Change

    Message = MutableMapping[str, Any]
    App = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.anyio

ACME = (b"x-tenant-id", b"acme")
BETA = (b"x-tenant-id", b"beta")
CLOSED = {"type": "websocket.close", "code": 1008, "reason": ""}


class Server:
    """A server's end of one WebSocket."""

    def __init__(self, app: App, *headers: tuple[bytes, bytes], **scope: Any) -> None:
        self.asked: list[str] = []
        self.events: list[str] = []
        self.sent: list[Message] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.writing = asyncio.Event()
        self.receiving = asyncio.Event()
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._gone: Exception | None = None
        self.task = asyncio.ensure_future(
            app(websocket_scope(b"/me", *headers, **scope), self.receive, self.send)
        )

    async def receive(self) -> Message:
        self.receiving.set()
        try:
            return await self._incoming.get()
        finally:
            self.receiving.clear()

    async def send(self, message: Message) -> None:
        self.asked.append(message["type"])
        self.writing.set()
        await self.may_write.wait()
        self.writing.clear()
        if self._gone is not None:
            raise self._gone
        self.events.append(message["type"])
        self.sent.append(message)

    def says(self, text: str) -> None:
        """Let the client say something."""
        self._incoming.put_nowait({"type": "websocket.receive", "text": text})

    def goes(self, error: Exception) -> None:
        """Let the client be gone, so that every send fails in this server's own way."""
        self._gone = error

    async def until_sent(self, text: str) -> None:
        """Wait for a message of the application."""
        while not any(message.get("text") == text for message in self.sent):
            assert not self.task.done(), self.task
            await asyncio.sleep(0)


class Echo:
    """Says its tenant, then answers whatever comes with it; notes how it ended."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ended: Message | Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                tenant = current_tenant()
                name = "-" if tenant is None else tenant.identifier
                await send({"type": "websocket.send", "text": name})
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    self.ended = message
                    return
        except OSError as error:
            self.ended = error


class Talks:
    """Sends and sends, and never looks whether something came."""

    def __init__(self) -> None:
        self.ended: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
                await asyncio.sleep(0)
        except OSError as error:
            self.ended = error


async def settled(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task whatever it is."""
    await asyncio.wait([task])
    assert not task.cancelled()
    if (error := task.exception()) is not None:
        raise error


# -- the tenant of a socket ------------------------------------------------------------------------


async def test_R25_the_tenant_is_fixed_for_the_life_of_the_socket(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(Echo(), tenancy)
        acme, beta = Server(app, ACME), Server(app, BETA)
        await acme.until_sent("acme")
        await beta.until_sent("beta")
        # Its name becomes another tenant's meanwhile: the socket stays who it was.
        for server in (acme, beta, acme):
            server.says("x-tenant-id: beta")
        while len(acme.sent) < 4 or len(beta.sent) < 3:
            await asyncio.sleep(0)
        assert {message["text"] for message in acme.sent[1:]} == {"acme"}
        assert {message["text"] for message in beta.sent[1:]} == {"beta"}
        for server in (acme, beta):
            server.task.cancel()
        await asyncio.wait([acme.task, beta.task])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 400),
        ([ACME, BETA], 400),
        ([ACME, ACME], 400),
        ([(b"x-tenant-id", b"acme, beta")], 400),
        ([(b"x-tenant-id", b"nobody")], 404),
    ],
)
@pytest.mark.parametrize("can_answer", [True, False])
async def test_R25_a_handshake_without_one_clear_tenant_is_refused(
    make_config: Callable[..., TenancyConfig],
    headers: list[tuple[bytes, bytes]],
    status: int,
    *,
    can_answer: bool,
) -> None:
    inner = WhoAmI()
    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(inner, tenancy), *headers, can_answer=can_answer)
        await settled(server.task)
    assert inner.calls == 0
    if can_answer:
        assert server.sent[0]["status"] == status
    else:
        assert server.sent == [CLOSED]


async def test_R25_header_and_host_that_disagree_refuse_the_handshake(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(resolution_strategy="header,subdomain", domain_suffix="ex.com")
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for host, status in [(b"beta.ex.com", 403), (b"acme.ex.com", None), (b"ex.com:x", 400)]:
            server = Server(app, ACME, (b"host", host))
            await settled(server.task)
            assert server.sent[0].get("status") == status


# -- suspended while it is open --------------------------------------------------------------------


async def test_R25_suspension_closes_a_socket_that_is_idle_and_no_other(
    make_config: Callable[..., TenancyConfig],
) -> None:
    echo = Echo()
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(echo, tenancy)
        acme, beta = Server(app, ACME), Server(TenancyMiddleware(Echo(), tenancy), BETA)
        await acme.until_sent("acme")
        await beta.until_sent("beta")
        await acme.receiving.wait()
        await tenancy.tenants.suspend("acme")
        await settled(acme.task)
        assert acme.sent[-1] == CLOSED
        assert echo.ended == {"type": "websocket.disconnect", "code": 1008, "reason": ""}
        assert not beta.task.done()
        beta.says("still there?")
        while len(beta.sent) < 3:
            await asyncio.sleep(0)
        assert CLOSED not in beta.sent
        beta.task.cancel()
        await asyncio.wait([beta.task])
        assert tenancy._watchers == {}


async def test_R25_the_close_is_sent_before_the_application_is_told(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """An application that ends at once would take the connection with it: 1006 and no reason."""
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        order.append(message["type"])

    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(app, tenancy), ACME)
        server.events = order
        while "websocket.accept" not in order:
            await asyncio.sleep(0)
        await server.receiving.wait()
        await tenancy.tenants.suspend("acme")
        await settled(server.task)
    assert order == ["websocket.accept", "websocket.close", "websocket.disconnect"]


async def test_R25_suspension_closes_a_socket_that_is_busy_sending(
    make_config: Callable[..., TenancyConfig],
) -> None:
    talks = Talks()
    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(talks, tenancy), ACME)
        await server.until_sent("news")
        await tenancy.tenants.suspend("acme")
        await settled(server.task)
    assert server.sent.count(CLOSED) == 1
    assert server.sent[-1] == CLOSED
    assert isinstance(talks.ended, OSError)


async def test_R25_the_close_is_sent_before_a_pending_send_fails(
    make_config: Callable[..., TenancyConfig],
) -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await send({"type": "websocket.send", "text": "long"})
        except OSError:
            order.append("OSError")

    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(app, tenancy), ACME)
        server.events = order
        while "websocket.accept" not in order:
            await asyncio.sleep(0)
        server.may_write.clear()
        await server.writing.wait()
        suspension = asyncio.create_task(tenancy.tenants.suspend("acme"))
        while server.asked[-1] != "websocket.close":
            await asyncio.sleep(0)
        for _ in range(100):  # whoever does not wait for the close has come to the end by now
            await asyncio.sleep(0)
        server.may_write.set()
        await settled(server.task)
        await suspension
    assert order == ["websocket.accept", "websocket.close", "OSError"]


async def test_R25_suspension_closes_a_socket_that_neither_sends_nor_receives(
    make_config: Callable[..., TenancyConfig],
) -> None:
    done = asyncio.Event()
    ended: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await done.wait()
        ended.append(await receive())
        with pytest.raises(OSError, match="no longer served"):
            await send({"type": "websocket.send", "text": "too late"})

    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(app, tenancy), ACME)
        while not server.sent:
            await asyncio.sleep(0)
        await tenancy.tenants.suspend("acme")
        while CLOSED not in server.sent:
            await asyncio.sleep(0)
        done.set()
        await settled(server.task)
    assert server.sent[-1] == CLOSED
    assert ended == [{"type": "websocket.disconnect", "code": 1008, "reason": ""}]


async def test_R25_a_socket_that_is_not_accepted_yet_is_never_accepted(
    make_config: Callable[..., TenancyConfig],
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        started.set()
        await go.wait()
        with pytest.raises(OSError, match="no longer served"):
            await send({"type": "websocket.accept"})

    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(app, tenancy), ACME)
        await started.wait()
        await tenancy.tenants.suspend("acme")
        go.set()
        await settled(server.task)
    assert server.sent == [CLOSED]


async def test_R25_a_suspension_during_the_handshake_is_not_missed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """It falls between the look-up of the tenant and the moment in which its socket is watched."""
    inner = WhoAmI()
    opening: list[Tenancy] = []

    async def suspends(connection: Connection, tenant: Tenant, claim: TenantClaim) -> bool:
        await opening[0].tenants.suspend("acme")
        return True

    async with opened(make_config(), membership=suspends) as tenancy:
        opening.append(tenancy)
        server = Server(TenancyMiddleware(inner, tenancy), ACME)
        await settled(server.task)
    assert inner.calls == 0
    assert server.sent[0]["type"] == "websocket.http.response.start"
    assert server.sent[0]["status"] == 404


async def test_R25_a_client_that_reads_nothing_holds_nobody_up(
    make_config: Callable[..., TenancyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenancy_core.asgi.sockets._CLOSED_WITHIN", 0.05)
    stuck, echo = Talks(), Echo()
    async with opened(make_config()) as tenancy:
        deaf = Server(TenancyMiddleware(stuck, tenancy), ACME)
        await deaf.until_sent("news")
        deaf.may_write.clear()
        await deaf.writing.wait()
        good = Server(TenancyMiddleware(echo, tenancy), ACME)
        await good.until_sent("acme")
        await good.receiving.wait()
        await tenancy.tenants.suspend("acme")
        await settled(good.task)
        assert good.sent[-1] == CLOSED
        # The application is told as well, although its client never took the close.
        await settled(deaf.task)
        assert isinstance(stuck.ended, OSError)
        assert tenancy._watchers == {}


@pytest.mark.parametrize(
    "error",
    [OSError("gone"), RuntimeError("gone"), ValueError("gone"), ExceptionGroup("", [OSError()])],
)
async def test_R25_a_client_that_is_gone_disturbs_nobody(
    make_config: Callable[..., TenancyConfig], error: Exception
) -> None:
    echo = Echo()
    async with opened(make_config()) as tenancy:
        gone = Server(TenancyMiddleware(Echo(), tenancy), ACME)
        await gone.until_sent("acme")
        gone.goes(error)
        good = Server(TenancyMiddleware(echo, tenancy), ACME)
        await good.until_sent("acme")
        await good.receiving.wait()
        await tenancy.tenants.suspend("acme")
        await settled(good.task)
        await settled(gone.task)
    assert good.sent[-1] == CLOSED
    assert CLOSED not in gone.sent


async def test_R25_a_tenant_that_is_resumed_may_open_sockets_again(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(Echo(), tenancy)
        first = Server(app, ACME)
        await first.until_sent("acme")
        await tenancy.tenants.suspend("acme")
        await settled(first.task)
        refused = Server(app, ACME)
        await settled(refused.task)
        assert refused.sent[0]["status"] == 404
        await tenancy.tenants.resume("acme")
        again = Server(app, ACME)
        await again.until_sent("acme")
        again.task.cancel()
        await asyncio.wait([again.task])
        assert tenancy._watchers == {}


async def test_R25_a_change_that_leaves_the_tenant_active_closes_nothing(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        server = Server(TenancyMiddleware(Echo(), tenancy), ACME)
        await server.until_sent("acme")
        await tenancy.tenants.resume("acme")  # it is active already
        await tenancy.parts.directory.forget(current_id(server, tenancy))
        server.says("still there?")
        while len(server.sent) < 3:
            await asyncio.sleep(0)
        assert CLOSED not in server.sent
        server.task.cancel()
        await asyncio.wait([server.task])


def current_id(server: Server, tenancy: Tenancy) -> Any:
    (tenant_id,) = tenancy._watchers
    return tenant_id


class Elsewhere(CountingStore):
    """A store that another process writes to, and whose change sequence this one follows."""

    in_process = False

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    async def changes(self, *, after: int, limit: int = 1000) -> Sequence[Change]:
        """See the contract; ``lost`` changes at the beginning are dropped."""
        found = await super().changes(after=after, limit=limit)
        return [change for change in found if change.sequence > self.lost]


async def suspend_elsewhere(store: Elsewhere, *others: Tenant) -> None:
    """Do what another process does: this one's caches hear nothing of it."""
    from dataclasses import replace

    tenant = await store.get_by_identifier("acme")
    assert tenant is not None
    changed = replace(tenant, status=TenantStatus.SUSPENDED, version=tenant.version + 1)
    async with store.transaction() as transaction:
        await transaction.update(changed, expected_version=tenant.version)
        await transaction.enqueue(tenant.id)
        for other in others:
            await transaction.enqueue(other.id)


async def test_R25_a_suspension_by_another_process_closes_sockets_with_the_next_poll(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store, echo = Elsewhere(), Echo()
    config = make_config(invalidation_poll_seconds=0.01)
    async with opened(config, store=store) as tenancy:
        server = Server(TenancyMiddleware(echo, tenancy), ACME)
        await server.until_sent("acme")
        await server.receiving.wait()
        await suspend_elsewhere(store)
        await settled(server.task)
    assert server.sent[-1] == CLOSED


async def test_R25_a_suspension_whose_change_was_cut_off_closes_sockets_as_well(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """A process that slept through more changes than are kept must ask about everybody."""
    store, echo = Elsewhere(), Echo()
    config = make_config(invalidation_poll_seconds=0.01)
    other = record("other")
    async with opened(config, record("acme"), other, store=store) as tenancy:
        server = Server(TenancyMiddleware(echo, tenancy), ACME)
        await server.until_sent("acme")
        await server.receiving.wait()
        store.lost = 1
        await suspend_elsewhere(store, other)
        await settled(server.task)
    assert server.sent[-1] == CLOSED


async def test_R25_a_tenant_that_a_restored_store_does_not_serve_loses_its_sockets(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """The store went back to a state with fewer changes, in which acme was not there yet."""
    store, echo = Elsewhere(), Echo()
    before = store._state.copy()
    config = make_config(invalidation_poll_seconds=0.01)
    async with opened(config, store=store) as tenancy:
        await tenancy.tenants.suspend("beta")  # a change that is followed and then lost
        server = Server(TenancyMiddleware(echo, tenancy), ACME)
        await server.until_sent("acme")
        await server.receiving.wait()
        while tenancy.parts.follower._seen == 0:
            await asyncio.sleep(0.001)
        store._swap(before)
        await settled(server.task)
    assert server.sent[-1] == CLOSED


# -- the socket itself -----------------------------------------------------------------------------


async def test_revoking_twice_closes_once() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nobody receives")

    socket = RevocableSocket(receive, send)
    await asyncio.gather(socket.revoke(), socket.revoke())
    await socket.revoke()
    assert sent == [CLOSED]


async def test_a_message_that_arrives_with_the_revocation_is_not_handed_on() -> None:
    arrived: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None: ...

    async def receive() -> Message:
        return await asyncio.shield(arrived)

    socket = RevocableSocket(receive, send)
    waiting = asyncio.create_task(socket.receive())
    await asyncio.sleep(0)
    arrived.set_result({"type": "websocket.receive", "text": "order"})
    await socket.revoke()
    assert (await waiting)["type"] == "websocket.disconnect"
    assert (await socket.receive())["type"] == "websocket.disconnect"


async def test_a_cancelled_receive_is_cancelled_and_loses_nothing() -> None:
    """Applications wait for a message and for something else, and cancel whichever is later."""
    incoming: asyncio.Queue[Message] = asyncio.Queue()

    async def send(message: Message) -> None: ...

    socket = RevocableSocket(incoming.get, send)
    waiting = asyncio.create_task(socket.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    incoming.put_nowait({"type": "websocket.receive", "text": "later"})
    assert (await socket.receive())["text"] == "later"
