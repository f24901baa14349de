"""A forked child: what was built serves it, what was open in the parent does not."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import TYPE_CHECKING

import pytest

from support.forking import run
from support.notes import Base
from tenancy_core import Tenancy
from tenancy_core.context import Binding
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig

BUILT = """
import asyncio, contextvars, gc, os, sys
from support.forking import fork, status_of
from support.notes import Base, Note, read, write
from tenancy_core import (
    ConfigurationError, NoCurrentTenant, Tenancy, TenancyConfig, current_tenant, require_tenant
)

tenancy = Tenancy(
    TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db"), metadata=Base.metadata
)

async def notes(name, *texts):
    async with tenancy.scope(name):
        for text in texts:
            await write(tenancy, text)
        return await read(tenancy)

async def serve(name):
    async with tenancy:
        line = f"{name} {await notes(name, f'of a child for {name}')}\\n"
        sys.stdout.flush()
        os.write(1, line.encode())  # in one piece: another child may write as well
"""

OPENED = f"""{BUILT}
loop = asyncio.new_event_loop()
run = loop.run_until_complete
run(tenancy.__aenter__())
run(tenancy.tenants.create("acme"))
run(tenancy.tenants.create("beta"))
run(notes("acme", "before"))

ready, go = asyncio.Event(), asyncio.Event()

async def transact():
    async with tenancy.scope("acme"), tenancy.session() as session:
        session.add(Note(text="meanwhile"))
        await session.flush()
        ready.set()
        await go.wait()
        session.add(Note(text="afterwards"))

task = loop.create_task(transact())
run(ready.wait())

def go_on():
    go.set()
    run(task)
    print("parent", run(notes("acme", "at last")), run(notes("beta", "another")))
    run(tenancy.__aexit__(None, None, None))
    loop.close()
"""
"""The parent holds idle connections, and one in the midst of a transaction."""

WENT_ON = "parent ['before', 'meanwhile', 'afterwards', 'at last'] ['another']\n"


def test_what_was_built_is_opened_by_each_child(tmp_path: Path) -> None:
    out = run(
        f"""{BUILT}
async def prepare():
    async with tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.create("beta")

assert status_of(fork(prepare)) == 0
children = [fork(lambda name=name: serve(name)) for name in ("acme", "beta")]
assert [status_of(child) for child in children] == [0, 0]
""",
        tmp_path,
    )
    assert sorted(out.splitlines()) == [
        "acme ['of a child for acme']",
        "beta ['of a child for beta']",
    ]


def test_what_was_closed_before_the_fork_is_opened_again_on_both_sides(tmp_path: Path) -> None:
    out = run(
        f"""{BUILT}
from tenancy_core.sql import forked

async def prepare():
    global held
    async with tenancy:
        await tenancy.tenants.create("acme")
        await notes("acme", "before")
        held = list(forked._files)
        assert held

asyncio.run(prepare())
assert status_of(fork(lambda: serve("acme"))) == 0
asyncio.run(serve("acme"))
""",
        tmp_path,
    )
    assert out.splitlines() == [
        "acme ['before', 'of a child for acme']",
        "acme ['before', 'of a child for acme', 'of a child for acme']",
    ]


@pytest.mark.parametrize("ends", [True, False])
def test_what_was_open_is_not_open_in_the_child_and_goes_on_in_the_parent(
    ends: bool, tmp_path: Path
) -> None:
    out = run(
        f"""{OPENED}
async def child():
    assert not tenancy.is_open
    for use in (lambda: tenancy.tenants, lambda: tenancy.session(), lambda: tenancy.audit):
        try:
            use()
        except ConfigurationError as error:
            assert "was opened in the process that this one was forked from" in str(error), error
        else:
            raise AssertionError("used")
    print("child")

assert status_of(fork(child, ends={ends})) == 0
go_on()
""",
        tmp_path,
    )
    assert out == f"child\n{WENT_ON}"


@pytest.mark.parametrize("link", [False, True])
def test_an_sqlite_file_that_the_parent_has_open_is_refused(link: bool, tmp_path: Path) -> None:
    # Without the refusal the child's committed write is lost: it has no lock of its own, and the
    # parent removes the log in which the write is.
    out = run(
        f"""{OPENED}
