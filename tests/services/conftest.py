"""Every kind of server, and programs that run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.services.fixtures import wanted
from support.services.mysql import MySQL
from support.services.pgbouncer import PgBouncer
from support.services.postgres import Postgres
from support.services.redis import Redis
from support.services.settings import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.services.server import Server

TESTS = Path(__file__).parents[1]


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment for a Python that imports ``support``."""
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture
def python(environment: dict[str, str]) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a program in a process of its own, which is dead when the test is over."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


KINDS = (*SERVICES, "pgbouncer_that_prepares")
"""The last one may be run by a loader of its own, and so be another program for the system."""


def make(kind: str, request: pytest.FixtureRequest) -> Server:
    """Make a server of our own, whatever the machine has."""
    service = kind.partition("_")[0]
    wanted(service)
    if service == "pgbouncer":
        prepared = 10 if kind != service else 0
        postgres = request.getfixturevalue("postgres_server")
        return PgBouncer(postgres, max_prepared_statements=prepared)
    kinds: dict[str, type[Postgres | MySQL | Redis]] = {
        "postgres": Postgres,
        "mysql": MySQL,
        "redis": Redis,
    }
    return kinds[service]()


@pytest.fixture(params=KINDS)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind that is not started yet, and gone at the end."""
    server = make(request.param, request)
    yield server
    server.close()


@pytest.fixture(params=KINDS, scope="module")
def running_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind that runs, to be looked at only."""
    with make(request.param, request) as server:
        yield server
