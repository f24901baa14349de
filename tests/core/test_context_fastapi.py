"""X6 over real HTTP: what outlives a handler is its request's tenant, and gives all back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import httpx
import pytest
from websockets.asyncio.client import connect

from support.server import ROOT, Server, serve
from support.waiting import WITHIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

NAMES = [f"t{number}" for number in range(8)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    environment = {
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/control.db",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    with serve(
        "support.context_app:app",
        folder,
        environment=environment,
        app_dir=ROOT / "tests",
        ready="/stats",
    ) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=WITHIN, trust_env=False, limits=limits
    ) as made:
        yield made


def as_(name: str) -> dict[str, str]:
    return {"X-Tenant-ID": name}


async def idle(client: httpx.AsyncClient) -> None:
    """Wait until the server holds nothing any more."""
    async with asyncio.timeout(WITHIN):
        while True:
            stats = (await client.get("/stats")).json()
            if (stats["in_use"], stats["waiting"], stats["gates"]) == (0, 0, 0):
                assert stats["here"] is None
                return
            await asyncio.sleep(0.01)


async def test_X6_streamed_rows_are_of_the_requests_tenant_from_first_to_last(
    client: httpx.AsyncClient,
) -> None:
    async def read(name: str) -> None:
        await client.post("/notes/20", headers=as_(name))
        lines = 0
        async with client.stream("GET", "/rows", headers=as_(name)) as answer:
            async for line in answer.aiter_lines():
                tenant, _, text = line.partition(" ")
                assert tenant == name
                assert text.startswith(f"{name}:")
                lines += 1
                if lines == 100:
                    break

    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(read(name))
    await idle(client)


async def test_X6_events_are_of_the_requests_tenant(client: httpx.AsyncClient) -> None:
    async def read(name: str) -> None:
        answer = await client.get("/events", headers=as_(name))
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [line for line in answer.text.splitlines() if line.startswith("data:")]
        assert data == [f"data: {name}"] * 30

    async with asyncio.TaskGroup() as group:
        for name in NAMES * 3:
            group.create_task(read(name))


async def test_X6_background_tasks_run_as_the_requests_tenant(client: httpx.AsyncClient) -> None:
    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(client.post("/later", headers=as_(name)))
    await idle(client)
    for name in NAMES:
        async with asyncio.timeout(WITHIN):
            while True:
                notes: list[str] = (await client.get("/notes", headers=as_(name))).json()
                written = [note for note in notes if " of " in note]
                if len(written) == 2:
                    break
                await asyncio.sleep(0.01)
        assert sorted(written) == [f"task of {name}", f"thread of {name}"]


async def test_X6_threads_of_the_framework_have_the_requests_tenant(
    client: httpx.AsyncClient,
) -> None:
    async def read(name: str) -> None:
        assert (await client.get("/thread", headers=as_(name))).json() == [name] * 3

    async with asyncio.TaskGroup() as group:
        for name in NAMES * 8:
            group.create_task(read(name))


async def test_X6_a_socket_has_its_tenant_for_every_message(
    server: Server, client: httpx.AsyncClient
) -> None:
    async def talk(name: str) -> None:
        url = f"ws://{server.host}:{server.port}/socket"
        async with connect(url, additional_headers=as_(name), proxy=None) as opened:
            for number in range(10):
                await opened.send(f"message {number}")
                assert await opened.recv() == f"{name} message {number}"

    async with asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(talk(name))
    await idle(client)
    for name in NAMES:
        notes: list[str] = (await client.get("/notes", headers=as_(name))).json()
        assert [note for note in notes if "message" in note] == [
            f"{name} message {number}" for number in range(10)
        ]


async def test_X6_the_tasks_of_the_lifespan_never_have_a_tenant(
    client: httpx.AsyncClient,
) -> None:
    async with asyncio.TaskGroup() as group:
        for name in NAMES * 4:
            group.create_task(client.get("/events", headers=as_(name)))
    stats: dict[str, Any] = (await client.get("/stats")).json()
    assert stats["seen_without_request"] == ["None"]


@pytest.mark.parametrize("writing", ["false", "true"])
async def test_P3_a_client_that_goes_away_in_the_middle_of_a_stream_leaves_nothing_open(
    server: Server, client: httpx.AsyncClient, writing: str
) -> None:
    await client.post("/notes/200", headers=as_("t0"))

    def go_away(number: int) -> None:
        with socket.create_connection((server.host, server.port), timeout=WITHIN) as connection:
            connection.sendall(
                f"GET /rows?writing={writing} HTTP/1.1\r\n".encode()
                + b"Host: x\r\nX-Tenant-ID: t0\r\n\r\n"
            )
            received = b""
            while len(received) < 1000 * (number % 5) + 1:
                chunk = connection.recv(512)
                assert chunk, received
                received += chunk
            assert received.startswith(b"HTTP/1.1 200"), received
            if number % 2:
                # Without a word: the server finds out when it writes.
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    for number in range(6):
        await anyio.to_thread.run_sync(go_away, number)
        await idle(client)
    # The tenant can be written to, and that is what a session that was left open would prevent.
    answer = await client.post("/notes/1", headers=as_("t0"))
    assert answer.status_code == 200
    await idle(client)
