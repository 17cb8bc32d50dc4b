#!/usr/bin/env python3
"""Is the cost of a sample flat? CPU of varve a sample in the steady state, over the number of series, of connections and of tenants, with churn and with
samples out of order; and resident memory a series with few samples and with a window full.

    make bench-flat                     medians of five interleaved runs
    make bench-flat BENCH_SCALE=small   one run with few series

Server on one core, sender on another. The first two rounds, which bring the series and log their definitions twice, are not counted (with churn new series come
all the time, and count).
"""
import sys

import bench_lib as lib
from bench_lib import SMALL, Server, median, say, show, write

SAMPLES = 100_000 if SMALL else 3_000_000  # of a point, at least
ROUNDS_MIN, ROUNDS_MAX = 2, 200


def rounds_for(series):
    return max(ROUNDS_MIN, min(ROUNDS_MAX, SAMPLES // series))


def points():
    """[(group, greatest ratio between its points, [(label, shape)])]"""
    if SMALL:
        counts, conns, many, tenants, churned = (1_000, 5_000, 20_000), (1, 4, 16), 10_000, 100, 10_000
    else:
        counts, conns, many, tenants, churned = (10_000, 100_000, 1_000_000, 4_000_000), (1, 4, 64, 1_000), 500_000, 10_000, 500_000
    # A batch for every connection in every round, and the same requests whatever their number.
    small_batch = max(1, many // max(conns) // 2)
    return [
        ("series", 1.6, [(f"{n:,} series", {"series": n}) for n in counts]),
        ("connections", 1.3, [(f"{n:,} connection{'s' if n > 1 else ''}", {"series": many, "connections": n, "batch": small_batch}) for n in conns]),
        ("tenants", 1.5, [(f"{n:,} tenant{'s' if n > 1 else ''}", {"series": tenants * 100, "tenants": n, "connections": 64, "batch": 100}) for n in (1, tenants)]),
        ("churn", 1.5, [(f"{n} % of series replaced a minute", {"series": churned, "churn": n}) for n in (0, 5)]),
        ("disorder", 3, [("in order", {"series": churned, "out_of_order": 0}), ("half of the samples change places with their next", {"series": churned, "out_of_order": 50}),
                         ("all of them", {"series": churned, "out_of_order": 100}), ("series in another order each round", {"series": churned, "order": "shuffled"})]),
    ]


PLAIN_FIRST = ("tenants", "churn", "disorder")  # held against their first point; elsewhere against the cheapest
RESIDENT_SERIES, RESIDENT_MOST = (20_000 if SMALL else 1_000_000), 400
RESIDENT_SAMPLES = (9, 60) if SMALL else (9, 480)  # 480 fill a window of two hours


def resident(samples):
    """Bytes above an empty process, with so many samples of each series, all in one window."""
    start = (int(lib.time.time()) // 7200 - 1) * 7200 * 1000
    with Server("varve", "resident") as s:
        empty = s.rss()
        got = write(s, series=RESIDENT_SERIES, rounds=samples, start=start, memory="2GiB")
        return {"resident": (s.rss() - empty) / RESIDENT_SERIES, "cpu": got["server"]["cpu_ns_per_sample"] / 1e3}


def measure(shape):
    steady = rounds_for(shape["series"])
    if "churn" in shape or "out_of_order" in shape:
        steady = max(steady, 8)  # two minutes, and four pairs of rounds
    start = (lib.time.time_ns() // 10**9 - (steady + 3) * lib.STEP_S) // lib.STEP_S * lib.STEP_S * 1000
    with Server("varve", "flat") as s:
        write(s, rounds=2, start=start, **shape)
        got = write(s, first_round=2, rounds=steady, start=start, **shape)
        return {"cpu": got["server"]["cpu_ns_per_sample"] / 1e3, "rate": got["samples_per_second"], "p99": got["latency_ms"]["p99"],
                "resident": got["server"]["rss_bytes_after"] / shape["series"]}


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("bench-flat")
    groups = points()
    raw = {}
    try:
        for run in range(lib.RUNS):
            for group, _, shapes in groups:
                for label, shape in shapes:
                    got = measure(shape)
                    raw.setdefault(group, {}).setdefault(label, []).append(got)
                    say(f"  run {run + 1}  {label:<50} CPU {show(got['cpu'])} µs a sample, {got['rate']:,.0f}/s, p99 {show(got['p99'])} ms")
        memory = {n: resident(n) for n in RESIDENT_SAMPLES}
        for n, got in memory.items():
            say(f"  {RESIDENT_SERIES:,} series with {n} samples each: {show(got['resident'])} resident bytes a series")
    finally:
        lib.end()
    out, rows = [["", "CPU µs a sample", "to the least", "samples/s", "p99 ms", "resident B a series"]], []
    failed = False
    for group, goal, shapes in groups:
        medians = {label: {k: median([g[k] for g in raw[group][label]]) for k in raw[group][label][0]} for label, _ in shapes}
        least = medians[shapes[0][0]]["cpu"] if group in PLAIN_FIRST else min(m["cpu"] for m in medians.values())
        worst = max(m["cpu"] for m in medians.values()) / least
        failed |= worst > goal
        verdict = f"{'met' if worst <= goal else 'NOT MET'}: {worst:.2f}x, goal ≤ {goal:g}x"
        for label, m in medians.items():
            out.append([label, show(m["cpu"]), f"{m['cpu'] / least:.2f}x", show(m["rate"], 0), show(m["p99"]), show(m["resident"], 0)])
        out.append([f"  {group}: {verdict}", "", "", "", "", ""])
        rows.append({"group": group, "goal": goal, "worst": worst, "met": worst <= goal, "points": medians})
    say()
    for line in lib.table(out):
        say(line)
    worst = max(m["resident"] for m in memory.values())
    failed |= worst > RESIDENT_MOST
    full = {"series": RESIDENT_SERIES, "goal": RESIDENT_MOST, "met": worst <= RESIDENT_MOST, "points": {str(n): m["resident"] for n, m in memory.items()}}
    say(f"resident bytes a series, {RESIDENT_SERIES:,} series: " + ", ".join(f"{show(m['resident'])} with {n} samples each" for n, m in memory.items())
        + f": {'met' if full['met'] else 'NOT MET'}, goal ≤ {RESIDENT_MOST}")
    lib.save("bench-flat", {"rows": rows, "resident": full, "raw": raw})
    return 1 if failed and not SMALL else 0


if __name__ == "__main__":
    sys.exit(main())
