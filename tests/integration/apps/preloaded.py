"""The example, for a server that loads it once and forks: who answers, and on which backend.

With ``OPENED`` set it is also what must not happen and does: the tenancy is open in the process
that forks.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from app import app, tenancy
from sqlalchemy import text

from tenancy_fastapi import TenantSession  # noqa: TC001 - FastAPI reads it

BACKEND = text("SELECT pg_backend_pid()")


@app.get("/backend")
async def backend(session: TenantSession) -> tuple[int, int, int]:
    """Return the worker, the process that forked it, and the server's backend."""
    return os.getpid(), os.getppid(), (await session.execute(BACKEND)).scalar_one()


async def hold() -> int:
    """Leave a connection in the pool; return its backend."""
    await tenancy.__aenter__()
    await tenancy.tenants.create("first")
    async with tenancy.scope("first"), tenancy.session() as session:
        return int((await session.execute(BACKEND)).scalar_one())


if "OPENED" in os.environ:
    loop = asyncio.new_event_loop()
    Path(os.environ["OPENED"]).write_text(str(loop.run_until_complete(hold())))
