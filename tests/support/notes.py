"""A small application with one table per tenant, used wherever a test needs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from tenancy_core import Tenancy


class Base(DeclarativeBase):
    """The tables that every tenant has."""


class Note(Base):
    """A line of text."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


async def write(tenancy: Tenancy, text: str) -> None:
    """Add a note as the current tenant."""
    async with tenancy.session() as session:
        session.add(Note(text=text))


async def read(tenancy: Tenancy) -> list[str]:
    """Return the current tenant's notes."""
    async with tenancy.session(read_only=True) as session:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))