async def child():
    if {link}:
        os.symlink("data", "same")
    place = "same" if {link} else "data"
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///./{{place}}/control.db")
    for each in (tenancy, Tenancy(config, metadata=Base.metadata)):
        try:
            async with each:
                raise AssertionError("open")
        except ConfigurationError as error:
            print(str(error)[:71])
            assert not each.is_open

assert status_of(fork(child)) == 0
go_on()
""",
        tmp_path,
    )
    refusal = "This process was forked from one that had this SQLite file open, and SQ"
    assert out == f"{refusal}\n{refusal}\n{WENT_ON}"


def test_another_sqlite_file_is_not_refused(tmp_path: Path) -> None:
    out = run(
        f"""{OPENED}
async def child():
    config = TenancyConfig(database_url="sqlite+aiosqlite:///./other/control.db")
    async with Tenancy(config, metadata=Base.metadata) as other:
        await other.tenants.create("acme")
        async with other.scope("acme"):
            await write(other, "elsewhere")
            print(await read(other))

assert status_of(fork(child)) == 0
go_on()
""",
        tmp_path,
    )
    assert out == f"['elsewhere']\n{WENT_ON}"


def test_the_current_tenant_is_the_parents(tmp_path: Path) -> None:
    out = run(
        f"""{OPENED}
def look():
    assert current_tenant() is None
    for use in (require_tenant, tenancy._current):
        try:
            use()
        except NoCurrentTenant:
            pass
        else:
            raise AssertionError("a tenant")

async def fork_inside():
    async with tenancy.scope("acme"):
        context = contextvars.copy_context()
        pid = os.fork()
        if pid:
            assert require_tenant().identifier == "acme"
            return await asyncio.to_thread(status_of, pid)
        try:
            look()
            context.run(look)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)

assert run(fork_inside()) == 0
go_on()
""",
        tmp_path,
    )
    assert out == WENT_ON


def test_a_scope_that_is_left_in_a_child_makes_no_tenant_current_there() -> None:
    around = Binding(make_tenant("acme"), None, scope="around")
    inside = Binding(make_tenant("beta"), None, scope="inside", outer=around)
    inside.generation -= 1
    left = inside.without("around")
    assert left is not None
    assert left.outer is None
    assert left.generation == inside.generation


def test_a_child_that_leaves_through_its_parents_blocks_ends_nothing(tmp_path: Path) -> None:
    out = run(
        f"""{BUILT}
async def main():
    async with tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            async with tenancy.session() as session:
                session.add(Note(text="before"))
                await session.flush()
                pid = os.fork()
                if not pid:
                    sys.exit(7)
                assert await asyncio.to_thread(status_of, pid) == 7
                session.add(Note(text="after"))
            print(await read(tenancy))

asyncio.run(main())
""",
        tmp_path,
    )
    assert out == "['before', 'after']\n"


def test_the_parents_event_loop_is_not_used_and_not_closed_for_it(tmp_path: Path) -> None:
    out = run(
        f"""{OPENED}
async def open_on_it():
    try:
        async with tenancy:
            raise AssertionError("open")
    except ConfigurationError as error:
        print(str(error)[:62])

sys.stdout.flush()
pid = os.fork()
if not pid:
    run(open_on_it())
    loop.close()
    sys.exit()
assert status_of(pid) == 0
go_on()
""",
        tmp_path,
    )
    assert out == f"This process was forked, and runs an event loop of its parent'\n{WENT_ON}"


def test_the_middleware_serves_nobody_from_what_the_parent_remembered(tmp_path: Path) -> None:
    out = run(
        f"""{OPENED}
from tenancy_core.asgi import TenancyMiddleware

async def app(scope, receive, send):
    print(require_tenant().identifier)

middleware = TenancyMiddleware(app, tenancy)

def request():
    headers = [(b"x-tenant-id", b"acme")]
    scope = {{"type": "http", "method": "GET", "path": "/n", "raw_path": b"/n", "root_path": "",
             "headers": headers, "state": {{}}, "query_string": b"", "client": None}}
    return middleware(scope, None, None)

