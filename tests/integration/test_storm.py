"""Many clients at once over real HTTP: no row of another tenant, and nothing acknowledged is lost.

Each note says who wrote it: ``tenant/client/number``. That is checked in every answer, and once
more in the files after the servers are gone:

* a reader sees notes of its own tenant only, only such as somebody sent, each of them once, and
  all that were acknowledged to anybody before it asked;
* in the end, for each tenant, acknowledged ⊆ stored ⊆ sent.

``TENANCY_TEST_FULL=1`` (``nox -s storm``) makes ten thousand requests instead of two.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import pytest

from support.server import ROOT, serve
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.server import Server

pytestmark = [pytest.mark.storm, pytest.mark.anyio, pytest.mark.timeout(600)]

FULL: Final = bool(os.environ.get("TENANCY_TEST_FULL"))
TENANTS: Final = tuple(f"tenant-{number:02}" for number in range(20))
CLIENTS: Final = 200
REQUESTS: Final = 10_000 if FULL else 2_000
TOKEN: Final = "storm"


# -- clients ---------------------------------------------------------------------------------------


class Gone(Exception):
    """The server closed the connection."""


class HttpClient:
    """One keep-alive connection, and nothing between a test and its bytes.

    httpx takes ten times as long for a request, and two hundred clients share one core here.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    async def send(self, method: str, path: str, tenant: str, body: object = None) -> None:
        """Send a request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: storm\r\nX-Tenant-ID: {tenant}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        await self.send_raw(head.encode() + content)

    async def connect(self) -> None:
        """Open the connection unless it is open."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._server.host, self._server.port)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.connect()
        assert self._streams is not None
        writer = self._streams[1]
        writer.write(data)
        await writer.drain()

    async def receive(self) -> tuple[int, Any]:
        """Return status and decoded body of the next answer."""
        assert self._streams is not None
        reader = self._streams[0]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            return status, json.loads(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Gone from error

    async def request(
        self, method: str, path: str, tenant: str, body: object = None
    ) -> tuple[int, Any]:
        """Make one request."""
        await self.send(method, path, tenant, body)
        return await self.receive()

    def abort(self) -> None:
        """Reset the connection without a word; the next request opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@dataclass
class Ledger:
    """What is known about each tenant's notes."""

    sent: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in TENANTS})
    acknowledged: dict[str, set[str]] = field(
        default_factory=lambda: {name: set() for name in TENANTS}
    )
    reads: int = 0
    writes: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, status: int) -> None:
        """Note a status that came back."""
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def check_read(self, tenant: str, texts: list[str], acknowledged: set[str]) -> None:
        """Judge an answer by what was acknowledged before it was asked for."""
        self.reads += 1
        found = set(texts)
        for what, notes in (
            ("foreign", {text for text in found if not text.startswith(f"{tenant}/")}),
            ("never sent", found - self.sent[tenant]),
            ("lost", acknowledged - found),
        ):
            self.wrong += [f"{tenant} was shown a list with {what}: {text}" for text in notes]
        if len(found) != len(texts):
            self.wrong.append(f"{tenant} was shown notes twice")

    def check_files(self, folder: Path) -> None:
        """Judge what is in the tenants' files, without any of our code."""
        for tenant in TENANTS:
            (path,) = folder.glob(f"data/tenants/*{tenant.replace('-', '_')}_*.db")
            with contextlib.closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                stored = [text for (text,) in connection.execute("SELECT text FROM notes")]
            self.check_read(tenant, stored, self.acknowledged[tenant])
        assert self.wrong == []


async def read(client: HttpClient, tenant: str, ledger: Ledger) -> None:
    """List the notes, and check the answer."""
    acknowledged = set(ledger.acknowledged[tenant])
    status, notes = await client.request("GET", "/notes", tenant)
    ledger.count(status)
    if status == 200:
        ledger.check_read(tenant, [note["text"] for note in notes], acknowledged)


async def write(client: HttpClient, tenant: str, text: str, ledger: Ledger) -> None:
    """Add a note, and remember whether it was acknowledged."""
    ledger.sent[tenant].add(text)
    status, note = await client.request("POST", "/notes", tenant, {"text": text})
    ledger.count(status)
    if status == 201:
        assert note["text"] == text
        ledger.acknowledged[tenant].add(text)
        ledger.writes += 1


# -- servers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _serve(folder: Path, *, app: str = "app:app", cancels: bool = False) -> Iterator[Server]:
    with serve(
        app,
        folder,
        environment={
            "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/control.db",
            "NOTES_ADMIN_TOKEN": TOKEN,
            "STORM_CANCELS": str(int(cancels)),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT / "examples" / "fastapi_notes"), os.environ.get("PYTHONPATH", "")]
            ),
        },
        app_dir=Path(__file__).parent,
        # A client may be busy with the other server for longer than uvicorn's five seconds.
        arguments=("--timeout-keep-alive", "600"),
    ) as server:
        yield server


