"""``./dev demo``: what it prints works when it is pasted, and its tour notices what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = ROOT / "examples" / "fastapi_notes"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The machine's, with temporary files in the test's folder and settings that are in the way."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {
        **kept,
        "TMPDIR": str(folder),
        "TENANCY_RESOLUTION_STRATEGY": "none-of-the-demos-business",
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
    }


def _run(script: Path, environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _leftovers(environment: dict[str, str]) -> list[str]:
    return [path.name for path in Path(environment["TMPDIR"]).iterdir()]


# -- the tour --------------------------------------------------------------------------------------


def test_the_tour_finds_everything_as_it_should_be(environment: dict[str, str]) -> None:
    status, out, err = _run(EXAMPLE / "demo.py", environment, "--tour")
    assert (status, err) == (0, ""), out
    assert "All 33 answers were as they should be." in out
    assert out.count("✓") == 33
    assert "✗" not in out
    assert "\x1b" not in out  # no colours in a pipe
    assert _leftovers(environment) == []


def _sabotage(folder: Path, *replacements: tuple[str, str], added: str = "") -> Path:
    """Copy the example with a few lines replaced; returns the copy's demo."""
    app = (EXAMPLE / "app.py").read_text()
    for old, new in replacements:
        assert app.count(old) == 1, old
        app = app.replace(old, new)
    (folder / "app.py").write_text(app + added)
    return shutil.copy(EXAMPLE / "demo.py", folder / "demo.py")


REPAIRS_IDENTIFIERS = """

class Repair:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope["headers"] = [
                (name, value.lower() if name == b"x-tenant-id" else value)
                for name, value in scope["headers"]
            ]
        await self.app(scope, receive, send)


app.add_middleware(Repair)
"""


def test_the_tour_notices_a_foreign_note_a_tenant_that_is_served_and_a_name_that_is_repaired(
    environment: dict[str, str], tmp_path: Path
) -> None:
    demo = _sabotage(
        tmp_path,
        (
            "return [NoteOut.model_validate(note) for note in notes]",
            "return [NoteOut(id=0, text='of another'), *map(NoteOut.model_validate, notes)]",
        ),
        (
            'tenancy.tenants.suspend(identifier, actor="operator")',
            "tenancy.tenants.get(identifier)",
        ),
        added=REPAIRS_IDENTIFIERS,
    )
    status, out, err = _run(demo, environment, "--tour")
    assert (status, err) == (1, ""), out
    summary = out.partition(" of 33 answers were not as they should be:")[2]
    wrong = [line.strip() for line in summary.splitlines()]
    assert "✗ GET /notes  X-Tenant-ID: acme" in wrong
    assert "✗ GET /notes  X-Tenant-ID: beta" in wrong
    assert "✗ GET /notes  X-Tenant-ID: ACME" in wrong
    assert "✗ POST /admin/tenants/beta/suspend  (operator)" in wrong
    assert '→ 200 [{"id":0,"text":"of another"},{"id":1,"text":"Call the printer"}]' in wrong
    assert 'expected 200 ["Call the printer"]' in wrong
    assert 'expected 400 {"code": "tenant_invalid"}' in wrong
    # What is right is not in the summary.
    assert not any("/health" in line or "../acme" in line for line in wrong)
    assert _leftovers(environment) == []


def test_a_server_that_dies_on_the_way_is_told_with_its_last_lines(
    environment: dict[str, str], tmp_path: Path
) -> None:
    demo = _sabotage(
        tmp_path,
        (
            '"""Stop serving a tenant."""',
            "import sys; print('out of cheese', file=sys.stderr, flush=True); os._exit(7)",
        ),
    )
    status, out, err = _run(demo, environment, "--tour")
    assert status == 1
    assert err.startswith("demo: POST /admin/tenants/beta/suspend got no answer (")
    assert "  | out of cheese" in err
    assert "answers were as they should be" not in out
    assert _leftovers(environment) == []


