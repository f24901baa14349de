"""MariaDB and Redis, spoken to without a driver."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from support.services.fixtures import wanted
from support.services.mysql import MySQL

if TYPE_CHECKING:
    from support.services.redis import Redis


def query(server: MySQL, statement: str, **login: str) -> subprocess.CompletedProcess[str]:
    """Ask with MariaDB's own client, which comes with the server."""
    user, password = login.get("user", server.user), login.get("password", server.password)
    return subprocess.run(
        [
            server.binaries.path("mariadb", "mysql"),
            "--no-defaults",
            f"--host={server.host}",
            f"--port={server.port}",
            "--protocol=tcp",
            f"--user={user}",
            "--batch",
            "--skip-column-names",
            f"--execute={statement}",
        ],
        env={**server.binaries.environment, "MYSQL_PWD": password},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_user_of_mysql_may_do_everything(mysql_server: MySQL) -> None:
    grants = query(mysql_server, "SHOW GRANTS").stdout
    assert "GRANT ALL PRIVILEGES ON *.*" in grants
    assert "WITH GRANT OPTION" in grants


@pytest.mark.parametrize("user", ["root", "", "mariadb.sys", "tenancy"])
def test_nobody_comes_to_mysql_without_a_password(mysql_server: MySQL, user: str) -> None:
    done = query(mysql_server, "SELECT 1", user=user, password="")
    assert done.returncode != 0
    assert "1045" in done.stderr or "denied" in done.stderr


def test_mysql_has_a_url(mysql_server: MySQL) -> None:
    parts = urlsplit(mysql_server.url(database="shop"))
    assert (parts.scheme, parts.hostname, parts.port) == (
        "mysql+aiomysql",
        mysql_server.host,
        mysql_server.port,
    )
    assert unquote(parts.password or "") == mysql_server.password
    assert parts.path == "/shop"


def test_mysql_keeps_what_was_committed_over_a_crash(mysql_victim: MySQL) -> None:
    done = query(mysql_victim, "CREATE DATABASE a; CREATE TABLE a.b SELECT 7 AS c")
    assert done.returncode == 0, done.stderr
    mysql_victim.restart(crash=True)
    assert query(mysql_victim, "SELECT c FROM a.b").stdout.strip() == "7"


def test_settings_reach_mysql() -> None:
    wanted("mysql")
    with MySQL(options={"max-connections": 13}) as server:
        assert query(server, "SELECT @@max_connections").stdout.strip() == "13"


def say(server: Redis, *lines: str) -> bytes:
    with server.connect() as connection:
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
        answer = b""
        while answer.count(b"\n") < len(lines) and (more := connection.recv(4096)):
            answer += more
        return answer


def test_nobody_comes_to_redis_without_a_password(redis_server: Redis) -> None:
    assert say(redis_server, "PING").startswith(b"-NOAUTH")
    assert say(redis_server, "AUTH wrong").startswith(b"-WRONGPASS")
    assert say(redis_server, f"AUTH {redis_server.password}", "PING") == b"+OK\r\n+PONG\r\n"


def test_the_url_of_redis_has_password_and_database(redis_server: Redis) -> None:
    parts = urlsplit(redis_server.url(database=3))
    assert (parts.scheme, parts.port, parts.path) == ("redis", redis_server.port, "/3")
    assert parts.password == redis_server.password


def test_a_crash_of_redis_forgets_everything(redis_victim: Redis) -> None:
    login = f"AUTH {redis_victim.password}"
    assert say(redis_victim, login, "SET a b") == b"+OK\r\n+OK\r\n"
    redis_victim.restart(crash=True)
    assert say(redis_victim, login, "EXISTS a") == b"+OK\r\n:0\r\n"
