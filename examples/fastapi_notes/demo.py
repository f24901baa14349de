"""Runs the application beside this file with two tenants, and says what to try. ``./dev demo``.

With ``--tour`` it tries everything itself, over real HTTP, and says whether it was as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

HERE: Final = Path(__file__).resolve().parent
STARTS_WITHIN: Final = 60.0
"""Seconds. It takes two; a busy machine may need more."""

TENANTS: Final = {"acme": "Acme Ltd", "beta": "Beta Inc"}
COLOURS: Final = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="Serve two tenants; say what to try.")
    parser.add_argument("--tour", action="store_true", help="try everything, then stop")
    parser.add_argument("--port", type=_port, default=0, help="by default a free one")
    parser.add_argument("--keep", action="store_true", help="do not remove the databases")
    options = parser.parse_args()
    # Pipes and odd terminals get everything as well, and at once.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True, errors="replace")
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is signal.SIG_DFL:  # and not ignored, as under nohup
            signal.signal(stop, _interrupt)
    try:
        with _folder(keep=options.keep) as folder, _served(folder, options.port) as server:
            for identifier, name in TENANTS.items():
                server.create_tenant(identifier, name)
            if options.tour:
                return Tour(server).run()
            print(_what_to_try(server))
            server.wait()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130 if options.tour else 0
    return 0


class DemoError(Exception):
    """Something went wrong that is told in a sentence."""


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:  # noqa: PLR2004 - 16 bits
        raise ValueError(text)
    return port


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# -- the server ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(*, keep: bool) -> Generator[Path, None, None]:
    folder = Path(tempfile.mkdtemp(prefix="tenancy-demo-"))
    try:
        yield folder
    finally:
        if keep:
            print(f"The databases are kept in {folder}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _served(folder: Path, port: int) -> Generator[Server, None, None]:
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise DemoError(
            f"port {port} cannot be used ({error.strerror}). Choose another with --port, or leave "
            "it out."
        ) from None
    # The port is bound here and handed over, so that nobody can take it in between.
    with listener:
        server = Server(folder, listener)
    try:
        server.wait_until_ready()
        yield server
    finally:
        # A second Ctrl-C must not leave the server running, nor half of the folder.
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(stop, signal.SIG_IGN)
        server.stop()


class Server:
    """``uvicorn app:app`` in a process of its own."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self.folder = folder
        self.token = secrets.token_urlsafe(12)
        self._log = folder / "uvicorn.log"
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # A connection per request, as from so many clients; no proxies from the environment.
        self._client = httpx.Client(
            limits=httpx.Limits(max_keepalive_connections=0), timeout=30, trust_env=False
        )
        # The demo is to be the same whatever the shell it is started from has set.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TENANCY_")}
        environment["TENANCY_DATABASE_URL"] = f"sqlite+aiosqlite:///{folder}/control.db"
        environment["NOTES_ADMIN_TOKEN"] = self.token
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                [
                    *(sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(HERE)),
                    *("--fd", str(listener.fileno()), "--log-level", "warning"),
                ],
                pass_fds=[listener.fileno()],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server
            )

    def wait_until_ready(self) -> None:
        """Return once ``/health`` answers."""
        deadline = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._died()
            with contextlib.suppress(httpx.TransportError):
                if self._send("GET", "/health", [], None).is_success:
                    return
            time.sleep(0.05)
        raise DemoError(f"uvicorn did not answer within {STARTS_WITHIN:g} seconds{self._tail()}")

    def wait(self) -> None:
        """Wait for the end of the server, which is not expected."""
        self._process.wait()
        raise self._died()

    def stop(self) -> None:
        """End the process."""
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self) -> DemoError:
        return DemoError(f"uvicorn ended with status {self._process.returncode}{self._tail()}")

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        return ". Its log ends:" + "".join(f"\n  | {line}" for line in lines) if lines else "."

    def request(
        self,
        method: str,
        path: str,
        *headers: tuple[str, str],
        body: object = None,
    ) -> httpx.Response:
        """Make one request.

        Raises:
            DemoError: There was no answer.
        """
        # As bytes: what a hostile client sends need not be ASCII.
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        try:
            return self._send(method, path, encoded, body)
        except httpx.TransportError as error:
            raise DemoError(
                f"{method} {path} got no answer ({type(error).__name__}){self._tail()}"
            ) from None

    def _send(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: object
    ) -> httpx.Response:
        return self._client.request(method, self.url + path, headers=headers, json=body)

    def as_operator(self, path: str, body: object = None) -> httpx.Response:
        """Make one request of the operator."""
        return self.request("POST", path, ("Authorization", f"Bearer {self.token}"), body=body)

    def create_tenant(self, identifier: str, name: str) -> None:
        """Create a tenant, over HTTP like everything else."""
        answer = self.as_operator("/admin/tenants", {"identifier": identifier, "name": name})
        if answer.status_code != 201:  # noqa: PLR2004 - HTTP
            raise DemoError(
                f"the tenant {identifier} could not be created: {answer.status_code} "
                f"{answer.text}{self._tail()}"
            )

    def files(self) -> dict[str, Path]:
        """Return the tenants' databases."""
        found = {tenant: list(self.folder.glob(f"tenants/*{tenant}*.db")) for tenant in TENANTS}
        return {tenant: paths[0] for tenant, paths in found.items() if len(paths) == 1}


