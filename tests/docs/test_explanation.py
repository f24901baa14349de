"""The explanations name rooms and tests that exist, and leave none out."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from typing import TYPE_CHECKING

import pytest

from support.pages import PAGES
from support.server import ROOT
from tenancy_core._plugins import load_plugins
from tenancy_core._plugins.registry import ISOLATION

if TYPE_CHECKING:
    from pathlib import Path

EXPLANATION = ROOT / "docs" / "explanation"


@cache
def all_tests() -> frozenset[str]:
    """Return the names of all tests of this repository."""
    return frozenset(
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    )


def rows_of(test: str) -> set[str]:
    """Return the rows of the threat model that a test carries in its name."""
    found: set[str] = set()
    for word in test.removeprefix("test_").split("_"):
        if re.fullmatch(r"[A-Z][0-9]+", word) is None:
            break
        found.add(word)
    return found


def covered() -> dict[str, set[str]]:
    """Row → the tests that the page on threats names for it."""
    text = (EXPLANATION / "threats.md").read_text()
    text = text[text.index("## Covered") : text.index("## Not covered yet")]
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.fullmatch(r"[A-Z][0-9]+", cells[0]):
            assert cells[0] not in found, f"{cells[0]} is there twice"
            found[cells[0]] = set(re.findall(r"`(test_\w+)`", cells[-1]))
    return found


def test_the_layers_of_the_architecture_are_those_that_are_enforced() -> None:
    page = (EXPLANATION / "architecture.md").read_text()
    shown = re.search(r"## Rooms and arrows.*?```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["id"] == "core-layers"]
    assert shown[1].splitlines() == layers


def decisions() -> list[list[str]]:
    """Return the rows of the table of what stops what, cell by cell."""
    page = (EXPLANATION / "architecture.md").read_text()
    section = re.search(r"## What stops what\n(.*?)\n## ", page, re.DOTALL)
    assert section is not None
    table = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_each_cell_of_the_decision_table_names_its_test() -> None:
    head, _, *rows = decisions()
    assert head == ["strategy", "role", "URL", "raw SQL", "injected SQL", "a stale worker"]
    assert rows
    bare = [
        (row[0], title)
        for row in rows
        for title, cell in zip(head[1:], row[1:], strict=True)
        if not re.search(r"`test_\w+`", cell)
    ]
    assert bare == []


def test_each_strategy_on_each_database_has_a_row_in_the_decision_table() -> None:
    registry = load_plugins(blocked=frozenset())
    offered = {
        f"`{offer.provider.name}` on `{dialect}`"
        for offer in registry.offers(ISOLATION)
        for dialect in offer.provider.dialects
    }
    assert offered
    assert {row[0] for row in decisions()[2:]} == offered


def test_every_room_of_the_core_is_described() -> None:
    page = (EXPLANATION / "architecture.md").read_text()
    source = ROOT / "packages" / "tenancy-core" / "src" / "tenancy_core"
    rooms = {path.stem for path in source.iterdir() if path.suffix == ".py" or path.is_dir()}
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    described = set(re.findall(r"`(\w+)`", table))
    assert rooms - {"__init__", "__pycache__"} <= described


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`(test_[A-Za-z0-9_]+)`", page.read_text()))
    assert named - all_tests() == set()


def test_the_pages_name_tests() -> None:
    assert len(covered()) > 20
    assert "test_the_pages_name_tests" in all_tests()


def test_every_row_of_the_threat_model_that_a_test_carries_is_on_the_page() -> None:
    carried = {row for test in all_tests() for row in rows_of(test)}
    missing = sorted(carried - set(covered()))
    assert missing == [], "give each a line in docs/explanation/threats.md, under Covered"


def test_no_row_is_both_covered_and_not() -> None:
    text = (EXPLANATION / "threats.md").read_text()
    waiting = set(re.findall(r"\b[A-Z][0-9]+\b", text[text.index("## Not covered yet") :]))
    assert waiting
    assert waiting & set(covered()) == set()


def test_a_row_on_the_page_is_carried_by_the_tests_it_names() -> None:
    assert [row for row, named in covered().items() if not named] == []
    wrong = {(row, t) for row, named in covered().items() for t in named if row not in rows_of(t)}
    assert wrong == set()
