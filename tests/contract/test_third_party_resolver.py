"""A stranger's plugin, installed beside an application that does not know it.

The application is ``examples/fastapi_notes/app.py`` as it stands, under a real uvicorn; all that
changes is what is installed, and the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from support.plugins import install
from support.server import ROOT, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Server

pytestmark = pytest.mark.xdist_group("acme-tenancy")

APP = ROOT / "examples" / "fastapi_notes" / "app.py"
KEYS = {"key-of-acme-7f3a": "acme", "key-of-beta-91c2": "beta", "key-of-nobody-1b": "nobody"}
OPERATOR = {"Authorization": "Bearer operator"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed from its own pyproject.toml."""
    return install("acme-tenancy", tmp_path_factory.mktemp("site"))


def environment(folder: Path, site: Path | None, **settings: str) -> dict[str, str]:
    return {
        "NOTES_ADMIN_TOKEN": "operator",
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/control.db",
        "TENANCY_RESOLUTION_STRATEGY": "api-key",
        "TENANCY_STRICT_ENV": "true",
        **({} if site is None else {"PYTHONPATH": str(site)}),
        **settings,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Server]:
    """The example with the plugin, its keys in a secret file, and two tenants."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys.json").write_text(json.dumps(KEYS))
    variables = environment(
        folder,
        site,
        TENANCY_APIKEY_KEYS_FILE=str(folder / "keys.json"),
        TENANCY_APIKEY_HEADER="X-Notes-Key",
        TENANCY_REQUIRE_VERIFIED_TENANT="true",
    )
    with pytest.MonkeyPatch.context() as patch:
        # A fixture of a module comes before the one that does this for every test.
        for name in [*os.environ]:
            if name.startswith("TENANCY_") or name == "LOG_LEVEL":
                patch.delenv(name)
        with serve("app:app", folder, environment=variables) as running:
            with client(running) as http:
                create_tenants(http)
            yield running


def create_tenants(http: httpx.Client) -> None:
    for tenant in ("acme", "beta"):
        made = http.post("/admin/tenants", json={"identifier": tenant}, headers=OPERATOR)
        assert made.status_code == 201


def client(server: Server, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30)


def key(tenant: str) -> dict[str, str]:
    return {"X-Notes-Key": next(key for key, owner in KEYS.items() if owner == tenant)}


def test_a_resolver_of_a_third_party_is_selected_by_its_name_with_no_code_in_the_application(
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
            (key("nobody"), 404, "tenant_not_found"),
            # The built-in resolver is not asked: it was not chosen.
            ({"X-Tenant-ID": "acme"}, 401, "token_invalid"),
        ):
            answer = http.get("/notes", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.headers["content-type"] == "application/problem+json"


def test_its_source_is_in_the_openapi_document(server: Server) -> None:
    with client(server) as http:
        document = http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["ApiKey"] == {
        "type": "apiKey",
        "in": "header",
        "name": "X-Notes-Key",
    }
    assert {"ApiKey": []} in document["paths"]["/notes"]["get"]["security"]
    assert "security" not in document["paths"]["/health"]["get"]


def test_S1_its_secrets_are_in_no_answer_and_no_log(server: Server) -> None:
    with client(server) as http:
        answers = [
            http.get(path, headers=headers)
            for path in ("/me", "/notes", "/openapi.json", "/nowhere")
            for headers in ({}, key("acme"), key("nobody"), {"X-Notes-Key": "guessed"})
        ]
    seen = "".join(f"{answer.headers!r}{answer.text}" for answer in answers)
    seen += server.log.read_text()
    assert not [secret for secret in KEYS if secret in seen]


def start(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Import the application as a server would; return what it printed."""
    return subprocess.run(
        [sys.executable, "-c", "import app; print(app.tenancy)"],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(
            [str(APP.parent), variables.get("PYTHONPATH", "")]
        )},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_where_it_is_not_installed_its_name_is_told_to_be_unknown(tmp_path: Path) -> None:
    done = start(tmp_path, environment(tmp_path, None))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "tenancy_core.errors.UnknownProviderError: TENANCY_RESOLUTION_STRATEGY asks for the "
        "resolver 'api-key', which nothing that is installed offers. There is 'header', 'path', "
        "'subdomain'."
    )


def test_where_it_is_blocked_it_is_as_if_it_were_not_installed(tmp_path: Path, site: Path) -> None:
    variables = environment(tmp_path, site, TENANCY_PLUGINS_BLOCKED="acme_tenancy")
    done = start(tmp_path, variables)
    assert "asks for the resolver 'api-key', which nothing" in done.stderr.splitlines()[-1]
    allowed = start(tmp_path, environment(tmp_path, site))
    assert (allowed.returncode, allowed.stdout) == (0, "<Tenancy database on sqlite, closed>\n")


def test_its_misspelt_variable_is_found_by_its_own_section(tmp_path: Path, site: Path) -> None:
    done = start(tmp_path, environment(tmp_path, site, TENANCY_APIKEY_HEADR="X-Notes-Key"))
    assert done.stderr.splitlines()[-1] == (
        "tenancy_core.errors.ConfigurationError: TENANCY_APIKEY_HEADR is set and read by nothing. "
        "Did you mean TENANCY_APIKEY_HEADER?"
    )


def test_it_stands_in_a_chain_with_the_resolvers_of_the_core(tmp_path: Path, site: Path) -> None:
    variables = environment(
        tmp_path,
        site,
        TENANCY_RESOLUTION_STRATEGY="api-key,header",
        TENANCY_APIKEY_KEYS=json.dumps(KEYS),
    )
    with serve("app:app", tmp_path, environment=variables) as running, client(running) as http:
        create_tenants(http)
        acme = {"X-API-Key": key("acme")["X-Notes-Key"]}
        assert http.get("/me", headers=acme).json()["identifier"] == "acme"
        assert http.get("/me", headers={"X-Tenant-ID": "beta"}).json()["identifier"] == "beta"
        assert http.get("/me", headers={**acme, "X-Tenant-ID": "beta"}).status_code == 403