# -- what to try -----------------------------------------------------------------------------------


def _what_to_try(server: Server) -> str:
    curl = "curl -sw ' %{http_code}\\n'"
    notes = f"{curl} {server.url}/notes"
    acme, beta = ("-H 'X-Tenant-ID: acme'", "-H 'X-Tenant-ID: beta'")
    text = "-H 'Content-Type: application/json' -d '{\"text\": \"Call the printer\"}'"
    operator = f"-X POST -H 'Authorization: Bearer {server.token}'"
    tenants = f"{curl} {server.url}/admin/tenants"
    new = "-H 'Content-Type: application/json' -d '{\"identifier\": \"gamma\"}'"
    lines = [
        f"Two tenants, acme and beta, are served at {server.url} (documentation: /docs).",
        "Paste into another terminal:",
        "",
        "A note of acme, which acme sees and beta does not",
        f"  {notes} {acme} {text}",
        f"  {notes} {acme}",
        f"  {notes} {beta}",
        "",
        "Without a tenant, with one that is nobody's, and with one that is no name: refused",
        f"  {notes}",
        f"  {notes} -H 'X-Tenant-ID: nobody'",
        f"  {notes} -H 'X-Tenant-ID: ../acme'",
        "",
        "The operator suspends acme, which is refused from then on, and resumes it",
        f"  {tenants}/acme/suspend {operator}",
        f"  {notes} {acme}",
        f"  {tenants}/acme/resume {operator}",
        f"  {notes} {acme}",
        "",
        "A third tenant, which begins with nothing",
        f"  {tenants} {operator} {new}",
        f"  {notes} -H 'X-Tenant-ID: gamma'",
        "",
        "Each tenant is a file",
        f"  ls -l {server.folder}/tenants",
        "",
        "Ctrl-C stops the server and removes the files.",
    ]
    return "\n".join(_bold(line) if line and line[0] != " " else line for line in lines)


# -- the tour --------------------------------------------------------------------------------------


