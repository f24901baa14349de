"""When the session of a path operation commits, rolls back and closes."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy import Engine, ForeignKey, event, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from support.fastapi_client import ACME, requests_to
from support.notes import Note, read
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig, require_tenant
from tenancy_fastapi import (
    CurrentTenant,
    ReadOnlySession,
    TenantSession,
    get_read_only_session,
    get_tenant_session,
    install,
)

pytestmark = pytest.mark.anyio


async def _notes(tenancy: Tenancy) -> list[str]:
    async with tenancy.scope("acme"):
        return await read(tenancy)


class Recorder:
    """An ASGI middleware around the whole application that notes what is sent, and when."""

    def __init__(self, app: Any, events: list[str]) -> None:
        self._app = app
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            kind = message["type"].removeprefix("http.response.")
            self._events.append(f"{kind} {message.get('status', '')}".strip())
            await send(message)

        await self._app(scope, receive, noted)


@pytest.fixture
def events() -> Iterator[list[str]]:
    """Commits and rollbacks of whatever engine, in order; tests add to them."""
    events: list[str] = []

    def commit(connection: object) -> None:
        events.append("commit")

    def rollback(connection: object) -> None:
        events.append("rollback")

    event.listen(Engine, "commit", commit)
    event.listen(Engine, "rollback", rollback)
    yield events
    event.remove(Engine, "commit", commit)
    event.remove(Engine, "rollback", rollback)


# -- the commit, and the answer --------------------------------------------------------------------


async def test_the_commit_is_done_before_the_answer_starts(
    app: FastAPI, tenancy: Tenancy, events: list[str]
) -> None:
    async with requests_to(Recorder(app, events)) as client:
        assert (await client.get("/notes", headers=ACME)).status_code == 200  # it is known now
        events.clear()
        assert (await client.post("/notes/kept", headers=ACME)).status_code == 201
    assert events == ["commit", "start 201", "body"]


class OwnBase(DeclarativeBase):
    """Tables whose foreign key is checked by the COMMIT."""


class Author(OwnBase):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)


class Book(OwnBase):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    author: Mapped[int] = mapped_column(
        ForeignKey("authors.id", deferrable=True, initially="DEFERRED")
    )


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_commit_that_fails_is_a_500_and_never_a_200(
    make_config: Callable[..., TenancyConfig], events: list[str], kind: str
) -> None:
    app = FastAPI()
    reached: list[int] = []

    if kind == "async":

        @app.post("/books/{author}")
        async def add(author: int, session: TenantSession) -> str:
            session.add(Book(author=author))
            await session.flush()
            reached.append(author)
            return "done"

    else:

        @app.post("/books/{author}")
        def add_in_a_thread(author: int, session: TenantSession) -> str:
            session.add(Book(author=author))
            reached.append(author)
            return "done"

    async with Tenancy(make_config(), metadata=OwnBase.metadata) as tenancy:
        install(app, tenancy)
        await tenancy.tenants.create("acme")
        async with requests_to(Recorder(app, events)) as client:
            failed = await client.post("/books/7", headers=ACME)
            assert failed.status_code == 500
            assert "done" not in failed.text
            assert reached == [7]
            assert "start 200" not in events
            # Nothing of it is left, neither in the file nor on the connection.
            async with tenancy.scope("acme"):
                async with tenancy.session(read_only=True) as session:
                    assert list(await session.scalars(select(Book))) == []
                async with tenancy.session() as session:
                    session.add(Author(id=7))
            assert (await client.post("/books/7", headers=ACME)).json() == "done"


async def test_what_a_handler_returns_is_serialised_inside_the_transaction(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    @app.post("/wrong", response_model=int)
    async def wrong(session: TenantSession) -> Any:
        session.add(Note(text="never"))
        return "not a number"

    assert (await client.post("/wrong", headers=ACME)).status_code == 500
    assert await _notes(tenancy) == []


# -- what commits and what rolls back --------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("a bug"), 500),
        (HTTPException(409, "taken"), 409),
        (HTTPException(302, headers={"location": "/"}), 302),
    ],
    ids=["a bug", "refused", "redirected"],
)
async def test_raising_rolls_back_whatever_the_status(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy, error: Exception, status: int
) -> None:
    @app.post("/raise")
    async def handler(session: TenantSession) -> None:
        session.add(Note(text="never"))
        await session.flush()
        raise error

    assert (await client.post("/raise", headers=ACME)).status_code == status
    assert await _notes(tenancy) == []


async def test_a_dependency_that_refuses_rolls_back(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    async def counted(session: TenantSession) -> None:
        session.add(Note(text="never"))
        await session.flush()

    async def refuse(counted: Annotated[None, Depends(counted)]) -> None:
        raise HTTPException(403)

    @app.post("/refused", dependencies=[Depends(refuse)])
    async def refused(session: TenantSession) -> None: ...

    @app.post("/invalid/{number}", dependencies=[Depends(counted)])
    async def invalid(number: int, session: TenantSession) -> None: ...

    assert (await client.post("/refused", headers=ACME)).status_code == 403
    assert (await client.post("/invalid/letters", headers=ACME)).status_code == 422
    assert await _notes(tenancy) == []


async def test_returning_commits_whatever_the_status(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    @app.post("/returned/{status}")
    async def handler(status: int, session: TenantSession) -> JSONResponse:
        session.add(Note(text=str(status)))
        return JSONResponse(None, status)

    for status in (200, 409, 500):
        assert (await client.post(f"/returned/{status}", headers=ACME)).status_code == status
    assert await _notes(tenancy) == ["200", "409", "500"]


# -- after the handler -----------------------------------------------------------------------------


async def test_X6_in_a_streamed_body_the_session_is_closed_and_says_so(
    app: FastAPI, tenancy: Tenancy, events: list[str]
) -> None:
    @app.post("/stream")
    async def stream(session: TenantSession) -> StreamingResponse:
        session.add(Note(text="before the stream"))

        async def body() -> AsyncIterator[str]:
            for use in (
                lambda: session.add(Note(text="never")),
                lambda: session.sync_session.scalars(select(Note.text)),
                session.sync_session.commit,
            ):
                try:
                    use()
                except InvalidRequestError:
                    yield "closed "
            async with tenancy.session() as own:
                own.add(Note(text=f"in the stream of {require_tenant().identifier}"))
                yield "open"

        return StreamingResponse(body())

    async with requests_to(Recorder(app, events)) as client:
        answer = await client.post("/stream", headers=ACME)
    assert answer.text == "closed closed closed open"
    assert events.index("commit") < events.index("start 200")
    assert await _notes(tenancy) == ["before the stream", "in the stream of acme"]


async def test_X6_in_a_background_task_the_session_is_closed_and_the_tenant_is_still_current(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    errors: list[Exception] = []

    @app.post("/later")
    async def later(session: TenantSession, tasks: BackgroundTasks) -> None:
        session.add(Note(text="at once"))

        async def task() -> None:
            try:
                await session.scalars(select(Note.text))
            except InvalidRequestError as error:
                errors.append(error)
            async with tenancy.session() as own:
                own.add(Note(text=f"later, by {require_tenant().identifier}"))

        tasks.add_task(task)

    assert (await client.post("/later", headers=ACME)).status_code == 200
    assert len(errors) == 1
    assert await _notes(tenancy) == ["at once", "later, by acme"]


# -- what would lose data is refused at start ------------------------------------------------------


async def _async_generator(session: TenantSession) -> AsyncIterator[str]:
    yield "never"


def _generator(session: ReadOnlySession) -> Iterator[str]:
    yield "never"


async def _repository(session: TenantSession) -> AsyncSession:
    return session


async def _indirectly(session: Annotated[AsyncSession, Depends(_repository)]) -> AsyncIterator[str]:
    yield "never"


class _Callable:
    async def __call__(self, session: TenantSession) -> AsyncIterator[str]:
        yield "never"


def _in_the_application(app: FastAPI, endpoint: Any) -> None:
    app.get("/stream", response_class=StreamingResponse, response_model=None)(endpoint)


def _in_a_router(app: FastAPI, endpoint: Any) -> None:
    router = APIRouter()
    router.get("/stream", response_class=StreamingResponse, response_model=None)(endpoint)
    app.include_router(router, prefix="/a")


def _in_a_router_of_a_router(app: FastAPI, endpoint: Any) -> None:
    inner, outer = APIRouter(), APIRouter()
    inner.get("/stream", response_class=StreamingResponse, response_model=None)(endpoint)
    outer.include_router(inner, prefix="/b")
    app.include_router(outer, prefix="/a")


def _in_a_mounted_application(app: FastAPI, endpoint: Any) -> None:
    sub = FastAPI()
    _in_a_router(sub, endpoint)
    app.mount("/sub", sub)


@pytest.mark.parametrize(
    "place",
    [_in_the_application, _in_a_router, _in_a_router_of_a_router, _in_a_mounted_application],
)
@pytest.mark.parametrize(
    "endpoint",
    [_async_generator, _generator, _indirectly, _Callable()],
    ids=["async", "sync", "by a dependency", "an object"],
)
async def test_a_generator_with_a_session_is_refused_at_start(
    make_config: Callable[..., TenancyConfig],
    place: Callable[[FastAPI, Any], None],
    endpoint: Any,
) -> None:
    app = FastAPI()
    tenancy = Tenancy(make_config())
    install(app, tenancy)
    place(app, endpoint)
    with pytest.raises(ConfigurationError, match=r"/stream streams what it yields"):
        async with app.router.lifespan_context(app):
            pytest.fail("it was started")
    assert not tenancy.is_open


async def test_a_router_whose_own_dependency_is_a_session_is_seen_as_well(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async def stream() -> AsyncIterator[str]:
        yield "never"

    app = FastAPI()
    install(app, Tenancy(make_config()))
    router = APIRouter()
    router.get("/stream", response_class=StreamingResponse, response_model=None)(stream)
    app.include_router(router, dependencies=[Depends(get_tenant_session, scope="function")])
    with pytest.raises(ConfigurationError, match="streams what it yields"):
        async with app.router.lifespan_context(app):
            pytest.fail("it was started")


@pytest.mark.parametrize("session", [get_tenant_session, get_read_only_session])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_session_that_would_commit_after_the_answer_is_refused_at_start(
    make_config: Callable[..., TenancyConfig], session: Any, kind: str
) -> None:
    app = FastAPI()
    install(app, Tenancy(make_config()))

    # Without scope="function" FastAPI leaves the dependency when the answer has been sent.
    if kind == "http":

        @app.get("/late")
        async def late(session: Annotated[AsyncSession, Depends(session)]) -> None: ...

    else:

        @app.websocket("/late")
        async def socket(session: Annotated[AsyncSession, Depends(session)]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"/late .* after the answer"):
        async with app.router.lifespan_context(app):
            pytest.fail("it was started")


def test_a_generator_that_opens_its_own_session_is_served(
    make_config: Callable[..., TenancyConfig],
) -> None:
    app = FastAPI()
    tenancy = Tenancy(make_config(), metadata=Note.metadata)
    install(app, tenancy)

    async def lines(tenant: CurrentTenant) -> AsyncIterator[str]:
        async with tenancy.session() as session:
            session.add(Note(text=f"of {tenant.identifier}"))
            await session.flush()
            for text in await session.scalars(select(Note.text)):
                yield text

    @app.get("/stream")
    async def stream(tenant: CurrentTenant) -> StreamingResponse:
        return StreamingResponse(lines(tenant))

    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(tenancy.tenants.create, "acme")
        assert client.get("/stream", headers=ACME).text == "of acme"


# -- two sessions in one request -------------------------------------------------------------------


async def test_a_second_writer_in_one_request_is_refused_and_the_log_says_why(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy, caplog: pytest.LogCaptureFixture
) -> None:
    @app.post("/twice")
    async def twice(session: TenantSession) -> None:
        session.add(Note(text="never"))
        async with tenancy.session() as second:
            second.add(Note(text="never"))

    with caplog.at_level(logging.ERROR, logger="tenancy"):
        answer = await client.post("/twice", headers=ACME)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "already has a session" not in answer.text
    (record,) = caplog.records
    assert "already has a session of this tenant open" in record.getMessage()
    assert record.exc_info is not None
    assert await _notes(tenancy) == []
    assert (await client.post("/notes/kept", headers=ACME)).status_code == 201


async def test_an_error_of_the_database_is_a_500_and_rolls_back(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    errors: list[Exception] = []

    @app.post("/same/{number}")
    async def same(number: int, session: TenantSession) -> None:
        session.add(Note(id=number, text="secret text"))
        try:
            await session.flush()
        except IntegrityError as error:
            errors.append(error)
            raise

    assert (await client.post("/same/1", headers=ACME)).status_code == 200
    failed = await client.post("/same/1", headers=ACME)
    assert failed.status_code == 500
    # What was written stays out of whatever the error is written to (design, rule 8).
    assert "secret text" not in failed.text + str(errors[0]) + repr(errors[0])
    assert await _notes(tenancy) == ["secret text"]
