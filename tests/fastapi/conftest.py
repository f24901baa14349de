"""An application with notes, installed on the open ``tenancy`` of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from support.fastapi_client import requests_to
from support.notes import Note
from tenancy_fastapi import ReadOnlySession, TenantSession, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tenancy_core import Tenancy


def _add_notes(app: FastAPI) -> None:
    @app.get("/notes")
    async def list_notes(session: ReadOnlySession) -> list[str]:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))

    @app.post("/notes/{text}", status_code=201)
    async def add_note(text: str, session: TenantSession) -> None:
        session.add(Note(text=text))

    @app.get("/health")
    async def health() -> str:
        return "ok"


@pytest.fixture
def app(tenancy: Tenancy) -> FastAPI:
    """An application in which tests may still add routes, handlers and middleware."""
    app = FastAPI()
    install(app, tenancy, excluded_paths=["/health", "/open"])
    _add_notes(app)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``app``, in the event loop of ``tenancy``; no lifespan is run."""
    async with requests_to(app) as client:
        yield client
