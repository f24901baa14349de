"""Requests to a FastAPI application in this process, without a server and without its lifespan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from tenancy_core import Tenancy

ACME: Final = {"X-Tenant-ID": "acme"}
BETA: Final = {"X-Tenant-ID": "beta"}


def requests_to(app: FastAPI, *, root_path: str = "") -> httpx.AsyncClient:
    """Return a client in the event loop of the test; an exception is a 500, as with a server."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def create_tenants(client: TestClient, tenancy: Tenancy, *identifiers: str) -> None:
    """Create tenants in the event loop of a test client that has been entered."""
    assert client.portal is not None
    for identifier in identifiers:
        client.portal.call(tenancy.tenants.create, identifier)
