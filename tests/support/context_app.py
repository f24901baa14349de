"""An application that does everything that outlives a handler: streams, events, tasks, sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from sqlalchemy import select
from starlette.responses import StreamingResponse

from support.notes import Base, Note, read, write
from tenancy_core import Tenancy, TenancyConfig, current_tenant
from tenancy_fastapi import CurrentTenant, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

tenancy = Tenancy(TenancyConfig.from_env(), metadata=Base.metadata)
seen_without_request: list[str | None] = []


def here() -> str | None:
    """Identifier of the current tenant."""
    tenant = current_tenant()
    return None if tenant is None else tenant.identifier


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create tenants, and watch from a task of its own who is current."""

    async def watch() -> None:
        while True:
            seen_without_request.append(here())
            await asyncio.sleep(0.01)

    for number in range(8):
        await tenancy.tenants.create(f"t{number}")
    task = asyncio.create_task(watch())
    yield
    seen_without_request.append(here())
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/stats")
async def stats() -> dict[str, Any]:
    """What is in use, and whom the task of the lifespan has seen."""
    connections = tenancy.parts.connections
    gates: Any = tenancy.parts.isolation._gates
    return {
        "in_use": connections.open - connections.idle,
        "waiting": connections.waiting,
        "gates": sum(gate._lock.locked() for gate in gates._gates.values()),
        "seen_without_request": sorted({str(name) for name in seen_without_request}),
        "here": here(),
    }


@app.post("/notes/{count}")
async def fill(count: int) -> None:
    """Write many notes at once."""
    async with tenancy.session() as session:
        session.add_all([Note(text=f"{here()}:{number}") for number in range(count)])


@app.get("/notes")
async def notes() -> list[str]:
    """Return the tenant's notes."""
    return await read(tenancy)


@app.get("/rows")
async def rows(*, writing: bool = False) -> StreamingResponse:
    """Stream rows from a session that is open for as long as the body, which never ends."""

    async def body() -> AsyncIterator[bytes]:
        async with tenancy.session(read_only=not writing) as session:
            while True:
                found = await session.stream_scalars(
                    select(Note.text).execution_options(yield_per=5)
                )
                async for text in found:
                    yield f"{here()} {text}\n".encode()

    return StreamingResponse(body())


@app.get("/events")
async def events() -> StreamingResponse:
    """Send events that name the tenant, from the start to the end."""

    async def body() -> AsyncIterator[str]:
        for number in range(30):
            yield f"id: {number}\ndata: {here()}\n\n"
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/event-stream")


@app.post("/later")
async def later(tasks: BackgroundTasks) -> str | None:
    """Write one note in a task after the answer, and another in a thread's place."""

    async def asynchronous() -> None:
        await asyncio.sleep(0)
        await write(tenancy, f"task of {here()}")

    def synchronous() -> None:
        name = here()
        asyncio.run_coroutine_threadsafe(_note(f"thread of {name}", str(name)), loop).result()

    loop = asyncio.get_running_loop()
    tasks.add_task(asynchronous)
    tasks.add_task(synchronous)
    return here()


async def _note(text: str, tenant: str) -> None:
    async with tenancy.scope(tenant):
        await write(tenancy, text)


def sync_dependency() -> str | None:
    """Runs in a thread, to which the framework copies the context."""
    return here()


@app.get("/thread")
def thread(
    name: Annotated[str | None, Depends(sync_dependency)], tenant: CurrentTenant
) -> list[Any]:
    """Answer from a thread."""
    return [name, here(), tenant.identifier]


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    """Answer every message with the tenant, and write it down."""
    await websocket.accept()
    async for message in websocket.iter_text():
        await write(tenancy, f"{here()} {message}")
        await websocket.send_text(f"{here()} {message}")


install(app, tenancy, excluded_paths=["/stats"])
