"""The section ``TENANCY_SQLITE_*``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SqliteSettings"]


class SqliteSettings(BaseModel):
    """Settings of this package.

    Attributes:
        root: Folder of the tenants' files; by default ``tenants`` beside the control database.
        synchronous: ``full`` keeps every acknowledged commit through a power cut; ``normal``
            saves the disk a flush per commit and may lose the last ones in one (never a part of
            one). Both survive a killed process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    root: Path | None = Field(default=None)
    synchronous: Literal["full", "normal"] = "full"