async def _create_tenants(server: Server) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
        for tenant in TENANTS:
            answer = await client.post(f"{server.url}/admin/tenants", json={"identifier": tenant})
            assert answer.status_code == 201, answer.text


async def _together(*work: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for part in work:
            group.create_task(part)


# -- storms ----------------------------------------------------------------------------------------


async def _mixed(servers: Sequence[Server], number: int, ledger: Ledger) -> None:
    """One client: its share of reads and writes, half and half, in random order."""
    chance = random.Random(number)
    tenant = TENANTS[number % len(TENANTS)]
    share = REQUESTS // CLIENTS
    steps = ["read", "write"] * (share // 2)
    chance.shuffle(steps)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(HttpClient(server)) for server in servers]
        for step, action in enumerate(steps):
            client = chance.choice(clients)
            if action == "read":
                await read(client, tenant, ledger)
            else:
                await write(client, tenant, f"{tenant}/{number}/{step}", ledger)


async def _storm(servers: Sequence[Server]) -> Ledger:
    ledger = Ledger()
    await _create_tenants(servers[0])
    await _together(*(_mixed(servers, number, ledger) for number in range(CLIENTS)))
    assert ledger.wrong == []
    assert ledger.statuses == {200: REQUESTS // 2, 201: REQUESTS // 2}
    assert (ledger.reads, ledger.writes) == (REQUESTS // 2, REQUESTS // 2)
    return ledger


async def test_two_hundred_clients_on_twenty_tenants_lose_and_mix_nothing(tmp_path: Path) -> None:
    with _serve(tmp_path) as server:
        ledger = await _storm([server])
    ledger.check_files(tmp_path)


async def test_two_processes_on_the_same_files_lose_and_mix_nothing(tmp_path: Path) -> None:
    with _serve(tmp_path) as first, _serve(tmp_path) as second:
        ledger = await _storm([first, second])
    ledger.check_files(tmp_path)


# -- clients who leave -----------------------------------------------------------------------------


async def _rude(server: Server, number: int, ledger: Ledger) -> None:
    """One client that stays for the answer half of the time."""
    chance = random.Random(number)
    tenant = TENANTS[number % len(TENANTS)]
    for step in range(REQUESTS // CLIENTS):
        with HttpClient(server) as client:
            # Before any time-out: asyncio leaks a connection that is cancelled while it opens.
            await client.connect()
            text = f"{tenant}/{number}/{step}"
            await _behave(chance, client, tenant, text, ledger)


async def _behave(
    chance: random.Random, client: HttpClient, tenant: str, text: str, ledger: Ledger
) -> None:
    match chance.choice(("read", "write", "leave", "half", "cancel", "cancel")):
        case "read":
            await read(client, tenant, ledger)
        case "write":
            await write(client, tenant, text, ledger)
        case "leave":
            ledger.sent[tenant].add(text)
            await client.send("POST", "/notes", tenant, {"text": text})
        case "half":
            head = f"POST /notes HTTP/1.1\r\nHost: storm\r\nX-Tenant-ID: {tenant}\r\n"
            await client.send_raw(f'{head}Content-Length: 99\r\n\r\n{{"text": "'.encode())
        case _:
            # From what a read takes alone to what a write takes among two hundred.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10 ** chance.uniform(-3, 0)):
                    if chance.random() < 0.5:
                        await read(client, tenant, ledger)
                    else:
                        await write(client, tenant, text, ledger)


@pytest.mark.parametrize("handlers", ["run to their end", "are cancelled"])
async def test_P2_P13_clients_who_leave_at_random_leave_nothing_behind(
    tmp_path: Path, handlers: str
) -> None:
    ledger = Ledger()
    cancels = handlers == "are cancelled"
    with _serve(tmp_path, app="storm_app:app", cancels=cancels) as server:
        await _create_tenants(server)
        await _together(*(_rude(server, number, ledger) for number in range(CLIENTS)))
        assert set(ledger.statuses) == {200, 201}

        def connections() -> dict[str, int]:
            answer = httpx.get(f"{server.url}/health/connections", timeout=60, trust_env=False)
            state: dict[str, int] = answer.json()
            return state

        # Every connection is back, and every tenant's file can be read and written again.
        await until(lambda: connections()["busy"] == connections()["waiting"] == 0)
        assert (connections()["cancelled"] > 100) == cancels
        with HttpClient(server) as client:
            for tenant in TENANTS:
                await write(client, tenant, f"{tenant}/in the end", ledger)
                await read(client, tenant, ledger)
    assert ledger.wrong == []
    ledger.check_files(tmp_path)
