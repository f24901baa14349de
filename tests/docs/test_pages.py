"""Every page does what it says: its code runs, its commands give the answers that it shows."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from support.pages import (
    PAGES,
    Block,
    Reader,
    blocks,
    commands,
    matches,
    shop,
    uses_postgres,
    write_curl,
)
from support.server import ROOT
from support.services.databases import finished

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

README = ROOT / "README.md"
PROJECTS = [
    tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")
]
INSTALLED = {project["name"] for project in PROJECTS} | {
    f"{project['name']}[{extra}]"
    for project in PROJECTS
    for extra in project.get("optional-dependencies", ())
}
"""What can be written behind ``pip install``."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "reader"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, Reader(folder) as reading:
        patch.chdir(folder)
        yield reading


@pytest.mark.timeout(1200)  # each command starts a Python, on a machine that may be busy
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if {b.language for b in blocks(page)} & {"python", "console"}],
    ids=_name,
)
def test_a_page_does_what_it_says(
    page: Path, reader: Reader, request: pytest.FixtureRequest
) -> None:
    with contextlib.ExitStack() as stack:
        if uses_postgres(page):
            server = request.getfixturevalue("postgres_server")
            reader.shop = stack.enter_context(shop(server, page))
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


class _Echo(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        names = ("Host", "Content-Type", "X-Tenant-ID")
        seen = [self.command, self.path, body, *(self.headers.get(name, "-") for name in names)]
        self.send_response(418, "Teapot")
        self.end_headers()
        self.wfile.write(" ".join(seen).encode())

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - http.server's names

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("{host}/a?b=c", "GET /a?b=c  {host} - -"),
        ("-X PUT -H 'X-Tenant-ID: acme' {host}/a", "PUT /a  {host} - acme"),
        ("--json '{{}}' {host}/a", "POST /a {{}} {host} application/json -"),
        ("-H 'Host: acme.example.com' {host}/", "GET /  acme.example.com - -"),
        ("acme.{host}/", "GET /  acme.{host} - -"),
        (r"-s -o /dev/null -w '%{{http_code}}\n' {host}/", "418\n"),
    ],
)
def test_a_machine_without_curl_has_one_that_does_the_same(
    arguments: str, answer: str, tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host = f"localhost:{server.server_address[1]}"
        curls = [str(write_curl(tmp_path))]
        if (machines_own := shutil.which("curl")) is not None:
            curls.append(machines_own)
        answers = [
            subprocess.run(
                [curl, *shlex.split(arguments.format(host=host))],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for curl in curls
        ]
        server.shutdown()
        thread.join()
    assert set(answers) == {answer.format(host=host)}


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
                    assert ours <= INSTALLED, f"{block}: {ours - INSTALLED} is not there yet"
                elif words[0] == "./dev":
                    assert f"\n  {words[1]} " in usage, f"{block}: ./dev has no {words[1]}"
                else:
                    assert words in (
                        ["python3", "-m", "venv", ".venv"],
                        [".", ".venv/bin/activate"],
                    )
    assert seen


def _prose(page: Path) -> str:
    """Return a page without its code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _anchors(page: Path) -> set[str]:
    """Return what mkdocs calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", _prose(page)):
        file = (page.parent / target).resolve() if target else page
        assert file.is_relative_to(ROOT), target
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(file), f"{target}#{anchor}"


def test_the_links_are_found() -> None:
    assert "[architecture](docs/explanation/architecture.md)" in _prose(README)
    assert "prove-it" in _anchors(ROOT / "docs" / "how-to" / "choose-a-resolver.md")


# -- pages that use PostgreSQL ---------------------------------------------------------------------

URL = "postgresql+asyncpg://shop_{}:secret@localhost/shop"
MADE_BY_THE_PAGE = r"""
```sql
CREATE ROLE shop_owner LOGIN PASSWORD 'secret';
CREATE DATABASE shop OWNER shop_owner;
\connect shop
CREATE TABLE shopping (id integer);
GRANT SELECT ON shopping TO shop_owner;
```
"""
ASKED = """
```python
import asyncpg

connection = await asyncpg.connect("{}".replace("+asyncpg", ""))
assert (await connection.fetchval("SELECT current_database()")).startswith("shop_")
await connection.fetch({!r})
await connection.close()
```
"""


@pytest.mark.parametrize(
    ("made", "role", "statement"),
    [("", "app", "SELECT 1"), (MADE_BY_THE_PAGE, "owner", "SELECT * FROM shopping")],
)
def test_a_page_on_postgresql_gets_a_database_that_goes_with_it(
    made: str,
    role: str,
    statement: str,
    reader: Reader,
    tmp_path: Path,
    postgres_server: Postgres,
    postgres_database: PostgresDatabase,
) -> None:
    page = tmp_path / "page.md"
    page.write_text(made + ASKED.format(URL.format(role), statement))
    assert uses_postgres(page)
    with shop(postgres_server, page) as database:
        reader.shop = database
        reader.follow(page)
    left = "SELECT rolname FROM pg_roles WHERE rolname LIKE $1 || '%'"
    assert finished(postgres_database.fetch(left, database.name)) == []
    there = "SELECT 1 FROM pg_database WHERE datname = $1"
    assert finished(postgres_database.fetch(there, database.name)) == []


def test_a_page_without_a_server_does_not_use_one(reader: Reader, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(ASKED.format(URL.format("app"), "SELECT 1"))
    with pytest.raises(AssertionError, match="this page has no server"):
        reader.follow(page)


# -- the tools of this folder ----------------------------------------------------------------------


def test_output_is_compared_to_the_letter() -> None:
    assert matches("a ... c\nd", "a b b c\nd\n")
    assert not matches("a", "ab")
    assert not matches("", "a")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "assert False"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nassert False"),
        ("console", "$ echo one\ntwo"),
        ("console", "$ false"),
        ("brainfuck", "+"),
    ],
)
def test_a_block_that_fails_fails_its_page(
    language: str, text: str, reader: Reader, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```{language}\n{text}\n```\n")
    with pytest.raises(AssertionError):
        reader.follow(page)
