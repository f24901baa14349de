"""A forked child and the backends of its parent: it has its own, and leaves theirs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.databases import KEY
from support.forking import run

if TYPE_CHECKING:
    from pathlib import Path

    from support.services.databases import PostgresDatabase

PROGRAM = """
import asyncio, contextvars, gc, os, sys, time
import asyncpg, uvloop
from support.forking import fork, status_of, status_of_child
from support.notes import Base, Note, read, write
from sqlalchemy import text
from tenancy_core import NoCurrentTenant, Tenancy, TenancyConfig, require_tenant

tenancy = Tenancy(TenancyConfig.from_env(), metadata=Base.metadata)

async def backends():
    server = await asyncpg.connect(os.environ["SUPERUSER_URL"])
    try:
        rows = await server.fetch(
            "SELECT pid FROM pg_stat_activity JOIN pg_database USING (datname)"
            " WHERE (datname = $1 OR pg_get_userbyid(datdba) = $2) AND usename <> current_user",
            os.environ["PLACE"], os.environ["CONTROL"],
        )
        return {row[0] for row in rows}
    finally:
        await server.close()

async def notes(name, *texts):
    async with tenancy.scope(name):
        for text in texts:
            await write(tenancy, text)
        return await read(tenancy)

loop = uvloop.new_event_loop() if os.environ["LOOP"] == "uvloop" else asyncio.new_event_loop()
run = loop.run_until_complete
run(tenancy.__aenter__())
run(tenancy.tenants.create("acme"))
run(tenancy.tenants.create("beta"))
run(notes("acme", "before"))
run(notes("beta"))

ready, go = asyncio.Event(), asyncio.Event()
held = []

async def transact():
    async with tenancy.scope("acme"), tenancy.session() as session:
        session.add(Note(text="meanwhile"))
        await session.flush()
        held[:] = [session, contextvars.copy_context()]
        ready.set()
        await go.wait()
        session.add(Note(text="afterwards"))

async def open_by_hand():
    async with tenancy.scope("beta"):
        context = tenancy.session()
        session = await context.__aenter__()
        session.add(Note(text="by hand"))
        await session.flush()
        return context, session

task = loop.create_task(transact())
run(ready.wait())
by_hand = run(open_by_hand())
before = run(backends())

async def are(expected):
    deadline = time.monotonic() + 30
    while (found := await backends()) != expected and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert found == expected, (found, expected)

def go_on():
    run(are(before))
    go.set()
    run(task)
    run(by_hand[0].__aexit__(None, None, None))
    run(are(before))
    print("parent", run(notes("acme", "at last")), run(notes("beta", "another")))
    run(tenancy.__aexit__(None, None, None))
    held.clear()
    run(are(set()))
    loop.close()

async def serve(number):
    inherited = held[1]
    async with tenancy:
        for name in ("acme", "beta"):
            await notes(name, f"of child {number}")
        mine = await backends() - before
        assert len(mine) >= 2, mine

        def look():
            try:
                tenancy._current()
            except NoCurrentTenant:
                return "nobody's"

        assert inherited.run(look) == "nobody's"
        scoped = asyncio.get_running_loop().create_task(notes("beta"), context=inherited.copy())
        assert f"of child {number}" in await scoped
    assert before <= await backends()
"""

WENT_ON = "parent ['before', 'meanwhile', 'afterwards', 'at last'] ['by hand', 'another']\n"


@pytest.fixture(params=["schema on asyncio", "database on uvloop"])
def environment(request: pytest.FixtureRequest, database: PostgresDatabase) -> dict[str, str]:
    strategy, loop = request.param.split(" on ")
    return {
        "TENANCY_DATABASE_URL": database.app_url,
        "TENANCY_CONTROL_DATABASE_URL": database.control_url,
        "TENANCY_ISOLATION_STRATEGY": strategy,
        "TENANCY_ENABLE_ENCRYPTION": "true",
        "TENANCY_ENCRYPTION_KEYS": KEY,
        "SUPERUSER_URL": database.superuser_url.replace("postgresql+asyncpg", "postgresql"),
        "PLACE": database.name,
        "CONTROL": database.control,
        "LOOP": loop,
    }


@pytest.mark.parametrize("ends", [True, False])
def test_children_have_backends_of_their_own_and_close_none_of_the_parents(
    ends: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    out = run(
        f"""{PROGRAM}
children = [fork(lambda number=number: serve(number), ends={ends}) for number in range(2)]
assert [status_of(child) for child in children] == [0, 0]
go_on()
""",
        tmp_path,
        environment,
    )
    for number in range(2):
        assert out.count(f"'of child {number}'") == 2
    out = out.replace("'of child 0'", "").replace("'of child 1'", "").replace(", ,", ",")
    for words in ("before", "meanwhile", "afterwards", "at last", "by hand", "another"):
        assert f"'{words}'" in out


def test_what_a_child_drops_is_not_finalized_there(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # Of connections, sessions, tasks and the event loop: each has one that the parent would feel.
    out = run(
        f"""{PROGRAM}
async def child():
    global task, tenancy, loop, ready, go, run, by_hand
    held.clear()
    del task, tenancy, loop, ready, go, run, by_hand
    gc.collect()

assert status_of(fork(child)) == 0
assert status_of(fork(child, ends=False)) == 0
go_on()
""",
        tmp_path,
        environment,
    )
    assert out == WENT_ON


def test_nothing_that_a_child_says_on_an_inherited_session_reaches_the_server(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = run(
        f"""{PROGRAM}
async def child():
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # SQLAlchemy has a lot to say about it
    session = held[0]
    for work in (
        lambda: session.execute(text("DROP TABLE notes")), session.rollback, session.close
    ):
        try:
            await asyncio.wait_for(work(), 20)
        except Exception:
            pass

assert status_of(fork(child, ends=False)) == 0
go_on()
""",
        tmp_path,
        environment,
    )
    assert out == WENT_ON


def test_a_child_that_leaves_through_its_parents_blocks_ends_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = run(
        f"""{PROGRAM}
async def main():
    async with tenancy.scope("beta"), tenancy.session() as session:
        session.add(Note(text="one"))
        await session.flush()
        pid = os.fork()
        if not pid:
            sys.exit(7)
        assert await status_of_child(pid) == 7
        session.add(Note(text="other"))
    print(await notes("beta"))

run(main())
before = run(backends())
go_on()
""",
        tmp_path,
        environment,
    )
    assert out.startswith("['one', 'other']\n")
    assert "['before', 'meanwhile', 'afterwards', 'at last']" in out
