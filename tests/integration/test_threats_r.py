"""Rows R of the threats over real HTTP: raw bytes to a real uvicorn, with both of its parsers."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from support.server import ROOT, Server, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection

APPS = ROOT / "tests" / "integration" / "apps"
# Each of uvicorn's HTTP parsers stands with one of its implementations of WebSockets.
KINDS = {"h11": "websockets", "httptools": "websockets-sansio"}
CUSTOMERS = itertools.count(1)
PATIENCE = 60.0
"""Seconds; only a failure waits for so long."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two processes on one database, with the tenants acme, beta and off (which is suspended)."""
    folder = tmp_path_factory.mktemp("threats-r")
    environment = {
        "TENANCY_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/control.db",
        "TENANCY_INVALIDATION_POLL_SECONDS": "0.2",
    }

    def start(kind: str) -> Any:
        # An application that waits for something else than its socket is not waited for at the end.
        arguments = ("--http", kind, "--ws", KINDS[kind], "--timeout-graceful-shutdown", "1")
        return serve(
            "threats_r:app", folder, environment=environment, arguments=arguments, app_dir=APPS
        )

    with start("h11") as one, start("httptools") as other:
        for name in ("acme", "beta", "off"):
            command(one, "create", name)
        command(one, "suspend", "off")
        yield {"h11": one, "httptools": other}


@pytest.fixture(params=sorted(KINDS))
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


def command(server: Server, action: str, name: str, which: str = "header") -> None:
    """Do something to a tenant as the operator."""
    answer = httpx.post(
        f"{server.url}/admin/{action}/{name}",
        headers={"x-which": which},
        timeout=PATIENCE,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text


def request(
    which: str,
    *lines: bytes,
    target: bytes = b"/me",
    method: bytes = b"GET",
    version: bytes = b"1.1",
) -> bytes:
    """Return the bytes of a request. Only what is given is in it: no Host is added."""
    head = [
        method + b" " + target + b" HTTP/" + version,
        b"X-Which: " + which.encode(),
        b"Connection: close",
        *lines,
    ]
    return b"\r\n".join([*head, b"", b""])


HOST = b"Host: service.test"


def ask(server: Server, which: str, *lines: bytes, **more: bytes) -> tuple[int, str | None]:
    """Return the status and the tenant or the code of the refusal; None: the server's own 400."""
    status, answer = server.raw(request(which, *lines, **more))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status < 500 or b"problem+json" in head, answer
    if b"content-type: application/problem+json" in head.lower():
        refusal = json.loads(body)
        assert refusal["status"] == status
        return status, refusal["code"]
    if status == 400:
        assert body == b"Invalid HTTP request received.", answer
        return status, None
    return status, json.loads(body)


def is_refused(answer: tuple[int, str | None]) -> bool:
    """Whether it was refused as malformed, by us or already by the server's parser."""
    return answer in [(400, "tenant_invalid"), (400, None)]


ACME = (200, "acme")
BETA = (200, "beta")
NOT_FOUND = (404, "tenant_not_found")
INVALID = (400, "tenant_invalid")

# -- forwarded hosts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"X-Forwarded-Host: beta.ex.com",
        b"X-Forwarded-Host: beta.ex.com, beta.ex.com",
        b"Forwarded: host=beta.ex.com",
        b"X-Host: beta.ex.com",
        b"X-Original-Host: beta.ex.com",
        b"X-Forwarded-Server: beta.ex.com",
        b"X-HTTP-Host-Override: beta.ex.com",
    ],
)
def test_R1_forwarded_host_is_ignored(server: Server, line: bytes) -> None:
    assert ask(server, "subdomain", b"Host: acme.ex.com", line) == ACME
    assert ask(server, "subdomain", line, b"Host: acme.ex.com") == ACME