class Tour:
    """Makes requests, says what came back, and remembers what should not have."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._steps = 0
        self._wrong: list[str] = []

    def run(self) -> int:
        """Return the exit status."""
        self.notes()
        self.refusals()
        self.suspension()
        self.without_a_tenant()
        self.files()
        if not self._wrong:
            print(_bold(f"\nAll {self._steps} answers were as they should be."))
            return 0
        print(_bold(f"\n{len(self._wrong)} of {self._steps} answers were not as they should be:"))
        print("\n".join(self._wrong))
        return 1

    def notes(self) -> None:
        """Each tenant writes and reads its own."""
        self._title("Each tenant writes and reads notes of its own")
        self._ask("GET", "/me", "acme", expected={"identifier": "acme", "name": "Acme Ltd"})
        self._ask("POST", "/notes", "acme", body={"text": "Call the printer"}, status=201)
        self._ask("POST", "/notes", "beta", body={"text": "Water the plants"}, status=201)
        self._ask("GET", "/notes", "acme", expected=["Call the printer"])
        self._ask("GET", "/notes", "beta", expected=["Water the plants"])

    def refusals(self) -> None:
        """Nobody gets in by a name that is none."""
        self._title("Who says no tenant, or nobody's, is refused")
        self._ask("GET", "/notes", status=400, expected={"code": "tenant_missing"})
        self._ask("GET", "/notes", "nobody", status=404, expected={"code": "tenant_not_found"})
        self._title("A hostile identifier is refused, and never repaired")
        for identifier in (
            "../acme",
            "acme'--",
            'acme"; DROP TABLE notes; --',
            "ACME",
            "acme.",
            "acme,beta",
            "acme--beta",
            "%61cme",
            "acmé",
            "a" * 65,
        ):
            self._ask("GET", "/notes", identifier, status=400, expected={"code": "tenant_invalid"})
        self._ask("GET", "/notes", "acme", "beta", status=400, expected={"code": "tenant_invalid"})
        self._ask("GET", "/notes", "acme", "acme", status=400, expected={"code": "tenant_invalid"})

    def suspension(self) -> None:
        """A suspended tenant is not served, at once."""
        self._title("A suspended tenant is refused at once, and is as unknown as nobody's")
        self._ask("GET", "/notes", "beta", expected=["Water the plants"])
        self._operate("beta", "suspend", "suspended")
        self._ask("GET", "/notes", "beta", status=404, expected={"code": "tenant_not_found"})
        self._ask("POST", "/notes", "beta", body={"text": "Too late"}, status=404)
        self._ask("GET", "/notes", "acme", expected=["Call the printer"])
        suspended, nobody = (
            self._server.request("GET", "/notes", ("X-Tenant-ID", name)).text
            for name in ("beta", "nobody")
        )
        self._judge("both get the same answer, to the letter", nobody, suspended == nobody)
        self._title("Resumed, it finds everything as it was")
        self._operate("beta", "resume", "active")
        self._ask("GET", "/notes", "beta", expected=["Water the plants"])

    def without_a_tenant(self) -> None:
        """What is excluded needs no tenant; what is for the operator needs the token."""
        self._title("What is for everybody needs no tenant, and what is for the operator a token")
        self._ask("GET", "/health", expected={"status": "ok"})
        self._ask("GET", "/openapi.json")
        self._ask("POST", "/admin/tenants/acme/suspend", "acme", status=401)
        self._ask("GET", "/notes", "acme", expected=["Call the printer"])

    def files(self) -> None:
        """Look into the databases themselves."""
        self._title("Each tenant is a file, with its own notes and nobody else's")
        files = self._server.files()
        for tenant, expected in (("acme", "Call the printer"), ("beta", "Water the plants")):
            found: Any = "there is no such file"
            if tenant in files:
                uri = f"{files[tenant].as_uri()}?mode=ro"
                with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                    found = [text for (text,) in connection.execute("SELECT text FROM notes")]
            name = files[tenant].name if tenant in files else f"the file of {tenant}"
            self._judge(f"{name} holds", json.dumps(found), found == [expected])

    def _title(self, text: str) -> None:
        print(_bold(f"\n{text}"))

    def _operate(self, tenant: str, action: str, status: str) -> None:
        path = f"/admin/tenants/{tenant}/{action}"
        answer = self._server.as_operator(path)
        right = answer.is_success and _holds(answer, {"status": status})
        self._judge(f"POST {path}  (operator)", f"{answer.status_code} {answer.text}", right)

    def _ask(
        self,
        method: str,
        path: str,
        *tenants: str,
        body: object = None,
        status: int = 200,
        expected: list[str] | dict[str, str] | None = None,
    ) -> None:
        asked = f"{method} {path}" + "".join(f"  X-Tenant-ID: {tenant}" for tenant in tenants)
        asked += f"  {json.dumps(body)}" if body is not None else ""
        headers = [("X-Tenant-ID", tenant) for tenant in tenants]
        answer = self._server.request(method, path, *headers, body=body)
        right = answer.status_code == status and _holds(answer, expected)
        wanted = "" if right else f"\n      expected {status} {json.dumps(expected)}"
        self._judge(asked, f"{answer.status_code} {_short(answer.text)}", right, wanted)

    def _judge(self, asked: str, answer: str, right: bool, wanted: str = "") -> None:  # noqa: FBT001 - what it is about
        self._steps += 1
        line = f"{asked}\n      → {answer}{wanted}"
        if not right:
            self._wrong.append(f"  ✗ {line}")
        print(f"  {_coloured('✓', 32) if right else _coloured('✗', 31)} {line}")


def _holds(answer: httpx.Response, expected: list[str] | dict[str, str] | None) -> bool:
    """Whether an answer is the list of these notes, or has these members."""
    if expected is None:
        return True
    try:
        found = answer.json()
    except ValueError:
        return False
    if isinstance(expected, list):
        return isinstance(found, list) and expected == [
            note.get("text") for note in cast("list[dict[str, Any]]", found)
        ]
    return isinstance(found, dict) and all(
        cast("dict[str, Any]", found).get(key) == value for key, value in expected.items()
    )


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:150]} … ({len(text)} characters)"  # noqa: PLR2004 - two lines


def _bold(text: str) -> str:
    return _coloured(text, 1)


def _coloured(text: str, code: int) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURS else text


if __name__ == "__main__":
    sys.exit(main())
