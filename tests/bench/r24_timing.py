"""Row R24 by the clock: can a stranger tell what is not served from what does not exist?

Asks a real uvicorn with a store on SQLite for unknown tenants and for suspended, provisioning,
archived and failed ones, in random order: first for names that nobody asked for before (cold), then
at once for the same names again (warm). ``unknown`` is there twice, as two groups that differ in
nothing: what differs between those two is chance.

The row holds if the medians of every group differ from that of the first by less than one request
differs from the next (the distance of the quartiles). The exit status says so.

    python tests/bench/r24_timing.py [--names 400] [--seed 1]

By hand, on a machine that does nothing else; it is no part of the suite, where no test looks at a
clock. What the suite holds instead: the same bytes, and the same number of look-ups in the store.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_lowercase
from time import perf_counter
from uuid import uuid4

from tenancy_core import Tenancy, TenancyConfig, Tenant, TenantStatus
from tenancy_core.tenant import Placement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.server import ROOT, serve

HIDDEN = (
    TenantStatus.SUSPENDED,
    TenantStatus.PROVISIONING,
    TenantStatus.ARCHIVED,
    TenantStatus.FAILED,
)


@dataclass
class Group:
    """Names of one kind, and how long each answer took, in microseconds."""

    title: str
    names: list[str]
    times: dict[str, list[float]] = field(default_factory=lambda: {"cold": [], "warm": []})


def make_names(count: int) -> list[str]:
    """Return names of one length, so that nothing but their tenant differs."""
    return ["x" + "".join(random.choices(ascii_lowercase, k=12)) for _ in range(count)]


async def keep(url: str, groups: list[Group]) -> None:
    """Write the records of the groups that exist."""
    async with Tenancy(TenancyConfig(database_url=url)) as tenancy:
        for group, status in zip(groups, HIDDEN, strict=True):
            now = datetime.now(UTC)
            async with tenancy.parts.store.transaction() as transaction:
                for name in group.names:
                    await transaction.create(
                        Tenant(
                            id=uuid4(),
                            identifier=name,
                            name=name,
                            status=status,
                            created_at=now,
                            updated_at=now,
                            isolation="database",
                            placement=Placement(name=f"tenant_{name}"),
                        )
                    )


def measure(host: str, port: int, groups: list[Group]) -> None:
    """Ask for every name twice in a row, in random order, over one connection."""
    connection = http.client.HTTPConnection(host, port)
    expected: bytes | None = None
    todo = [(group, name) for group in groups for name in group.names]
    random.shuffle(todo)
    for number, (group, name) in enumerate(todo):
        headers = {
            "Host": f"{name}.ex.com",
            "X-Which": "proxied",
            # Each name comes from an address of its own: no flood is limited.
            "X-Forwarded-For": ".".join(str(part) for part in (number + 2**24).to_bytes(4, "big")),
        }
        for phase in ("cold", "warm"):
            began = perf_counter()
            connection.request("GET", "/me", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            group.times[phase].append((perf_counter() - began) * 1e6)
            expected = expected or body
            if answer.status != 404 or body != expected:
                raise SystemExit(f"{group.title}: {answer.status} {body!r}")
    connection.close()


def judge(groups: list[Group]) -> bool:
    """Print the medians; return whether none stands out."""
    good = True
    first = groups[0]
    for phase in ("cold", "warm"):
        quartiles = statistics.quantiles(first.times[phase], n=4)
        noise = quartiles[2] - quartiles[0]
        print(f"\n{phase}: median of {len(first.names)} names, difference to the first group")
        for group in groups:
            median = statistics.median(group.times[phase])
            difference = median - quartiles[1]
            stands_out = abs(difference) >= noise
            good = good and not stands_out
            print(
                f"  {group.title:14} {median:8.1f} µs {difference:+8.1f} µs"
                + ("   STANDS OUT" if stands_out else "")
            )
        print(f"  one request differs from the next by {noise:.1f} µs (distance of the quartiles)")
    return good


def main() -> None:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--names", type=int, default=400, help="per group")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object as well")
    options = parser.parse_args()
    random.seed(options.seed)
    hidden = [Group(status.value, make_names(options.names)) for status in HIDDEN]
    groups = [Group(title, make_names(options.names)) for title in ("unknown", "unknown again")]
    groups += hidden
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{folder}/data/control.db"
        asyncio.run(keep(url, hidden))
        with serve(
            "threats_r:app",
            Path(folder),
            environment={"TENANCY_DATABASE_URL": url},
            arguments=("--no-proxy-headers",),
            app_dir=ROOT / "tests" / "integration" / "apps",
        ) as server:
            # The first requests of a process pay for what the later ones share.
            measure(server.host, server.port, [Group("warm-up", make_names(100))])
            measure(server.host, server.port, groups)
    good = judge(groups)
    if options.json:
        medians = {
            phase: {group.title: statistics.median(group.times[phase]) for group in groups}
            for phase in ("cold", "warm")
        }
        print(json.dumps({"names": options.names, "median_us": medians, "holds": good}))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
