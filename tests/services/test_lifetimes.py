"""Starting, stopping, killing and pausing real servers, and what is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import support.services.server as server_module
from support.services.errors import StartError
from support.services.fixtures import wanted
from support.services.identity import server_identity
from support.services.mysql import MySQL
from support.services.observing import (
    listening,
    shared_memories,
    shared_memory,
    state_of,
    user_of,
    wait_for,
)
from support.services.pgbouncer import PgBouncer
from support.services.ports import LOOPBACK, free_port
from support.services.postgres import Postgres
from support.services.redis import Redis
from support.services.supervised import Supervised
from support.services.supervisor import descendants, kill_below

if TYPE_CHECKING:
    from support.services.server import Server

TestsProcess = Callable[..., tuple[subprocess.Popen[str], Path, list[int]]]

UNIX_SOCKET_PATH = 107
"""Bytes; see unix(7)."""


def serves(server: Server) -> bool:
    try:
        with server.connect() as connection:
            return server.answers(connection)
    except OSError:
        return False


def tree_of(server: Server) -> list[int]:
    return [server.pid, *descendants(server.pid)]


def test_a_server_serves_until_it_is_stopped_and_again_on_the_same_port(any_server: Server) -> None:
    any_server.start()
    port, processes = any_server.port, tree_of(any_server)
    assert serves(any_server)
    any_server.start()  # it runs already
    assert any_server.pid == processes[0]

    any_server.stop()
    assert not any_server.running
    assert [state_of(process) for process in processes] == [None] * len(processes)
    assert not serves(any_server)
    any_server.stop()

    any_server.restart()
    assert any_server.port == port
    assert serves(any_server)
    any_server.close()
    assert not any_server.running
    assert not any_server.folder.exists()


def test_a_killed_server_is_gone_as_a_whole_and_can_be_restarted(any_server: Server) -> None:
    any_server.start()
    with any_server.connect() as connection:
        assert any_server.answers(connection)
        processes = tree_of(any_server)
        any_server.kill()
        assert [state_of(process) for process in processes] == [None] * len(processes)
        assert not any_server.running
    any_server.restart(crash=True)
    assert serves(any_server)


def test_a_paused_server_keeps_connections_and_answers_when_it_goes_on(any_server: Server) -> None:
    any_server.start()
    with any_server.connect() as before:
        assert any_server.answers(before)
        any_server.pause()
        wait_for(lambda: {state_of(one) for one in tree_of(any_server)} == {"T"}, "the stop")
        with socket.create_connection((any_server.host, any_server.port), 5) as connection:
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                any_server.answers(connection)
        any_server.resume()
        assert serves(any_server)
        before.settimeout(0.2)
        with pytest.raises(TimeoutError):  # still open: nothing to read, and no end either
            while before.recv(4096):
                pass


def test_a_paused_server_can_be_stopped_and_closed(
    any_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken for that, and not killed once patience is at its end."""
    monkeypatch.setattr(Supervised, "kill", lambda _: pytest.fail("it had to be killed"))
    any_server.start()
    any_server.pause()
    any_server.stop()
    assert not any_server.running
    any_server.start()
    any_server.pause()
    any_server.close()
    assert not any_server.running


def test_a_port_that_was_taken_meanwhile_is_exchanged(
    any_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(ports))
        any_server.start()
        assert any_server.port != taken.getsockname()[1]
    assert serves(any_server)


def test_somebody_else_on_the_port_is_not_taken_for_the_server(
    monkeypatch: pytest.MonkeyPatch, postgres_server: Postgres
) -> None:
    monkeypatch.setattr(server_module, "free_port", lambda: postgres_server.port)
    server = Postgres()
    with pytest.raises(StartError, match="Address already in use"):
        server.start()
    server.close()


