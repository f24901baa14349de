"""Times the middleware against the ideal one, interleaved, in one process: ``./dev bench``.

Each round times every subject on the same requests, in a random order; what is compared is what a
subject adds to the bare application of the same round. The figure is the median of the rounds'
ratios, with the interval that holds half of them.

    python tests/bench/middleware.py [--rounds 60] [--requests 4000] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from subjects import SUBJECTS, drive, null, request

if TYPE_CHECKING:
    from subjects import App


def time_requests(app: App, requests: int) -> float:
    """Return the microseconds that a request takes."""
    scopes = [request(number) for number in range(requests)]
    gc.disable()
    began = perf_counter()
    for scope in scopes:
        drive(app, scope)
    took = perf_counter() - began
    gc.enable()
    return took / requests * 1e6


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    first, median, third = statistics.quantiles(values, n=4)
    return first, median, third


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    apps = {name: wrap(null) for name, wrap in SUBJECTS.items()}
    for app in apps.values():
        time_requests(app, options.requests)
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        order = list(apps)
        random.shuffle(order)
        rounds.append({name: time_requests(apps[name], options.requests) for name in order})
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    figures = {
        "bare_us": quartiles([figure["bare"] for figure in rounds]),
        "ideal_adds_us": quartiles([figure["ideal"] - figure["bare"] for figure in rounds]),
        "tenancy_adds_us": quartiles([figure["tenancy"] - figure["bare"] for figure in rounds]),
        "tenancy_to_ideal": quartiles(
            [
                (figure["tenancy"] - figure["bare"]) / (figure["ideal"] - figure["bare"])
                for figure in rounds
            ]
        ),
    }
    if options.json:
        print(
            json.dumps({"python": platform.python_version(), "rounds": options.rounds, **figures})
        )
        return
    print(f"null application, header, warm tenant · Python {platform.python_version()}")
    print(f"{options.rounds} interleaved rounds of {options.requests} requests, median [quartiles]")
    for name, (first, median, third) in figures.items():
        print(f"  {name:17} {median:6.2f}  [{first:.2f} – {third:.2f}]")


if __name__ == "__main__":
    main()
