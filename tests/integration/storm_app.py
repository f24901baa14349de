"""The example application, as a server runs it that cancels the handler of a client who left.

Hypercorn and others do so; uvicorn lets it run to its end. Run by ``test_storm.py``.
"""

from __future__ import annotations

import os
from typing import Any

import anyio
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
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                global cancelled  # noqa: PLW0603 - one number for the whole process
                while (await receive())["type"] != "http.disconnect":
                    pass
                cancelled += 1
                group.cancel_scope.cancel()

            async def replay() -> Any:
                if body:
                    return body.pop(0)
                await anyio.sleep_forever()
                raise AssertionError("unreachable")

            group.start_soon(watch)
            await self._app(scope, replay, send)
            group.cancel_scope.cancel()


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