run(request())
assert middleware._entries

async def child():
    try:
        await request()
    except ConfigurationError as error:
        print(str(error).partition(" in ")[0])

assert status_of(fork(child)) == 0
run(request())
go_on()
""",
        tmp_path,
    )
    assert out == f"acme\nThis Tenancy was opened\nacme\n{WENT_ON}"


def test_an_object_that_the_parent_opened_is_refused(tmp_path: Path) -> None:
    out = run(
        f"""{BUILT}
from tenancy_core._stores.memory import MemoryTenantStore

class Sink:
    async def write(self, event): pass
    async def __aenter__(self): return self
    async def __aexit__(self, *_): pass

config = TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db")
tenancy = Tenancy(config, store=MemoryTenantStore(), audit_sinks=[Sink()])

async def child():
    for _ in range(2):
        try:
            async with tenancy:
                print("open")
        except ConfigurationError as error:
            print(str(error)[:60])

async def main():
    async with tenancy:
        assert await asyncio.to_thread(status_of, fork(child, ends=False)) == 0

assert status_of(fork(child)) == 0
asyncio.run(main())
""",
        tmp_path,
    )
    refusal = "What is passed to Tenancy(audit_sinks=…), a Sink, was opened"
    assert out.splitlines() == ["open", "open", refusal, refusal]


def test_a_child_of_a_child_has_nothing_of_either(tmp_path: Path) -> None:
    out = run(
        f"""{OPENED}
async def child():
    config = TenancyConfig(database_url="sqlite+aiosqlite:///./other/control.db")
    async with Tenancy(config, metadata=Base.metadata) as other:
        await other.tenants.create("acme")

        async def grandchild():
            for each in (tenancy, other):
                assert not each.is_open
                try:
                    async with each:
                        raise AssertionError("open")
                except ConfigurationError as error:
                    assert "this SQLite file" in str(error)
            print("grandchild")

        assert await asyncio.to_thread(status_of, fork(grandchild, ends=False)) == 0
        async with other.scope("acme"):
            await write(other, "still")
            print(await read(other))

assert status_of(fork(child)) == 0
go_on()
""",
        tmp_path,
    )
    assert out == f"grandchild\n['still']\n{WENT_ON}"


def test_what_is_put_aside_outlives_the_interpreter(tmp_path: Path) -> None:
    out = run(
        f"""{BUILT}
from tenancy_core import _fork

class Finalized:
    def __del__(self, write=os.write, getpid=os.getpid, parent=os.getpid()):
        write(1, b"parent" if getpid() == parent else b"child")

@_fork.in_child
def leave():
    yield finalized

finalized = Finalized()

async def child():
    global finalized
    del finalized

assert status_of(fork(child)) == 0
""",
        tmp_path,
    )
    assert out == "parent"


def test_one_room_that_fails_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    out = run(
        f"""
import logging
from tenancy_core import _fork

@_fork.in_child
def fail():
    raise ValueError

logging.getLogger("tenancy").addHandler(logging.StreamHandler(sys.stdout))
{OPENED}
async def child():
    assert not tenancy.is_open

assert status_of(fork(child)) == 0
go_on()
""",
        tmp_path,
    )
    assert "something of the parent process may be in use in this one" in out
    assert "ValueError" in out
    assert out.endswith(WENT_ON)


# -- to a process that is not forked ---------------------------------------------------------------


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_tenancy_is_not_pickled(
    copied: Callable[[object], object], make_config: Callable[..., TenancyConfig]
) -> None:
    with pytest.raises(TypeError, match=r"A Tenancy holds secrets .* make one in each process"):
        copied(Tenancy(make_config(), metadata=Base.metadata))


def test_a_tenancy_is_not_handed_to_a_process_that_is_spawned(
    make_config: Callable[..., TenancyConfig],
) -> None:
    tenancy = Tenancy(make_config(), metadata=Base.metadata)
    process = multiprocessing.get_context("spawn").Process(target=print, args=(tenancy,))
    with pytest.raises(TypeError, match="A Tenancy holds secrets"):
        process.start()