def test_an_application_that_does_not_start_is_told_with_its_last_lines(
    environment: dict[str, str], tmp_path: Path
) -> None:
    demo = _sabotage(tmp_path, added="\nraise LookupError('no cheese at all')\n")
    status, out, err = _run(demo, environment)
    assert (status, out) == (1, "")
    assert err.startswith("demo: uvicorn ended with status 1. Its log ends:")
    assert "  | LookupError: no cheese at all" in err
    assert _leftovers(environment) == []


def test_a_port_that_is_taken_is_told_in_a_sentence(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = _run(EXAMPLE / "demo.py", environment, "--port", str(port))
    assert (status, out) == (1, "")
    assert err.startswith(f"demo: port {port} cannot be used (")
    assert "--port" in err
    assert _leftovers(environment) == []


# -- what it says to try ---------------------------------------------------------------------------


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A script in the background of a shell ignores Ctrl-C, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def curl_environment(environment: dict[str, str]) -> dict[str, str]:
    """For pasted lines: as in the demo's shell, without a proxy."""
    if shutil.which("curl") is None:
        pytest.fail("curl is not installed, and the lines that the demo prints are to be tried.")
    return {key: value for key, value in environment.items() if not key.endswith("_proxy")}


def _until_ready(demo: subprocess.Popen[str]) -> Iterator[str]:
    assert demo.stdout is not None
    for line in demo.stdout:
        yield line.rstrip("\n")
        if line.startswith("Ctrl-C"):
            return
    pytest.fail(f"the demo ended: {demo.stderr and demo.stderr.read()}")


@pytest.mark.usefixtures("ctrl_c")
def test_each_line_that_it_prints_works_when_it_is_pasted(
    environment: dict[str, str], curl_environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        [sys.executable, EXAMPLE / "demo.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            lines = list(_until_ready(demo))
            commands = [line.strip() for line in lines if line.startswith("  ")]
            answers = [
                subprocess.run(
                    ["sh", "-c", command],  # noqa: S607 - as a reader's own
                    env=curl_environment,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.strip()
                for command in commands
            ]
            demo.send_signal(signal.SIGINT)
            out, err = demo.communicate()
        finally:
            demo.kill()
    assert (demo.returncode, err) == (0, "")
    assert out.strip() == "Stopped."
    assert _leftovers(environment) == []
    note = '{"id":1,"text":"Call the printer"}'
    *curled, listed = answers
    assert [command.split()[0] for command in commands] == ["curl"] * len(curled) + ["ls"]
    assert [answer.rpartition(" ")[::2] for answer in curled[:3]] == [
        (note, "201"),
        (f"[{note}]", "200"),
        ("[]", "200"),
    ]
    codes = [(answer.partition('"code":"')[2].partition('"')[0], answer[-3:]) for answer in curled]
    assert codes[3:6] == [
        ("tenant_missing", "400"),
        ("tenant_not_found", "404"),
        ("tenant_invalid", "400"),
    ]
    assert curled[6].endswith('"status":"suspended"} 200')
    assert codes[7] == ("tenant_not_found", "404")
    assert curled[8].endswith('"status":"active"} 200')
    assert curled[9] == f"[{note}] 200"
    assert curled[10].startswith('{"identifier":"gamma"')
    assert curled[10].endswith(" 201")
    assert curled[11] == "[] 200"
    files = [line.split()[-1] for line in listed.splitlines() if line.endswith(".db")]
    assert [name.split("_")[1] for name in files] == ["acme", "beta", "gamma"]


def test_it_stops_on_sigterm_and_keeps_what_it_is_asked_to_keep(
    environment: dict[str, str],
) -> None:
    with subprocess.Popen(
        [sys.executable, EXAMPLE / "demo.py", "--keep"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            port = int(next(_until_ready(demo)).partition("http://127.0.0.1:")[2].split()[0])
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                demo.terminate()
            out, err = demo.communicate()
        finally:
            demo.kill()
    assert (demo.returncode, err) == (0, "")
    (folder,) = _leftovers(environment)
    assert f"are kept in {environment['TMPDIR']}/{folder}." in out
    assert len(list(Path(environment["TMPDIR"], folder, "tenants").glob("*.db"))) == 2
    # Nobody is left who listens.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=30)
