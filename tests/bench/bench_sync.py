#!/usr/bin/env python3
"""What does it cost to acknowledge after fdatasync? varve with --wal.sync=ack beside --wal.sync=os, and the latency of ack at half load.

    make bench-sync                     medians of five interleaved runs
    make bench-sync BENCH_SCALE=small   one run with few series

The disk's own fdatasync is measured in the same run and directory: 64 KiB written into allocated space and synced, one after the other, without other load. The
throughput goal holds where its p50 is 0.3 ms or less; where it is more, a connection that waits for a sync can't send meanwhile, and the bound that follows from
that is printed: connections x samples a request / (p50 + time of a request under os).
"""
import os
import sys
import time

import bench_lib as lib
from bench_lib import SMALL, Server, median, say, show, write

SERIES, ROUNDS = (10_000, 10) if SMALL else (200_000, 20)
CONNECTIONS = (4, 16) if SMALL else (4, 16, 64)
BATCH = 2000
HALF_SECONDS = 3 if SMALL else 20
LEAST_P50_MS = 0.3
THROUGHPUT_COST = 0.10


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


def fdatasync_ms(n=200 if SMALL else 1000):
    path = lib.DATA / f"fdatasync-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    piece = os.urandom(65536)
    out = []
    try:
        os.posix_fallocate(fd, 0, n * len(piece))
        os.fsync(fd)
        for i in range(n):
            os.pwrite(fd, piece, i * len(piece))
            began = time.perf_counter_ns()
            os.fdatasync(fd)
            out.append((time.perf_counter_ns() - began) / 1e6)
    finally:
        os.close(fd)
        os.unlink(path)
    return out


def start_ms(rounds):
    return (int(time.time()) - (rounds + 3) * lib.STEP_S) // lib.STEP_S * lib.STEP_S * 1000


def throughput(mode, connections):
    start = start_ms(ROUNDS)
    with Server("varve", "sync", wal_sync=mode) as s:
        shape = {"series": SERIES, "start": start, "connections": connections, "batch": BATCH}
        write(s, rounds=2, **shape)
        syncs = s.metric("varve_wal_fsyncs_total")
        got = write(s, first_round=2, rounds=ROUNDS, **shape)
        return {"rate": got["samples_per_second"], "p50": got["latency_ms"]["p50"], "p99": got["latency_ms"]["p99"],
                "requests_per_sync": got["acked"] / max(1, s.metric("varve_wal_fsyncs_total") - syncs)}


def half_load(rate):
    rounds = max(2, int(rate / 2 * HALF_SECONDS / SERIES))
    start = start_ms(rounds)
    with Server("varve", "half", wal_sync="ack") as s:
        shape = {"series": SERIES, "start": start, "batch": BATCH}
        write(s, rounds=2, **shape)
        got = write(s, first_round=2, rounds=rounds, rate=int(rate / 2), **shape)
        return {"rate": got["samples_per_second"], "p50": got["latency_ms"]["p50"], "p99": got["latency_ms"]["p99"], "max": got["latency_ms"]["max"]}


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("bench-sync")
    syncs, half = [], []
    raw = {(c, m): [] for c in CONNECTIONS for m in ("ack", "os")}
    try:
        for run in range(lib.RUNS):
            syncs += fdatasync_ms()
            for c in CONNECTIONS:
                for mode in ("ack", "os") if run % 2 == 0 else ("os", "ack"):
                    got = throughput(mode, c)
                    raw[c, mode].append(got)
                    say(f"  run {run + 1}  {c:>3} connections, {mode:<3}  {got['rate']:,.0f} samples/s, p99 {show(got['p99'])} ms")
            half.append(half_load(median([g["rate"] for g in raw[CONNECTIONS[0], "ack"]])))
            say(f"  run {run + 1}  ack at half load: {half[-1]['rate']:,.0f} samples/s, p99 {show(half[-1]['p99'])} ms")
    finally:
        lib.end()
    p50, p99 = quantile(syncs, 0.5), quantile(syncs, 0.99)
    say(f"\nfdatasync of this disk: p50 {show(p50)} ms, p99 {show(p99)} ms ({len(syncs):,} of 64 KiB)")
    out, rows = [["connections", "ack samples/s", "os samples/s", "cost", "ack p99 ms", "os p99 ms", "requests a sync", ""]], []
    failed = False
    for c in CONNECTIONS:
        m = {mode: {k: median([g[k] for g in raw[c, mode]]) for k in raw[c, mode][0]} for mode in ("ack", "os")}
        cost = 1 - m["ack"]["rate"] / m["os"]["rate"]
        bound = None
        if p50 <= LEAST_P50_MS:
            met = cost <= THROUGHPUT_COST
            verdict = f"{'met' if met else 'NOT MET'}: goal ≤ {THROUGHPUT_COST:.0%}"
            failed |= not met
        else:
            met, bound = None, c * BATCH / ((p50 + m["os"]["p50"]) / 1000)
            verdict = f"no verdict: fdatasync p50 above {LEAST_P50_MS} ms; bound {bound:,.0f} samples/s"
        out.append([str(c), show(m["ack"]["rate"], 0), show(m["os"]["rate"], 0), f"{cost:.1%}", show(m["ack"]["p99"]), show(m["os"]["p99"]),
                    show(m["ack"]["requests_per_sync"]), verdict])
        rows.append({"connections": c, "ack": m["ack"], "os": m["os"], "cost": cost, "met": met, "bound": bound})
    at_half = {k: median([h[k] for h in half]) for k in half[0]}
    goal = 2 * p99 + 5
    met = at_half["p99"] <= goal
    failed |= not met
    for line in lib.table(out):
        say(line)
    say(f"ack at half load ({at_half['rate']:,.0f} samples/s): p50 {show(at_half['p50'])} ms, p99 {show(at_half['p99'])} ms: {'met' if met else 'NOT MET'}, "
        f"goal ≤ 2 x fdatasync p99 + 5 ms = {show(goal)} ms")
    lib.save("bench-sync", {"fdatasync_ms": {"p50": p50, "p99": p99, "n": len(syncs)}, "rows": rows, "half": {**at_half, "goal": goal, "met": met}})
    return 1 if failed and not SMALL else 0


if __name__ == "__main__":
    sys.exit(main())