def test_R1_a_forwarded_host_is_no_substitute_for_a_host(server: Server) -> None:
    forwarded = b"X-Forwarded-Host: beta.ex.com"
    assert ask(server, "subdomain", forwarded, version=b"1.0") == INVALID
    assert ask(server, "subdomain", forwarded, b"Host: ex.com") == NOT_FOUND


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"X-Forwarded-Host: beta.ex.com"], BETA),
        ([b"X-Forwarded-Host: nobody.ex.com, beta.ex.com"], BETA),
        ([b"X-Forwarded-Host: nobody.ex.com", b"X-Forwarded-Host: beta.ex.com:443"], BETA),
        ([b"X-Forwarded-Host: beta.ex.com,"], INVALID),
        ([b"X-Forwarded-Host:"], INVALID),
        ([b"X-Forwarded-Host: beta.ex.com acme.ex.com"], INVALID),
        ([b"X-Forwarded-Host: acme@beta.ex.com"], INVALID),
        ([b"Forwarded: host=beta.ex.com"], ACME),
        ([], ACME),
    ],
)
def test_R2_the_last_hop_that_a_trusted_proxy_appended_counts(
    server: Server, lines: list[bytes], expected: tuple[int, str]
) -> None:
    assert ask(server, "proxied", b"Host: acme.ex.com", *lines) == expected


# -- the header ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second", [b"X-Tenant-ID: beta", b"X-Tenant-ID: acme", b"x-tenant-id: acme", b"X-Tenant-ID:"]
)
@pytest.mark.parametrize("which", ["header", "chain", "query"])
def test_R3_a_doubled_header_is_refused(server: Server, which: str, second: bytes) -> None:
    lines = [b"X-Tenant-ID: acme", b"Accept: */*", second]
    host = b"Host: acme.ex.com"
    assert ask(server, "header", host, b"X-Tenant-ID: acme") == ACME  # cached: the fast way
    assert ask(server, which, host, *lines) == INVALID
    assert ask(server, which, *reversed(lines), host) == INVALID


@pytest.mark.parametrize(
    "value", [b"acme, beta", b"acme,acme", b"acme,", b"acme;q=1", b"acme beta"]
)
def test_R4_a_list_is_refused(server: Server, value: bytes) -> None:
    assert ask(server, "header", HOST, b"X-Tenant-ID: " + value) == INVALID


@pytest.mark.parametrize("name", [b"X_Tenant_ID", b"X-Tenant_ID", b"X.Tenant.ID", b"X-Tenant-Id-"])
def test_R5_the_underscore_twin_is_ignored(server: Server, name: bytes) -> None:
    assert ask(server, "header", HOST, name + b": beta") == (400, "tenant_missing")
    assert ask(server, "header", HOST, b"X-Tenant-ID: acme", name + b": beta") == ACME


@pytest.mark.parametrize(
    "line",
    [
        b"X-Tenant-ID : acme",
        b" X-Tenant-ID: acme",
        b"X-Tenant-ID: acme\r\n beta",
        b"X-Tenant-ID: ac\x00me",
        b"X-Tenant-ID: acme\x00",
        b"X-Tenant-ID: \x00",
        b"X-Tenant-ID: ac\tme",
        b"X-Tenant-ID: acme\x0b",
        b"X-Tenant-ID: acme\x7f",
        b"X-Tenant-ID\x00: acme",
        b"X-Tenant-ID acme",
    ],
)
def test_R16_broken_header_lines_and_control_characters_never_name_a_tenant_wrongly(
    server: Server, line: bytes
) -> None:
    answer = ask(server, "header", HOST, line)
    assert is_refused(answer) or answer == (400, "tenant_missing"), answer


@pytest.mark.parametrize("value", [b"acme\t", b"acme ", b" \t acme \t "])
def test_R16_white_space_around_a_value_is_no_part_of_it(server: Server, value: bytes) -> None:
    assert ask(server, "header", HOST, b"X-Tenant-ID:" + value) == ACME


@pytest.mark.parametrize("rest", [b"\r\n\t", b"\nX-Other: x", b"\r\n \r\n\t"])
def test_R16_what_a_parser_may_take_for_the_end_of_a_line_adds_nothing_to_the_tenant(
    server: Server, rest: bytes
) -> None:
    answer = ask(server, "header", HOST, b"X-Tenant-ID: acme" + rest)
    assert is_refused(answer) or answer == ACME


