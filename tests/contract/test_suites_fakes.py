"""What applications and plugin authors test with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tenancy_core import NoCurrentTenant, TenantStatus, current_tenant, require_tenant
from tenancy_core.contract import AuditEvent
from tenancy_core.testing import (
    FakeClock,
    RecordingAuditSink,
    RecordingObserver,
    current_as,
    make_connection,
    make_tenant,
)

if TYPE_CHECKING:
    from tenancy_core import Tenancy
    from tenancy_core.contract import AuditSink, Observer

pytest_plugins = ["pytester"]


def test_a_clock_goes_forward_when_it_is_told_to() -> None:
    clock = FakeClock(5)
    clock.advance(0.5)
    assert clock() == 5.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_a_connection_is_as_a_server_makes_it() -> None:
    made = make_connection(
        "/tenants/%C3%BC?a=b",
        headers=[("X-Tenant-ID", "acme"), ("x-tenant-id", b"\xff"), ("X-Name", "ü\udcff")],
        host="acme.example.com",
        client=None,
        method="POST",
    )
    assert made.kind == "http"
    assert made.raw_path == b"/tenants/%C3%BC"
    assert made.scope["path"] == "/tenants/ü"
    assert made.scope["query_string"] == b"a=b"
    assert made.scope["method"] == "POST"
    assert made.headers(b"x-tenant-id") == [b"acme", b"\xff"]
    assert made.headers(b"x-name") == [b"\xc3\xbc\xff"]
    assert made.header(b"host") == "acme.example.com"
    assert made.client_address is None


def test_a_connection_may_be_a_socket_without_a_host() -> None:
    made = make_connection(headers={"A": "b"}, host=None, kind="websocket", root_path="/app")
    assert made.kind == "websocket"
    assert made.header(b"host") is None
    assert made.client_address == "127.0.0.1"
    assert "method" not in made.scope


def test_tenants_are_active_and_have_places_of_their_own() -> None:
    first, second = make_tenant(), make_tenant("beta", plan="pro", status=TenantStatus.SUSPENDED)
    assert (first.identifier, first.active, first.isolation) == ("acme", True, "database")
    assert (second.plan, second.active) == ("pro", False)
    assert first.placement != second.placement
    assert first.placement.name.startswith("tenant_acme_")
    assert make_tenant(id=first.id).placement == first.placement


def test_a_tenant_can_be_current_without_a_tenancy() -> None:
    acme = make_tenant()
    with current_as(acme) as tenant:
        assert require_tenant() is tenant is acme
    assert current_tenant() is None
    with pytest.raises(NoCurrentTenant):
        require_tenant()


@pytest.mark.anyio
async def test_a_tenancy_refuses_a_tenant_that_it_did_not_make_current(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme") as acme:
        pass
    with current_as(acme), pytest.raises(NoCurrentTenant, match="another Tenancy"):
        tenancy.session()


@pytest.mark.anyio
async def test_what_happens_can_be_recorded(tenancy: Tenancy) -> None:
    # Typed as the contract, so that the type checker compares them.
    recording, sink = RecordingObserver(), RecordingAuditSink()
    observer: Observer = recording
    audit: AuditSink = sink
    acme = make_tenant()
    observer.refused("tenant_not_found", 404, None)
    observer.changed(acme, "created")
    event = AuditEvent("tenant.created", acme.id, acme.created_at)
    await audit.write(event)
    assert recording.refusals == [("tenant_not_found", 404, None)]
    assert recording.changes == [(acme, "created")]
    assert sink.events == [event]


CONFTEST = """
import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

pytest_plugins = ["tenancy_core.testing.fixtures"]

class Base(DeclarativeBase): ...

class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]

@pytest.fixture
def tenancy_metadata():
    return Base.metadata

@pytest.fixture
def tenancy_settings():
    return {"enable_rate_limiting": True}

@pytest.fixture
def tenancy_identifiers():
    return ["one", "two"]
"""
TESTS = """
import pytest
from conftest import Note
from sqlalchemy import select

pytestmark = pytest.mark.anyio

async def test_it(tenancy, fake_clock, tmp_path):
    assert tenancy.config.enable_rate_limiting
    fake_clock.advance(1)
    async with tenancy.scope("one"), tenancy.session() as session:
        session.add(Note(text="one's"))
    async with tenancy.scope("two"), tenancy.session() as session:
        assert (await session.scalars(select(Note.text))).all() == []
    assert (tmp_path / "tenancy" / "control.db").exists()
"""


def test_an_application_is_tested_with_the_fixtures(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", "nonsense")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    pytester.syspathinsert()
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q").assert_outcomes(passed=1)
