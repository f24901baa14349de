"""Notes for several customers: each sees its own, and nobody else's.

Run it with ``./dev demo``, or by hand::

    TENANCY_DATABASE_URL=sqlite+aiosqlite:///./data/control.db NOTES_ADMIN_TOKEN=secret \
        uvicorn app:app --app-dir examples/fastapi_notes
"""

from __future__ import annotations

import os
import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenancy_core import Tenancy, TenancyConfig
from tenancy_fastapi import CurrentTenant, ReadOnlySession, TenantSession, install


class Base(DeclarativeBase):
    """The tables that every tenant has."""


class Note(Base):
    """A line of text."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class NoteIn(BaseModel):
    """What a client sends."""

    text: str = Field(min_length=1, max_length=1000)


class NoteOut(BaseModel, from_attributes=True):
    """What a client gets."""

    id: int
    text: str


class TenantIn(BaseModel):
    """What an operator sends."""

    identifier: str
    name: str | None = None


class TenantOut(BaseModel, from_attributes=True):
    """What an operator gets."""

    identifier: str
    name: str
    status: str


tenancy = Tenancy(TenancyConfig.from_env(), metadata=Base.metadata)
app = FastAPI(title="Notes")
install(app, tenancy, excluded_paths=["/health", "/admin"])


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer without a tenant, for probes."""
    return {"status": "ok"}


@app.get("/notes")
async def list_notes(session: ReadOnlySession) -> list[NoteOut]:
    """Return the tenant's notes."""
    notes = await session.scalars(select(Note).order_by(Note.id))
    return [NoteOut.model_validate(note) for note in notes]


@app.post("/notes", status_code=201)
async def add_note(note: NoteIn, session: TenantSession) -> NoteOut:
    """Keep a note."""
    row = Note(text=note.text)
    session.add(row)
    await session.flush()
    return NoteOut.model_validate(row)


@app.get("/me")
async def me(tenant: CurrentTenant) -> TenantOut:
    """Return the tenant."""
    return TenantOut.model_validate(tenant)


# -- for the operator of the service, who is no tenant ---------------------------------------------


def require_operator(authorization: Annotated[str, Header()] = "") -> None:
    """Refuse whoever does not know the operator's token."""
    token = os.environ.get("NOTES_ADMIN_TOKEN", "")
    if not token or not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})


admin = APIRouter(prefix="/admin", dependencies=[Depends(require_operator)])


@admin.post("/tenants", status_code=201)
async def create_tenant(tenant: TenantIn) -> TenantOut:
    """Create a tenant with an empty database of its own."""
    return TenantOut.model_validate(
        await tenancy.tenants.create(tenant.identifier, name=tenant.name, actor="operator")
    )


@admin.post("/tenants/{identifier}/suspend")
async def suspend_tenant(identifier: str) -> TenantOut:
    """Stop serving a tenant."""
    return TenantOut.model_validate(await tenancy.tenants.suspend(identifier, actor="operator"))


@admin.post("/tenants/{identifier}/resume")
async def resume_tenant(identifier: str) -> TenantOut:
    """Serve a tenant again."""
    return TenantOut.model_validate(await tenancy.tenants.resume(identifier, actor="operator"))


app.include_router(admin)
