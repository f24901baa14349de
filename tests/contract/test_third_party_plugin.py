"""A third party's plugin, installed beside an application that does not know it.

The application is ``examples/fastapi_notes/app.py`` as it stands, under a real uvicorn; all that
changes is what is installed, and the environment. The nox session ``contract`` runs this file too,
with nothing but wheels installed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
import time
from contextlib import closing
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

import httpx
import pytest

from support.plugins import install_example
from support.server import ROOT, serve
from support.waiting import WITHIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Server

pytestmark = pytest.mark.xdist_group("third_party_plugin")

APP = ROOT / "examples" / "fastapi_notes" / "app.py"
PEPPER = "a-pepper-that-only-this-test-has-5d20"
KEYS = {"acme": "k1.of-acme-7f3a", "beta": "k2.of-beta-91c2", "nobody": "k3.of-nobody-1b"}
OPERATOR = {"Authorization": "Bearer operator"}


def digests() -> str:
    """Return what the settings say of the keys."""
    return json.dumps({
        key.split(".")[0]: {
            "tenant": tenant,
            "digest": hmac.new(PEPPER.encode(), key.encode(), hashlib.sha256).hexdigest(),
        }
        for tenant, key in KEYS.items()
    })  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a process finds the plugin; none where it is installed already."""
    try:
        distribution("acme-tenancy")
    except PackageNotFoundError:
        return {"PYTHONPATH": str(install_example(tmp_path_factory.mktemp("site")))}
    return {}


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, installed: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Settings that select the resolver and the cache of the plugin."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "pepper").write_text(PEPPER)
    with pytest.MonkeyPatch.context() as patch:
        # A fixture of a module comes before the one that does this for every test.
        for name in [*os.environ]:
            if name.startswith("TENANCY_") or name == "LOG_LEVEL":
                patch.delenv(name)
        yield {
            **installed,
            "NOTES_ADMIN_TOKEN": "operator",
            "TENANCY_STRICT_ENV": "true",
            "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/control.db",
            "TENANCY_RESOLUTION_STRATEGY": "api-key",
            "TENANCY_REQUIRE_VERIFIED_TENANT": "true",
            "TENANCY_ACME_APIKEY_PEPPER_FILE": str(folder / "pepper"),
            "TENANCY_ACME_APIKEY_KEYS": digests(),
            "TENANCY_ACME_APIKEY_HEADER": "X-Notes-Key",
            "TENANCY_CACHE_ENABLED": "true",
            "TENANCY_CACHE_BACKEND": "acme-file",
            "TENANCY_ACME_CACHE_PATH": str(folder / "run" / "cache.db"),
            "TENANCY_INVALIDATION_POLL_SECONDS": "1",
        }


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[tuple[Server, Server]]:
    """Two processes of one service, as two workers are, and two tenants."""
    folders = [tmp_path_factory.mktemp(f"process-{number}") for number in (1, 2)]
    with (
        serve("app:app", folders[0], environment=environment) as first,
        serve("app:app", folders[1], environment=environment) as second,
    ):
        with client(first) as http:
            create_tenants(http)
        yield first, second


@pytest.fixture
def server(processes: tuple[Server, Server]) -> Server:
    """One of the two."""
    return processes[0]


def create_tenants(http: httpx.Client) -> None:
    for tenant in ("acme", "beta"):
        made = http.post("/admin/tenants", json={"identifier": tenant}, headers=OPERATOR)
        assert made.status_code == 201


def client(server: Server, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30)


def key(tenant: str) -> dict[str, str]:
    return {"X-Notes-Key": KEYS[tenant]}


def test_what_a_third_party_offers_is_selected_by_name_with_no_code_in_the_application(
    server: Server,
) -> None:
    code = APP.read_text().lower()
    assert not [
        word for word in ("acme_tenancy", "acme-tenancy", "api-key", "apikey") if word in code
    ]
    with client(server) as http:
        assert http.get("/me", headers=key("acme")).json()["identifier"] == "acme"
        assert http.get("/me", headers=key("beta")).json()["identifier"] == "beta"
        added = http.post("/notes", headers=key("acme"), json={"text": "of acme"})
        assert added.status_code == 201
        assert [note["text"] for note in http.get("/notes", headers=key("acme")).json()] == [
            "of acme"
        ]
        assert http.get("/notes", headers=key("beta")).json() == []


