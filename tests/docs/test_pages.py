"""Every page does what it says: its code runs, its commands give the answers that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.pages import PAGES, ROOT, Block, Reader, blocks, commands, matches, write_curl

if TYPE_CHECKING:
    from collections.abc import Iterator

README = ROOT / "README.md"
PACKAGES = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "reader"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, Reader(folder) as reading:
        patch.chdir(folder)
        yield reading


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if {b.language for b in blocks(page)} & {"python", "console"}],
    ids=_name,
)
def test_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    reader.follow(page)
    assert reader.ran


# -- the first example -----------------------------------------------------------------------------


def test_the_first_example_in_the_readme_has_twelve_lines_and_serves_two_tenants() -> None:
    first = next(block for block in blocks(README) if block.language == "python")
    assert len([line for line in first.text.splitlines() if line.strip()]) <= 12
    assert max(map(len, first.text.splitlines())) <= 100
    asked = [
        command
        for block in blocks(README)
        if block.language == "console"
        for command, _ in commands(block)
        if command.startswith("curl")
    ]
    assert {"acme", "beta"} <= {
        name for command in asked for name in re.findall(r"X-Tenant-ID: (\w+)", command)
    }


@pytest.mark.timeout(300)
def test_the_readme_works_on_a_machine_without_curl(reader: Reader, tmp_path: Path) -> None:
    write_curl(tmp_path / "reader" / ".tools")
    reader.follow(README)


def test_our_curl_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    done = subprocess.run(
        [write_curl(tmp_path), "--proxy", "x", "localhost"], capture_output=True, check=False
    )
    assert done.returncode == 2


# -- what is shown and not run ---------------------------------------------------------------------


def _shell(block: Block) -> Iterator[list[str]]:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def test_every_command_that_is_not_run_exists() -> None:
    usage = (ROOT / "dev").read_text()
    seen = 0
    for page in PAGES:
        for block in (block for block in blocks(page) if block.language == "sh"):
            for words in _shell(block):
                seen += 1
                if words[:2] == ["pip", "install"]:
                    ours = {word for word in words[2:] if word.startswith("tenancy-")}
                    assert ours <= PACKAGES, f"{block}: {ours - PACKAGES} is not there yet"
                elif words[0] == "./dev":
                    assert f"\n  {words[1]} " in usage, f"{block}: ./dev has no {words[1]}"
                else:
                    assert words[0] in {"uvicorn", "export"}, f"{block}: {words}"
    assert seen


def test_every_link_in_a_readme_leads_somewhere() -> None:
    readmes = [page for page in PAGES if page.name == "README.md"]
    links = [
        (page, target)
        for page in readmes
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    ]
    assert links
    assert [(page, t) for page, t in links if not (page.parent / t).exists()] == []


# -- the tools of this folder ----------------------------------------------------------------------


def test_output_is_compared_to_the_letter() -> None:
    assert matches("a ... c\nd", "a b b c\nd\n")
    assert not matches("a", "ab")
    assert not matches("", "a")


def test_code_that_fails_fails_the_page(tmp_path: Path, reader: Reader) -> None:
    page = ROOT / "docs" / "never.md"
    wrong = [
        Block(page, 1, "python", None, "assert False\n"),
        Block(page, 1, "python", None, "import asyncio\nawait asyncio.sleep(0)\nassert False\n"),
        Block(page, 1, "console", None, "$ echo one\ntwo\n"),
        Block(page, 1, "console", None, "$ false\n"),
    ]
    for block in wrong:
        with pytest.raises(AssertionError), pytest.MonkeyPatch.context() as patch:
            patch.setattr("support.pages.blocks", lambda _, block=block: [block])
            reader.follow(page)