def test_what_it_wrote_at_an_earlier_start_is_no_sign_of_this_one() -> None:
    """Else somebody who took its port while it was stopped, and answers, would be taken for it."""
    wanted("redis")
    with Redis() as server:
        server.stop()
        with socket.create_server((server.host, server.port)) as stranger:

            def answer() -> None:
                with suppress(OSError):
                    while True:
                        with stranger.accept()[0] as client:
                            client.recv(99)
                            client.sendall(b"+OK\r\n+PONG\r\n")

            threading.Thread(target=answer, daemon=True).start()
            assert serves(server)
            with pytest.raises(StartError, match="Address already in use"):
                server.start()
            stranger.shutdown(socket.SHUT_RDWR)


def test_an_error_at_start_ends_with_the_log() -> None:
    wanted("redis")
    server = Redis(options={"maxmemory-policy": "no-such-policy"})
    with pytest.raises(StartError, match=r"(?s)redis from .* ended with status 1 .*no-such-policy"):
        server.start()
    server.close()
    assert not server.folder.exists()


def test_a_program_that_cannot_be_run_is_an_error_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted("redis")
    server = Redis()
    monkeypatch.setattr(server, "command", lambda: ["/no/such/program"])
    with pytest.raises(StartError, match=r"(?s)ended with status 127 .*/no/such/program"):
        server.start()
    server.close()


@pytest.mark.parametrize("options", [{"maxmemory": "7mb"}])
def test_options_reach_the_server(options: dict[str, str]) -> None:
    wanted("redis")
    with Redis(options=options) as server, server.connect() as connection:
        assert server.answers(connection)
        connection.sendall(b"CONFIG GET maxmemory\r\n")
        assert b"7340032" in connection.recv(4096)


def test_children_whose_parent_was_killed_are_killed_as_well(postgres_victim: Postgres) -> None:
    """Even if they are stopped, and so do not see that it is gone."""
    processes = tree_of(postgres_victim)
    assert len(processes) > 2
    postgres_victim.pause()
    os.kill(postgres_victim.pid, signal.SIGKILL)
    wait_for(lambda: state_of(postgres_victim.pid) is None, "the death of the first process")
    assert any(map(state_of, processes))
    postgres_victim.kill()
    assert [state_of(process) for process in processes] == [None] * len(processes)


def test_nobody_is_killed_before_all_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one of them would see another die, and tell its clients or its log."""
    sent: list[int] = []
    send = os.kill

    def note(process: int, number: int) -> None:
        sent.append(number)
        send(process, number)

    monkeypatch.setattr(os, "kill", note)
    with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & sleep 60 & wait"]) as shell:
        wait_for(lambda: len(descendants(shell.pid)) == 2, "the start of both")
        kill_below(shell.pid)
        shell.wait(60)
    assert sent == [signal.SIGSTOP] * 2 + [signal.SIGKILL] * 2


def test_an_interrupt_of_the_tests_is_not_one_of_who_looks_after_servers() -> None:
    """Else ^C would end them before the last test has."""
    wanted("redis")
    with Redis() as server:
        assert server._process is not None
        supervisor = server._process._supervisor.pid
        janitors = [one for one in descendants(os.getpid()) if b"janitor.py" in words_of(one)]
        assert janitors
        assert os.getsid(0) not in {os.getsid(one) for one in (supervisor, *janitors)}


def words_of(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def test_a_server_outlives_the_thread_that_started_it() -> None:
    wanted("redis")
    server = Redis()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    assert serves(server)
    assert state_of(server.pid) is not None
    server.close()


# --- what holds while a server runs -------------------------------------------------------------


def test_servers_never_run_as_root(running_server: Server) -> None:
    expected = server_identity().uid
    expected = os.geteuid() if expected is None else expected
    assert expected != 0
    assert {user_of(process) for process in tree_of(running_server)} == {expected}


def test_only_the_loopback_can_reach_a_server(running_server: Server) -> None:
    """As the kernel has it: no socket of any of its processes is bound to another address."""
    found = listening(tree_of(running_server))
    assert found == {(LOOPBACK, running_server.port)}


def test_a_socket_on_another_address_is_seen() -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        assert other.getsockname() in listening([os.getpid()])


def test_paths_are_short_enough_for_unix_sockets(running_server: Server) -> None:
    assert len(bytes(running_server.folder / ".s.PGSQL.65535.lock")) <= UNIX_SOCKET_PATH


def test_nobody_else_can_enter_the_folder_of_a_server(running_server: Server) -> None:
    assert running_server.folder.stat().st_mode & 0o077 == 0


def test_an_interrupt_of_the_tests_is_not_one_of_the_servers(running_server: Server) -> None:
    sessions = {os.getsid(process) for process in tree_of(running_server)}
    assert os.getsid(0) not in sessions


# --- the end of the test process ----------------------------------------------------------------

PROGRAM = """
import sys
from support.services.mysql import MySQL
from support.services.pgbouncer import PgBouncer
from support.services.postgres import Postgres
from support.services.redis import Redis
from support.services.supervisor import descendants

