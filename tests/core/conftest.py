"""Fixtures for the tests of the core."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from support.later import Later
from support.plugins import site_folder
from tenancy_core.tenants import identifiers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; the modules of the plugins in it are forgotten afterwards."""
    with site_folder(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> type[Later]:
    """The clock by which identifiers are reserved."""
    monkeypatch.setattr(Later, "by", timedelta())
    monkeypatch.setattr(identifiers, "datetime", Later)
    return Later
