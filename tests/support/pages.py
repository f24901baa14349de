"""Follows a page of documentation as a reader would: saves files, runs code, pastes commands.

A page is worked through from top to bottom in an empty folder:

* ``python`` with ``title="app.py"`` (and any other titled block) is saved under that name;
* ``python`` without a title runs there and then, in one namespace per page. ``await`` is allowed
  at the top level, as in ``python -m asyncio``;
* ``console`` is pasted line by line. What follows a command is its output, to the letter;
  ``...`` stands for what differs from run to run. ``uvicorn`` starts a server, on a free port
  instead of 8000;
* ``sql`` is run by a superuser of a PostgreSQL, statement by statement; ``\\connect`` means there
  what it means in psql;
* ``sh`` is for commands that a test cannot run (``pip install``): they are compared with what
  there is;
* ``text`` and ``json`` only show something.

Pages that use PostgreSQL call the database ``shop``, its roles ``shop_owner``, ``shop_control``
and ``shop_app``, their password ``secret`` and the server ``localhost``. A test gives them a
database of its own (:func:`shop`), whose addresses take the place of these.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from support.server import ROOT, serve
from support.services.databases import PostgresDatabase, finished, fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Server
    from support.services.databases import PostgresServer

SHOWN: Final = {"text", "json", "sh"}
"""Languages of blocks that are not run here."""

PAGES: Final = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]+)?(?: +(?P<rest>.*))?$")
_TITLE = re.compile(r'title="([^"]+)"')
_ADDRESS = "localhost:8000"
_SHOP = re.compile(r"postgresql\+asyncpg://shop_(owner|control|app):secret@localhost/shop\b")
_SHOP_NAME = re.compile(r"\bshop(?=(_owner|_control|_app)?\b)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        line: Of its first line of code, from 1.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    return list(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening is None:
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner)
        else:
            raise AssertionError(f"{page}:{number}: this block is never closed")
        title = _TITLE.search(opening["rest"] or "")
        text = textwrap.dedent("\n".join(body)) + "\n"
        yield Block(page, number + 1, opening["language"] or "", title and title[1], text)


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a ``console`` block, each with the output that is shown."""
    found: list[tuple[str, list[str]]] = []
    continued = False
    for line in block.text.splitlines():
        if continued:
            command, output = found.pop()
            found.append((f"{command}\n{line}", output))
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            assert found, f"{block}: there is output before the first command"
            found[-1][1].append(line)
            continue
        continued = line.endswith("\\")
    return [(command, "\n".join(output).strip()) for command, output in found]