servers = []
def start(server):
    server.start()
    servers.append(server)
    return server

{body}
processes = [pid for server in servers for pid in (server.pid, *descendants(server.pid))]
print(servers[0].folder.parent, *processes, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tests_process(
    python: Callable[[str], subprocess.Popen[str]],
) -> TestsProcess:
    """Start servers in another process; returns it, its folder and their processes."""

    def start(body: str) -> tuple[subprocess.Popen[str], Path, list[int]]:
        for kind in (Postgres, MySQL, Redis, PgBouncer):
            if f"{kind.__name__}(" in body:
                wanted(kind.service)
        process = python(PROGRAM.format(body=body))
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        return process, Path(folder), [int(pid) for pid in pids]

    return start


BODIES = {
    "postgres": "start(Postgres())",
    "mysql": "start(MySQL())",
    "redis": "start(Redis())",
    "pgbouncer": "start(PgBouncer(start(Postgres())))",
    "pgbouncer_that_prepares": "start(PgBouncer(start(Postgres()), max_prepared_statements=10))",
}


@pytest.mark.parametrize("state", ["running", "paused"])
@pytest.mark.parametrize("service", BODIES)
def test_servers_and_folders_die_with_the_test_process(
    tests_process: TestsProcess,
    service: str,
    state: str,
) -> None:
    pause = "for server in servers: server.pause()" if state == "paused" else ""
    process, folder, pids = tests_process(f"{BODIES[service]}\n{pause}")
    assert state_of(pids[0])
    assert folder.is_dir()
    segments = {shared_memory(data) for data in folder.glob("postgres*/data")}
    assert segments <= shared_memories()
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(state_of, pids)), "the servers' death")
    wait_for(lambda: not folder.exists(), "the removal of their folder")
    assert not segments & shared_memories()


def test_servers_die_although_a_forked_child_of_the_test_process_lives_on(
    tests_process: TestsProcess,
) -> None:
    body = """
import os, time
start(Redis())
if (child := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
class Child: pid = child
"""
    process, folder, pids = tests_process(body + "servers.append(Child); Child.folder = None")
    *server, child = [pid for pid in pids if pid]
    process.send_signal(signal.SIGKILL)
    try:
        wait_for(lambda: not any(map(state_of, server)), "the servers' death")
        wait_for(lambda: not folder.exists(), "the removal of their folder")
        assert state_of(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_server_dies_with_its_supervisor() -> None:
    """The death signal is what remains; setuid must not have taken it away."""
    wanted("redis")
    server = Redis()
    server.start()
    assert server._process is not None
    server._process._supervisor.kill()
    wait_for(lambda: not state_of(server.pid), "the server's death")
    server.close()


def test_an_ordinary_end_leaves_nothing(
    tests_process: TestsProcess,
) -> None:
    """Not even if nobody closes what was started."""
    process, folder, pids = tests_process("start(Redis()); start(Postgres())")
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)
    wait_for(lambda: not any(map(state_of, pids)), "the servers' death")
    wait_for(lambda: not folder.exists(), "the removal of their folder")