@pytest.mark.parametrize("length", [49, 64, 8_000, 70_000, 1_000_000])
def test_R18_a_header_that_is_too_long_is_refused_and_nowhere_written_down(
    server: Server, length: int
) -> None:
    answer = ask(server, "header", HOST, b"X-Tenant-ID: " + b"a" * length)
    assert is_refused(answer), answer
    assert "aaaaaaaa" not in server.log.read_text()


# -- the host --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["subdomain", "proxied", "chain"])
def test_R6_R26_two_hosts_are_refused(server: Server, which: str) -> None:
    for second in (b"Host: beta.ex.com", b"Host: acme.ex.com", b"host: acme.ex.com", b"Host:"):
        for lines in ([b"Host: acme.ex.com", second], [second, b"Host: acme.ex.com"]):
            assert is_refused(ask(server, which, *lines)), lines


def test_R26_a_pseudo_header_of_http_2_is_no_host(server: Server) -> None:
    for lines in (
        [b":authority: beta.ex.com", b"Host: acme.ex.com"],
        [b"Host: acme.ex.com", b":authority: beta.ex.com"],
    ):
        assert is_refused(ask(server, "subdomain", *lines))


def test_R7_a_request_without_a_host_is_refused_and_the_servers_address_is_none(
    server: Server,
) -> None:
    for version in (b"1.0", b"1.1"):
        assert is_refused(ask(server, "subdomain", version=version))
        assert is_refused(ask(server, "subdomain", b"Host:", version=version))
        assert is_refused(ask(server, "subdomain", b"Host:  ", version=version))
    assert ask(server, "subdomain", b"Host: acme.ex.com", version=b"1.0") == ACME


@pytest.mark.parametrize(
    "value",
    [
        b"acme@beta.ex.com",
        b"acme.ex.com@beta.ex.com",
        b"beta.ex.com/acme.ex.com",
        b"beta.ex.com/.acme.ex.com",
        b"beta.ex.com?.acme.ex.com",
        b"beta.ex.com#.acme.ex.com",
        b"http://acme.ex.com",
        b"acme.ex.com, beta.ex.com",
        b"acme.ex.com beta.ex.com",
        b"beta.ex.com\\.acme.ex.com",
        b"acme%2eex.com",
        b"acme.ex.com..",
        b"acme..ex.com",
        b".acme.ex.com",
        b"acme.ex.com:",
        b"acme.ex.com:99999",
        b"acme.ex.com:http",
        b"acme.ex.com:80:80",
        b"acme.ex.com:-80",
    ],
)
def test_R7_R9_a_malformed_host_is_refused(server: Server, value: bytes) -> None:
    assert is_refused(ask(server, "subdomain", b"Host: " + value))


@pytest.mark.parametrize(
    "value", [b"acme.ex.com", b"ACME.Ex.Com.:8080", b"Acme.ex.com.", b"acme.ex.com:1"]
)
def test_R9_case_one_dot_and_the_port_make_no_difference(server: Server, value: bytes) -> None:
    for _ in range(2):
        assert ask(server, "subdomain", b"Host: " + value) == ACME


@pytest.mark.parametrize(
    "value",
    [
        b"acme.evil.ex.com",
        b"acme.www.ex.com",
        b"acme.ex.com.evil.org",
        b"acme.ex.com.ex.org",
        b"evilex.com",
        b"acme.evilex.com",
        b"acme",
        b"ex.com",
        b"www.ex.com",
        b"127.0.0.1",
        b"127.0.0.1:8000",
        b"[::1]",
        b"[::1]:8000",
        b"localhost:8000",
        b"nobody.ex.com",
        b"off.ex.com",
    ],
)
def test_R10_R11_a_host_that_is_nobodys_is_not_found(server: Server, value: bytes) -> None:
    assert ask(server, "subdomain", b"Host: " + value) == NOT_FOUND