def matches(shown: str, seen: str) -> bool:
    """Whether an output is the one that is shown, where ``...`` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in shown.split("..."))
    return re.fullmatch(pattern, seen.strip(), re.DOTALL) is not None


def uses_postgres(page: Path) -> bool:
    """Whether a page cannot be followed without a PostgreSQL."""
    return any(block.language == "sql" or _SHOP.search(block.text) for block in blocks(page))


@contextlib.contextmanager
def shop(server: PostgresServer, page: Path) -> Iterator[PostgresDatabase]:
    """Give the database that a page calls ``shop``; it is removed with its roles.

    It is there already, unless the page says itself how it is made.
    """
    if all(block.language != "sql" for block in blocks(page)):
        with fresh_database(server, createrole=True, prefix="shop") as database:
            yield database
        return
    name = f"shop_{secrets.token_hex(5)}"
    database = PostgresDatabase(server, name, secrets.token_urlsafe(9) + "@:/%?#+")
    try:
        yield database
    finally:
        finished(database.drop())


class Reader:
    """Somebody who works through one page.

    Attributes:
        ran: How many blocks were run or saved.
        shop: The database that the page calls so.
    """

    def __init__(self, folder: Path) -> None:
        self.ran = 0
        self.shop: PostgresDatabase | None = None
        self._folder = folder
        self._namespace: dict[str, Any] = {"__name__": "__page__"}
        self._environment = {
            "PATH": os.pathsep.join(
                [str(_tools(folder)), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "PYTHONPATH": os.pathsep.join([str(folder / ".site"), str(folder)]),
            "PYTHONWARNINGS": "error",
        }
        self._stack = contextlib.ExitStack()
        self._serving = contextlib.ExitStack()
        self._server: Server | None = None
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._runner)
        self._stack.enter_context(self._serving)
        self._stack.callback(_forget, self._folder, list(sys.path))
        sys.path.insert(0, str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, page: Path) -> None:
        """Do what the page says, block by block."""
        for shown in blocks(page):
            block = self._addressed(shown)
            if block.title is not None:
                self._save(block)
            elif block.language == "python":
                self._run(block)
            elif block.language == "console":
                for command, output in commands(block):
                    self._paste(block, command, output)
            elif block.language == "sql":
                self._runner.run(self._administer(block))
            else:
                assert block.language in SHOWN, f"{block}: what is {block.language!r}?"
                continue
            self.ran += 1

    def _addressed(self, block: Block) -> Block:
        """Return a block with the addresses of the test's own server."""
        database = self.shop
        if database is None:
            assert not _SHOP.search(block.text), f"{block}: this page has no server"
            return block
        text = _SHOP.sub(lambda found: database.url(f"{database.name}_{found[1]}"), block.text)
        if block.language == "sql":
            text = _SHOP_NAME.sub(database.name, text).replace("'secret'", f"'{database.password}'")
        return replace(block, text=text)

    async def _administer(self, block: Block) -> None:
        database = self.shop
        assert database is not None, f"{block}: this page has no server"
        before, found, behind = block.text.partition(f"\\connect {database.name}\n")
        if not found:
            before, behind = "", block.text
        for name, script in (("postgres", before), (database.name, behind)):
            # One by one: CREATE DATABASE is refused where it is not alone.
            statements = [part for part in script.split(";\n") if part.strip()]
            place = PostgresDatabase(database.server, name, database.password)
            if statements:
                await place.admin(*statements)

    def _save(self, block: Block) -> None:
        path = self._folder / str(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        importlib.invalidate_caches()

    def _run(self, block: Block) -> None:
        # Padded, so that a traceback names the line of the page.
        code = compile(
            "\n" * (block.line - 1) + block.text,
            block.page,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,  # this file's annotations are texts, and a page's are none
        )
        if code.co_flags & inspect.CO_COROUTINE:
            self._runner.run(eval(code, self._namespace))  # noqa: S307 - our own page
        else:
            exec(code, self._namespace)  # noqa: S102 - our own page

    def _paste(self, block: Block, command: str, shown: str) -> None:
        words = shlex.split(command)
        if words[0] == "export":
            self._environment |= dict([words[1].split("=", 1)])
            assert len(words) == 2, f"{block}: one variable for each export"
        elif words[0] == "uvicorn":
            self._serve(words[1], tuple(words[2:]))
        elif command == "pip install .":
            self._install()
        else:
            if self._server is not None:
                command = command.replace(_ADDRESS, f"localhost:{self._server.port}")
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self._folder,
                env={**os.environ, **self._environment},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            seen = done.stdout.replace("\r\n", "\n")
            assert matches(shown, seen), f"{block}: {command}\n{seen}{done.stderr}"
            # Not every command that is shown succeeds; one that fails says so on the page.
            assert done.returncode == 0 or shown, f"{block}: {command}\n{done.stderr}"

    def _serve(self, app: str, arguments: tuple[str, ...]) -> None:
        self._serving.close()
        environment = {k: v for k, v in self._environment.items() if k != "PYTHONWARNINGS"}
        self._server = self._serving.enter_context(
            serve(
                app,
                self._folder,
                environment=environment,
                arguments=arguments,
                app_dir=self._folder,
            )
        )

    def _install(self) -> None:
        """Build the folder's project with its own build backend, and install the wheel."""
        folder = self._folder / ".dist"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", "import uv_build; uv_build.build_wheel('.dist')"],
            cwd=self._folder,
            env={**os.environ, "PATH": self._environment["PATH"]},
            capture_output=True,
            check=True,
        )
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self._folder / ".site")


def _forget(folder: Path, path: list[str]) -> None:
    """Take back what a page's imports left in this process."""
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(folder):
            del sys.modules[name]


def _tools(folder: Path) -> Path:
    """Return a folder with ``curl``: the machine's, else one of ours that does the same."""
    tools = folder / ".tools"
    tools.mkdir()
    if shutil.which("curl") is None:
        write_curl(tools)
    return tools


def write_curl(folder: Path) -> Path:
    """Write a ``curl`` that runs on nothing but this project's test dependencies."""
    curl = folder / "curl"
    curl.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT / "tests"} exec {sys.executable} -m support.curl "$@"\n'
    )
    curl.chmod(0o755)
    return curl
