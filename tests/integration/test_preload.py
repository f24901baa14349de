"""gunicorn loads the example once and forks: each worker serves on connections of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import httpx
import pytest

from support.server import ROOT, STARTED_WITHIN
from support.services.databases import finished

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.services.databases import PostgresDatabase

FOLDERS = f"{ROOT / 'examples' / 'fastapi_notes'},{ROOT / 'tests' / 'integration' / 'apps'}"
ALIVE = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1::integer[])"

Seen = dict[int, dict[str, set[int]]]
"""Worker → tenant → backends."""


@contextlib.contextmanager
def gunicorn(folder: Path, environment: dict[str, str], worker: str) -> Iterator[str]:
    """Run two workers of a preloaded application until the block is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()[:2]
    log = folder / "gunicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "preloaded:app", "--preload", "-w", "2"),
                *("-k", worker, "--bind", f"fd://{listener.fileno()}", "--pythonpath", FOLDERS),
                *("--no-control-socket", "--graceful-timeout", "20"),
            ],
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    listener.close()
    url = f"http://{host}:{port}"
    try:
        deadline = time.monotonic() + STARTED_WITHIN
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"gunicorn did not start:\n{log.read_text()}")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    text = log.read_text()
    assert process.returncode == 0, text
    assert "Traceback" not in text, text


def ask(url: str, seen: Seen, *, workers: int, leaving: bool = False) -> int:
    """Ask until so many workers have served both tenants; return who forked them.

    Args:
        url: Of the service.
        seen: Which worker served which tenant by which backends; added to.
        workers: How many are to be seen in all.
        leaving: One of them was told to go: it closes what it has accepted and not begun.
    """
    deadline = time.monotonic() + STARTED_WITHIN
    parent = 0
    while time.monotonic() < deadline:
        for tenant in ("acme", "beta"):
            # A connection of its own for each, so that any worker may take it.
            try:
                answer = httpx.get(
                    f"{url}/backend", headers={"X-Tenant-ID": tenant}, timeout=30, trust_env=False
                )
            except (httpx.RemoteProtocolError, httpx.ReadError):
                if leaving:
                    continue
                raise
            assert answer.status_code == 200, answer.text
            worker, parent, backend = answer.json()
            seen[worker][tenant].add(backend)
        if sum(len(tenants) == 2 for tenants in seen.values()) >= workers:
            return parent
    raise AssertionError(seen)


def backends(tenants: dict[str, set[int]]) -> set[int]:
    return set().union(*tenants.values())


@pytest.mark.parametrize("opened", [False, True], ids=["built", "opened"])
@pytest.mark.parametrize("worker", ["uvicorn_worker.UvicornWorker", "asgi"])
def test_each_worker_of_a_preloaded_application_has_its_own_backends(
    worker: str, opened: bool, postgres_database: PostgresDatabase, tmp_path: Path
) -> None:
    environment = {
        "TENANCY_DATABASE_URL": postgres_database.app_url,
        "TENANCY_CONTROL_DATABASE_URL": postgres_database.control_url,
        "NOTES_ADMIN_TOKEN": "secret",
    }
    note = tmp_path / "backend"
    if opened:
        environment["OPENED"] = str(note)
    with gunicorn(tmp_path, environment, worker) as url:
        for tenant in ("acme", "beta"):
            made = httpx.post(
                f"{url}/admin/tenants",
                json={"identifier": tenant},
                headers={"Authorization": "Bearer secret"},
                timeout=30,
                trust_env=False,
            )
            assert made.status_code == 201, made.text
        seen: Seen = defaultdict(lambda: defaultdict(set))
        ask(url, seen, workers=2)
        one, other = seen
        assert not backends(seen[one]) & backends(seen[other])

        os.kill(one, signal.SIGTERM)
        parent = ask(url, seen, workers=3, leaving=True)
        (third,) = set(seen) - {one, other}
        assert parent not in seen
        assert not backends(seen[third]) & (backends(seen[one]) | backends(seen[other]))
        if opened:
            # Three children came out of it, and one is gone.
            first = int(note.read_text())
            assert all(first not in backends(tenants) for tenants in seen.values())
            assert finished(postgres_database.fetchval(ALIVE, [first])) == 1