def test_R7_a_target_in_absolute_form_names_no_tenant(server: Server) -> None:
    target = b"http://beta.ex.com/me"
    assert ask(server, "subdomain", b"Host: acme.ex.com", target=target)[1] != "beta"
    for lines in ([HOST], [HOST, b"X-Tenant-ID: acme"]):
        assert ask(server, "path", *lines, target=b"http://beta.ex.com/x")[0] == 404


# -- identifiers that look like others -------------------------------------------------------------

LOOKALIKES = [
    "ⓐcme".encode(),
    "ａｃｍｅ".encode(),
    "acme\u200d".encode(),
    "ſlack".encode(),
    "\u212aelvin".encode(),
    "аcme".encode(),  # a Cyrillic а
    b"acm\xe9",
    b"\xc0\xaeacme",
]


@pytest.mark.parametrize("name", LOOKALIKES, ids=ascii)
def test_R12_lookalikes_are_refused_in_header_host_and_path(server: Server, name: bytes) -> None:
    escaped = b"".join(b"%%%02x" % byte for byte in name)
    assert is_refused(ask(server, "header", HOST, b"X-Tenant-ID: " + name))
    assert is_refused(ask(server, "subdomain", b"Host: " + name + b".ex.com"))
    assert is_refused(ask(server, "path", HOST, target=b"/t/" + escaped + b"/x"))
    assert is_refused(ask(server, "query", HOST, target=b"/me?tenant=" + escaped))


@pytest.mark.parametrize("name", [b"ACME", b"Acme"])
def test_R12_an_identifier_in_upper_case_is_refused_and_not_lowered(
    server: Server, name: bytes
) -> None:
    assert ask(server, "header", HOST, b"X-Tenant-ID: " + name) == INVALID
    assert ask(server, "path", HOST, target=b"/t/" + name) == INVALID


@pytest.mark.parametrize("name", [b"xn--acme", b"xn--bcher-kva", b"xn--80ak6aa92e", b"xn--a"])
def test_R13_punycode_is_no_identifier(server: Server, name: bytes) -> None:
    assert ask(server, "subdomain", b"Host: " + name + b".ex.com") == INVALID


# -- the path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"/t/acme", b"/t/acme/", b"/t/acme/x", b"/t/%61cme/x?t=beta"])
def test_the_segment_behind_the_prefix_names_the_tenant(server: Server, target: bytes) -> None:
    assert ask(server, "path", HOST, b"X-Tenant-ID: beta", target=target) == ACME


@pytest.mark.parametrize(
    "target",
    [
        b"/t/acme%2f..%2fbeta/x",
        b"/t/acme%2F..%2Fbeta",
        b"/t/acme%2f",
        b"/t/%2e%2e%2facme",
        b"/t/acme%5cbeta",
        b"/t/acme%252f..%252fbeta",
    ],
)
def test_R14_an_encoded_slash_makes_the_path_invalid(server: Server, target: bytes) -> None:
    assert ask(server, "path", HOST, target=target) == INVALID


@pytest.mark.parametrize(
    "target",
    [
        b"//t/acme",
        b"/t//acme",
        b"/t/./acme",
        b"/t/../acme",
        b"/T/acme",
        b"/./t/acme",
        b"/x/../t/acme",
        b"/%74/acme",
        b"/t%2facme",
        b"/t/",
        b"/t",
        b"/",
        b"///",
        b"/t;x/acme",
        b"/t\\acme",
    ],
)
def test_R15_a_path_that_is_almost_right_never_names_the_tenant(
    server: Server, target: bytes
) -> None:
    assert is_refused(answer := ask(server, "path", HOST, target=target)) or answer == NOT_FOUND


@pytest.mark.parametrize(
    "segment",
    [
        *(b"acme%00", b"%00acme", b"acme%0a", b"acme%0d%0a", b"acme%09", b"acme%20", b"acme%7f"),
        *(b"acme%", b"acme%zz", b"acme+", b"acme%c2%a0"),
    ],
)
def test_R16_control_characters_in_a_path_are_refused(server: Server, segment: bytes) -> None:
    for target in (b"/t/" + segment, b"/t/" + segment + b"/x"):
        assert is_refused(ask(server, "path", HOST, target=target))