def test_what_its_resolver_refuses_is_refused_in_the_same_format(server: Server) -> None:
    with client(server) as http:
        for headers, status, code in (
            ({}, 401, "token_invalid"),
            ({"X-Notes-Key": "guessed"}, 401, "token_invalid"),
            ({"X-Notes-Key": KEYS["acme"][:-1]}, 401, "token_invalid"),
            (key("nobody"), 404, "tenant_not_found"),
            # The built-in resolver is not asked: it was not chosen.
            ({"X-Tenant-ID": "acme"}, 401, "token_invalid"),
        ):
            answer = http.get("/notes", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.headers["content-type"] == "application/problem+json"


def test_R3_its_header_that_is_there_twice_is_refused(server: Server) -> None:
    for second in ("acme", "beta"):
        request = (
            f"GET /me HTTP/1.1\r\nHost: {server.host}\r\nConnection: close\r\n"
            f"X-Notes-Key: {KEYS['acme']}\r\nX-Notes-Key: {KEYS[second]}\r\n\r\n"
        )
        assert server.raw(request.encode())[0] == 400


def test_its_source_is_in_the_openapi_document(server: Server) -> None:
    with client(server) as http:
        document = http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["apiKey"] == {
        "type": "apiKey",
        "in": "header",
        "name": "X-Notes-Key",
    }
    assert {"apiKey": []} in document["paths"]["/notes"]["get"]["security"]
    assert "security" not in document["paths"]["/health"]["get"]


def test_S1_its_secrets_are_in_no_answer_and_no_log(server: Server) -> None:
    with client(server) as http:
        answers = [
            http.get(path, headers=headers)
            for path in ("/me", "/notes", "/openapi.json", "/nowhere")
            for headers in ({}, key("acme"), key("nobody"), {"X-Notes-Key": "k1.guessed"})
        ]
    seen = "".join(f"{answer.headers!r}{answer.text}" for answer in answers)
    seen += server.log.read_text()
    assert not [secret for secret in (PEPPER, *KEYS.values()) if secret in seen]


def test_it_stands_in_a_chain_with_the_resolvers_of_the_core(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    variables = {
        **environment,
        "TENANCY_RESOLUTION_STRATEGY": "api-key,header",
        "TENANCY_REQUIRE_VERIFIED_TENANT": "false",
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/data/control.db",
        "TENANCY_ACME_CACHE_PATH": str(tmp_path / "cache.db"),
    }
    with serve("app:app", tmp_path, environment=variables) as running, client(running) as http:
        create_tenants(http)
        acme = key("acme")
        assert http.get("/me", headers=acme).json()["identifier"] == "acme"
        assert http.get("/me", headers={"X-Tenant-ID": "beta"}).json()["identifier"] == "beta"
        assert http.get("/me", headers={**acme, "X-Tenant-ID": "beta"}).status_code == 403


def cached(environment: dict[str, str]) -> tuple[int, set[tuple[int, str]]]:
    """Return the generation of the plugin's cache, and of whom it has a record in which one."""
    with closing(sqlite3.connect(environment["TENANCY_ACME_CACHE_PATH"])) as connection:
        [(generation,)] = connection.execute("SELECT generation FROM generations").fetchall()
        keys = connection.execute("SELECT key FROM entries").fetchall()
    parts = [found.decode().split(":") for (found,) in keys]
    return generation, {(int(part[-2]), part[-1]) for part in parts}


def test_K1_a_tenant_suspended_in_one_process_is_refused_by_the_other(
    processes: tuple[Server, Server], environment: dict[str, str]
) -> None:
    beta = key("beta")
    with client(processes[0]) as first, client(processes[1]) as second:
        for http in (first, second):
            assert http.get("/me", headers=beta).status_code == 200
        assert "beta" in {identifier for _, identifier in cached(environment)[1]}

        assert first.post("/admin/tenants/beta/suspend", headers=OPERATOR).status_code == 200
        generation, records = cached(environment)
        assert (generation, "beta") not in records
        assert first.get("/me", headers=beta).status_code == 403
        until_status(second, beta, 403)

        assert second.post("/admin/tenants/beta/resume", headers=OPERATOR).status_code == 200
        assert second.get("/me", headers=beta).status_code == 200
        until_status(first, beta, 200)


def until_status(http: httpx.Client, headers: dict[str, str], status: int) -> None:
    deadline = time.monotonic() + WITHIN
    while http.get("/me", headers=headers).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)
