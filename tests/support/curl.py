"""What the documentation needs of ``curl``, for machines that have none."""

from __future__ import annotations

import argparse
import re
import sys
from urllib.parse import urlsplit

import httpx


def main(arguments: list[str]) -> int:
    """Make one request and print the answer as curl does."""
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("-i", action="store_true")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-X", default=None)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", default=None)
    parser.add_argument("--json", default=None)
    parser.add_argument("-o", default=None)
    parser.add_argument("-w", default="")
    parser.add_argument("url")
    given = parser.parse_args(arguments)
    headers: list[tuple[str, str]] = []
    for line in given.H:
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    parts = urlsplit(given.url if "://" in given.url else f"http://{given.url}")
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", parts.netloc))
    body = given.json if given.json is not None else given.d
    if given.json is not None:
        headers.append(("Content-Type", "application/json"))
    elif body is not None:
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))
    # Like curl: whatever ends in .localhost is this machine (RFC 6761, section 6.3).
    target = parts._replace(scheme="http", netloc=f"127.0.0.1:{parts.port}").geturl()
    method = given.X or ("GET" if body is None else "POST")
    with httpx.Client(trust_env=False, timeout=60) as client:
        client.headers.clear()
        request = client.build_request(method, target, headers=headers, content=body)
        answer = client.send(request)
    if given.i:
        sys.stdout.write(f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}\n")
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in answer.headers.items())
        sys.stdout.write("\n")
    if given.o is None:
        sys.stdout.write(answer.text)
    written = given.w.replace("%{http_code}", str(answer.status_code))
    sys.stdout.write(re.sub(r"\\n", "\n", written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
