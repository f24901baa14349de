"""The example application, as a server runs it that cancels the handler of a client who left.

Hypercorn and others do so; uvicorn lets it run to its end. Run by ``test_storm.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from app import app, tenancy  # examples/fastapi_notes/app.py

CANCELS = os.environ["STORM_CANCELS"] == "1"
cancelled = 0


class CancelOnDisconnect:
    """Cancels the application as soon as the client is gone."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not CANCELS:
            await self._app(scope, receive, send)
            return
        body = [await receive()]
        while body[-1].get("more_body"):
            body.append(await receive())

        async def replay() -> Any:
            return body.pop(0) if body else await asyncio.Event().wait()

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        # Tasks and their own cancel(), as servers do it: a CancelScope would respect shields.
        serving = asyncio.create_task(self._app(scope, replay, send))
        watching = asyncio.create_task(until_gone())
        await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not serving.done():
            global cancelled  # noqa: PLW0603 - one number for the whole process
            cancelled += serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@app.get("/health/connections")
async def connections() -> dict[str, int]:
    """Say how many handlers were cancelled, and what they left of the database connections."""
    budget = tenancy.parts.connections
    return {
        "cancelled": cancelled,
        "busy": budget.open - budget.idle,
        "waiting": budget.waiting,
    }


app.add_middleware(CancelOnDisconnect)
