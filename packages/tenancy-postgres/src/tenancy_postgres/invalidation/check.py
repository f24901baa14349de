"""The item of the production checklist. Nothing here imports a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from anyio import move_on_after

from tenancy_core.contract import Check, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INVALIDATION"]

_NAME: Final = "postgres.invalidation"

_PATIENCE: Final = 5.0
"""Seconds that the first try to listen may take, where it is asked for right behind the start."""


async def _changes_are_heard(tenancy: Any) -> Sequence[Finding]:  # noqa: ANN401 - as Check says
    from tenancy_postgres.invalidation.bus import Flaw, PostgresBus  # noqa: PLC0415 - imports SQLAlchemy

    bus, listener = tenancy.parts.bus, tenancy.parts.listener
    if not isinstance(bus, PostgresBus) or listener is None:
        return []
    with move_on_after(_PATIENCE):
        await listener.tried.wait()
    if listener.connected:
        return []
    flaw = bus.flaw or Flaw(
        "The connection that listens is not open yet.", "Look into the log, and check again."
    )
    bound = tenancy.config.invalidation_poll_seconds
    return [
        Finding(
            _NAME,
            Severity.WARNING,
            f"Changes that other processes make are seen within {bound:g} s, and not at once. "
            f"{flaw.what}",
            flaw.remedy,
        )
    ]


INVALIDATION: Final = Check(
    _NAME, "Changes of tenants are heard of at once in every process", _changes_are_heard
)
