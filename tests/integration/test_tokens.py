"""Tokens, from end to end: the example under a real uvicorn, with settings only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import jwt
import pytest

from support.server import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Server

SECRET = "a-secret-that-is-as-long-as-a-secret-has-to-be"
OPERATOR = {"Authorization": "Bearer operator"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "secret").write_text(SECRET)
    environment = {
        "NOTES_ADMIN_TOKEN": "operator",
        "TENANCY_STRICT_ENV": "true",
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/data/control.db",
        "TENANCY_RESOLUTION_STRATEGY": "jwt,header",
        "TENANCY_REQUIRE_VERIFIED_TENANT": "true",
        "TENANCY_JWT_SECRET_FILE": str(tmp_path / "secret"),
        "TENANCY_JWT_ISSUER": "https://id.example",
        "TENANCY_JWT_AUDIENCE": "notes",
        "TENANCY_JWT_MAX_LIFETIME": "900",
    }
    with serve("app:app", tmp_path, environment=environment) as running:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=30) as http:
            for name in ("acme", "beta"):
                made = http.post("/admin/tenants", json={"identifier": name}, headers=OPERATOR)
                assert made.status_code == 201
        yield running


def bearer(tenant: str, **changes: object) -> dict[str, str]:
    now = int(time.time())
    claims = {
        "iss": "https://id.example",
        "aud": "notes",
        "iat": now,
        "exp": now + 600,
        "tenant_id": tenant,
        **changes,
    }
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET)}"}


def test_J20_R19_a_token_opens_its_own_tenant_and_no_other(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as http:
        assert http.post("/notes", headers=bearer("acme"), json={"text": "a"}).status_code == 201
        assert [note["text"] for note in http.get("/notes", headers=bearer("acme")).json()] == ["a"]
        assert http.get("/notes", headers=bearer("beta")).json() == []

        for headers, status, code, challenge in (
            ({}, 401, "token_invalid", "Bearer"),
            ({"X-Tenant-ID": "acme"}, 401, "token_invalid", "Bearer"),
            (bearer("acme", exp=1), 401, "token_invalid", 'Bearer error="invalid_token"'),
            (bearer("acme", aud="other"), 401, "token_invalid", 'Bearer error="invalid_token"'),
            ({**bearer("acme"), "X-Tenant-ID": "beta"}, 403, "tenant_mismatch", None),
            (bearer("nobody"), 404, "tenant_not_found", None),
        ):
            answer = http.get("/notes", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.headers.get("www-authenticate") == challenge
        assert http.get("/notes", headers={**bearer("acme"), "X-Tenant-ID": "acme"}).is_success

        suspended = http.post("/admin/tenants/acme/suspend", headers=OPERATOR)
        assert suspended.is_success
        answer = http.get("/notes", headers=bearer("acme"))
        assert (answer.status_code, answer.json()["code"]) == (403, "tenant_suspended")
        assert SECRET not in server.log.read_text()