def test_R18_a_path_that_is_too_long_is_refused(server: Server) -> None:
    for length in (49, 64, 30_000):
        assert ask(server, "path", HOST, target=b"/t/" + b"a" * length) == INVALID


@pytest.mark.parametrize(
    ("target", "open_"),
    [
        (b"/health", True),
        (b"/health?x=/t/acme", True),
        (b"/healthcare", False),
        (b"/health/../t/acme", False),
        (b"/health%2f..%2ft", False),
        (b"//health", False),
        (b"/%68ealth", False),
    ],
)
def test_only_an_excluded_path_is_served_without_a_tenant(
    server: Server, target: bytes, *, open_: bool
) -> None:
    status, said = ask(server, "header", HOST, target=target)
    assert (status, said) == ((200, "-") if open_ else (400, "tenant_missing"))
    assert not open_ or ask(server, "header", HOST, b"X-Tenant-ID: acme", target=target) == (
        200,
        "-",
    )


# -- several sources -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"Host: acme.ex.com", b"X-Tenant-ID: acme"], ACME),
        ([b"Host: acme.ex.com"], ACME),
        ([b"Host: ex.com", b"X-Tenant-ID: acme"], ACME),
        ([b"Host: beta.ex.com", b"X-Tenant-ID: acme"], (403, "tenant_mismatch")),
        ([b"Host: nobody.ex.com", b"X-Tenant-ID: acme"], (403, "tenant_mismatch")),
        ([b"Host: off.ex.com", b"X-Tenant-ID: acme"], (403, "tenant_mismatch")),
        ([b"Host: beta.ex.com", b"X-Vouched: acme"], (403, "tenant_mismatch")),
        ([b"Host: ex.com", b"X-Vouched: acme", b"X-Tenant-ID: beta"], (403, "tenant_mismatch")),
        ([b"Host: acme.ex.com", b"X-Vouched: acme", b"X-Tenant-ID: acme"], ACME),
        ([b"Host: off.ex.com", b"X-Vouched: off"], (403, "tenant_suspended")),
        ([b"Host: off.ex.com", b"X-Tenant-ID: off"], NOT_FOUND),
        ([b"Host: ex.com"], (400, "tenant_missing")),
    ],
)
def test_R19_sources_have_to_agree(
    server: Server, lines: list[bytes], expected: tuple[int, str]
) -> None:
    for _ in range(2):
        assert ask(server, "chain", *lines) == expected


@pytest.mark.parametrize(
    "lines",
    [
        [b"Host: acme.ex.com", b"X-Tenant-ID: ACME"],
        [b"Host: acme.ex.com", b"X-Tenant-ID:"],
        [b"Host: acme.ex.com", b"X-Vouched: acme\xff"],
        [b"Host: acme@ex.com", b"X-Tenant-ID: acme"],
        [b"Host: acme.ex.com:x", b"X-Vouched: acme"],
    ],
)
def test_R21_a_malformed_source_is_refused_although_another_one_is_clear(
    server: Server, lines: list[bytes]
) -> None:
    assert is_refused(ask(server, "chain", *lines))


def test_R20_R22_a_resolver_that_fails_is_503_and_never_passed_over(server: Server) -> None:
    lines = [HOST, b"X-Tenant-ID: acme"]
    assert ask(server, "broken", *lines) == ACME
    assert ask(server, "broken", *lines, b"X-Break: yes") == (503, "resolver_failed")
    log = server.log.read_text()
    assert "'Broken' raised OSError" in log
    assert "canary" not in log


# -- what strangers can tell -----------------------------------------------------------------------


def without_date(answer: bytes) -> bytes:
    changed, count = re.subn(rb"(?im)^date: .*\r\n", b"", answer)
    assert count == 1, answer
    return changed


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"OPTIONS", b"DELETE"])
def test_R24_a_suspended_tenant_is_byte_for_byte_like_an_unknown_one(
    server: Server, method: bytes
) -> None:
    def header(name: bytes) -> bytes:
        answer = server.raw(request("header", HOST, b"X-Tenant-ID: " + name, method=method))[1]
        return without_date(answer)

    def host(name: bytes) -> bytes:
        answer = server.raw(request("subdomain", b"Host: " + name + b".ex.com", method=method))[1]
        return without_date(answer)

    def path(name: bytes) -> bytes:
        target = b"/t/" + name
        return without_date(server.raw(request("path", HOST, target=target, method=method))[1])

    unknown = header(b"nobody")
    assert unknown.startswith(b"HTTP/1.1 404 ")
    for _ in range(2):
        for said in (header, host, path):
            assert said(b"off") == said(b"nobody") == unknown


