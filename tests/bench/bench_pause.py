#!/usr/bin/env python3
"""Do requests notice that blocks are cut? p99 of requests at half load while windows are cut, beside p99 of the same load before that, and the memory that cutting takes.

    make bench-pause                     medians of five runs
    make bench-pause BENCH_SCALE=small   one run with few series

Server on one core, sender on another. Windows that are over are filled first; they are due all at once, --head.cut-delay after their last sample. Meanwhile samples of
known series come at half of the rate that the server can take: first for some seconds without a cut, then for as long from when the first of the windows is cut and the others follow.
"""
import re
import sys
import threading
import time

import bench_lib as lib
from bench_lib import SMALL, Server, median, say, show, write

WINDOWS, SERIES, ROUNDS = (3, 5_000, 4) if SMALL else (6, 300_000, 4)
LIVE = 5_000 if SMALL else 200_000
DELAY_S = 6 if SMALL else 30
SECONDS = 2 if SMALL else 6
P99_GOAL, MEMORY_GOAL = 1.3, 1.05
RANGE_S = 7200


def cuts(server):
    return len(re.findall(r'msg="window cut"', server.log()))


class Peak:
    """Most resident bytes while it runs."""

    def __init__(self, server):
        self.server, self.most, self.stop = server, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.stop.wait(0.02):
            self.most = max(self.most, self.server.rss())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def measure():
    now = int(time.time())
    with Server("varve", "pause", head_cut__delay=f"{DELAY_S}s", log_level="info", ingest_future="24h") as s:
        start = max(now - 600, now // RANGE_S * RANGE_S) * 1000  # in the window that is not over
        live = {"series": LIVE, "start": start, "step": "1s"}
        write(s, rounds=2, **live)
        rate = write(s, rounds=10, first_round=2, **live)["samples_per_second"]
        half = {**live, "rate": int(rate / 2), "rounds": max(2, int(rate / 2 * SECONDS / LIVE))}
        for k in range(WINDOWS):
            write(s, series=SERIES, rounds=ROUNDS, start=(now // RANGE_S - 2 - k) * RANGE_S * 1000, rw=2)
        filled = time.monotonic()
        before = s.rss()
        first = write(s, first_round=12, **half)
        if cuts(s):
            raise SystemExit(f"a window was cut within {time.monotonic() - filled:.0f} s, before the quiet part was over")
        lib.procs.wait_for(lambda: cuts(s), DELAY_S + 60, "the first window is cut", every=0.02)
        with Peak(s) as peak:
            second = write(s, first_round=12 + half["rounds"], **half)
        done = cuts(s) - 1
        return {"quiet": first["latency_ms"]["p99"], "cutting": second["latency_ms"]["p99"], "cuts": done, "memory": peak.most / before, "rate": second["samples_per_second"]}


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("bench-pause")
    got = []
    try:
        for run in range(lib.RUNS):
            g = measure()
            got.append(g)
            say(f"  run {run + 1}  p99 {show(g['quiet'])} ms without a cut, {show(g['cutting'])} ms while {g['cuts']} windows of {SERIES:,} series were cut; memory {g['memory'] - 1:+.1%}")
    finally:
        lib.end()
    ratio, memory = median([g["cutting"] / g["quiet"] for g in got]), median([g["memory"] for g in got])
    met = {"p99": ratio <= P99_GOAL, "memory": memory <= MEMORY_GOAL}
    say(f"\np99 while cutting is {ratio:.2f} of the p99 without: {'met' if met['p99'] else 'NOT MET'}, goal ≤ {P99_GOAL}")
    say(f"resident memory while cutting {memory - 1:+.1%}: {'met' if met['memory'] else 'NOT MET'}, goal ≤ {MEMORY_GOAL - 1:+.0%}")
    lib.save("bench-pause", {"ratio": ratio, "memory": memory, "met": met, "raw": got, "goals": {"p99": P99_GOAL, "memory": MEMORY_GOAL},
                             "quiet_ms": median([g["quiet"] for g in got]), "cutting_ms": median([g["cutting"] for g in got]), "windows": WINDOWS, "series": SERIES})
    return 0 if all(met.values()) or SMALL else 1


if __name__ == "__main__":
    sys.exit(main())