# -- WebSockets ------------------------------------------------------------------------------------


@contextmanager
def dial(
    server: Server,
    path: str,
    *headers: tuple[str, str],
    which: str = "header",
    host: str | None = None,
    **options: Any,
) -> Iterator[ClientConnection]:
    """Open a WebSocket; ``host`` is only said, the connection goes to the loopback."""
    with connect(
        f"ws://{host or server.host}:{server.port}{path}",
        sock=socket.create_connection((server.host, server.port), timeout=PATIENCE),
        additional_headers=[("x-which", which), *headers],
        open_timeout=PATIENCE,
        close_timeout=1,
        proxy=None,
        **options,
    ) as websocket:
        yield websocket


def refusal(dialled: AbstractContextManager[ClientConnection]) -> tuple[int, str]:
    """Return the status and the code with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused, dialled:
        raise AssertionError("accepted")
    answer = refused.value.response
    body = json.loads(answer.body or b"")
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    return answer.status_code, body["code"]


def close_code(websocket: ClientConnection) -> int | None:
    """Read until the socket is closed; return the code of the close that was received."""
    try:
        while True:
            websocket.recv(timeout=PATIENCE)
    except ConnectionClosed as closed:
        return None if closed.rcvd is None else closed.rcvd.code


def tenant(name: str) -> tuple[str, str]:
    return "x-tenant-id", name


CONFLICTS: list[tuple[dict[str, Any], tuple[int, str]]] = [
    ({"headers": [tenant("acme"), tenant("beta")]}, INVALID),
    ({"headers": [tenant("acme"), tenant("acme")]}, INVALID),
    ({"headers": [tenant("acme, beta")]}, INVALID),
    ({"headers": [tenant("nobody")]}, NOT_FOUND),
    ({"headers": [tenant("off")]}, NOT_FOUND),
    ({}, (400, "tenant_missing")),
    (
        {"which": "chain", "host": "beta.ex.com", "headers": [tenant("acme")]},
        (403, "tenant_mismatch"),
    ),
    ({"which": "subdomain", "host": "acme.evil.ex.com"}, NOT_FOUND),
    (
        {"which": "query", "path": "/idle?tenant=beta", "headers": [tenant("acme")]},
        (403, "tenant_mismatch"),
    ),
    ({"which": "query", "path": "/idle?tenant=ACME"}, INVALID),
    (
        {"which": "query", "subprotocols": ["tenant.beta"], "headers": [tenant("acme")]},
        (403, "tenant_mismatch"),
    ),
    ({"which": "path", "path": "/t/acme%2f..%2fbeta"}, INVALID),
    ({"which": "path", "path": "/idle"}, NOT_FOUND),
    (
        {"which": "broken", "headers": [tenant("acme"), ("x-break", "yes")]},
        (503, "resolver_failed"),
    ),
]


@pytest.mark.parametrize(("asked", "expected"), CONFLICTS, ids=lambda value: str(value)[:60])
def test_R25_a_handshake_without_one_clear_tenant_is_refused_with_the_same_status(
    server: Server, asked: dict[str, Any], expected: tuple[int, str]
) -> None:
    asked = {"path": "/idle", "headers": [], **asked}
    path, headers = asked.pop("path"), asked.pop("headers")
    assert refusal(dial(server, path, *headers, **asked)) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"headers": [tenant("acme")]},
        {"which": "subdomain", "host": "acme.ex.com"},
        {"which": "chain", "host": "acme.ex.com", "headers": [tenant("acme")]},
        {"which": "query", "path": "/idle?tenant=acme", "headers": [tenant("acme")]},
        {"which": "query", "subprotocols": ["tenant.acme"]},
    ],
    ids=lambda value: str(value)[:60],
)
def test_R25_the_tenant_is_fixed_for_the_life_of_the_socket(
    server: Server, asked: dict[str, Any]
) -> None:
    asked = {"path": "/idle", "headers": [], **asked}
    path, headers = asked.pop("path"), asked.pop("headers")
    with dial(server, path, *headers, **asked) as websocket:
        assert websocket.recv(timeout=PATIENCE) == "acme"
        for said in ("x-tenant-id: beta", "beta", '{"tenant": "beta"}'):
            with dial(server, "/idle", tenant("beta")) as other:
                assert other.recv(timeout=PATIENCE) == "beta"
                websocket.send(said)
                assert websocket.recv(timeout=PATIENCE) == "acme"


@pytest.fixture
def customer(servers: dict[str, Server]) -> str:
    """A tenant of this test alone."""
    name = f"customer-{next(CUSTOMERS)}"
    command(servers["h11"], "create", name)
    return name


@pytest.mark.parametrize("suspender", sorted(KINDS))
@pytest.mark.parametrize("path", ["/idle", "/busy", "/thinking"])
def test_R25_suspension_closes_an_open_socket_in_this_process_and_in_the_other(
    server: Server, servers: dict[str, Server], customer: str, path: str, suspender: str
) -> None:
    with dial(server, path, tenant(customer)) as websocket:
        websocket.recv(timeout=PATIENCE)
        with dial(server, "/idle", tenant("beta")) as other:
            other.recv(timeout=PATIENCE)
            command(servers[suspender], "suspend", customer)
            assert close_code(websocket) == 1008
            other.send("still there?")
            assert other.recv(timeout=PATIENCE) == "beta"
    assert refusal(dial(server, path, tenant(customer))) == NOT_FOUND


def test_R25_many_sockets_of_one_tenant_are_all_closed(server: Server, customer: str) -> None:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(dial(server, path, tenant(customer)))
            for path in ("/idle", "/thinking") * 10
        ]
        for websocket in sockets:
            websocket.recv(timeout=PATIENCE)
        command(server, "suspend", customer)
        assert [close_code(websocket) for websocket in sockets] == [1008] * len(sockets)


def counts(server: Server) -> dict[str, int]:
    answer = httpx.post(f"{server.url}/admin/counts", timeout=PATIENCE, trust_env=False)
    numbers: dict[str, int] = answer.json()
    return numbers


def test_R25_a_client_that_reads_nothing_is_cut_off_and_holds_nobody_up(
    server: Server, servers: dict[str, Server], customer: str
) -> None:
    second = f"{customer}-2"
    command(server, "create", second)
    before = counts(server)["busy"]
    with ExitStack() as stack:

        def open_(path: str, name: str, **options: Any) -> ClientConnection:
            return stack.enter_context(dial(server, path, tenant(name), **options))

        open_("/busy", customer, max_queue=1, compression=None)
        # Its buffers fill, until the application waits in `send`.
        sent = 0
        while sent != (sent := counts(server)["sent"]) or not sent:
            time.sleep(0.5)
        assert counts(server)["busy"] == before + 1
        good, other = open_("/idle", customer), open_("/idle", second)
        good.recv(timeout=PATIENCE)
        other.recv(timeout=PATIENCE)
        command(server, "suspend", customer)
        assert close_code(good) == 1008
        (elsewhere,) = [one for one in servers.values() if one is not server]
        command(elsewhere, "suspend", second)
        assert close_code(other) == 1008
        deadline = time.monotonic() + PATIENCE
        while counts(server)["busy"] > before:
            assert time.monotonic() < deadline, "the application still waits for its client"
            time.sleep(0.05)


def test_nothing_went_wrong_in_the_servers(servers: dict[str, Server]) -> None:
    """The last of this module: what the tests before it made the servers log."""
    for server in servers.values():
        assert server.process.poll() is None
        log = server.log.read_text()
        assert "Traceback" not in log, log
