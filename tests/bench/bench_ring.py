#!/usr/bin/env python3
"""What a ring costs: a router and three ingesters beside one Debian Prometheus that takes the same load alone, in the same run; and the same load on 1, 2 and 4 storing processes.

    make bench-ring                     medians of five interleaved runs
    make bench-ring BENCH_SCALE=small   one run with few series

CPU a client's sample is that of all processes of a ring, from the first request of the steady rounds until they are quiet after the last answer, over the samples that the client sent: a replica costs and counts for nothing.
All servers of a run share one core, the sender has another. Requests between nodes are the router's own count; its memory is looked at after the load, when nothing is on its way.
"""
import shutil
import sys
import time

import bench_lib as lib
from bench_lib import SMALL, STEP_S, median, pin, procs, say, show

SERIES, STEADY = (10_000, 3) if SMALL else (200_000, 8)
CONNECTIONS = 4
FACTORS = {1: 19, 3: 7}  # how much more one Prometheus costs, at least
SPREAD, SPREAD_GOAL = (1, 2, 4), 1.15
ROUTER_RESIDENT = 64 << 20

sys.path.insert(0, str(procs.ROOT / "tests" / "cluster"))
from fleet import Fleet  # noqa: E402  (the path comes first)


class Ring:
    """with Ring(3, factor=1) as r: n storing nodes and a router, all on the servers' core."""

    def __init__(self, n, factor, what):
        self.dir = lib.DATA / f"ring-{what}"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.fleet = Fleet(self.dir, factor, **{"head.cut-delay": "1h", "head.max-age": "12h", "wal.segment-size": "128MiB"})
        self.n = n

    def __enter__(self):
        for _ in range(self.n):
            self.fleet.node(wrap=pin(lib.SERVER_CORE))
        self.router = self.fleet.router(wrap=pin(lib.SERVER_CORE))
        self.fleet.publish(self.fleet.nodes)
        self.fleet.settle()
        self.router.wait_url(self.router.url + "/-/ready")
        return self

    def __exit__(self, *_):
        for p in self.fleet.everybody():
            if p in procs.ALIVE:
                p.kill9()
        shutil.rmtree(self.dir, ignore_errors=True)

    url = property(lambda self: self.router.url)
    pids = property(lambda self: [p.pid for p in self.fleet.everybody()])
    name = "ring"

    def log_tail(self, n):
        return "\n".join(p.log_tail(n) for p in self.fleet.everybody())

    def cpu(self):
        """Of each process, in seconds."""
        return {p.name: time.clock_gettime((~p.pid << 3) | 2) for p in self.fleet.everybody()}


def start_ms():
    return (int(time.time()) - (STEADY + 3) * STEP_S) // STEP_S * STEP_S * 1000


def ring(n, factor, start):
    with Ring(n, factor, f"{n}-{factor}") as r:
        shape = {"series": SERIES, "start": start, "connections": CONNECTIONS}
        lib.write(r, pid=r.pids, rounds=2, **shape)
        before, asked = r.cpu(), r.router.metric("varve_forward_requests_total")
        got = lib.write(r, pid=r.pids, first_round=2, rounds=STEADY, **shape)
        spent = {k: (v - before[k]) * 1e6 / got["samples"] for k, v in r.cpu().items()}
        return {"cpu": got["server"]["cpu_ns_per_sample"] / 1000, "router": spent.pop(r.router.name), "ingester": sum(spent.values()) / n, "rate": got["samples_per_second"],
                "p99": got["latency_ms"]["p99"], "resident": r.router.rss(), "peak": r.router.rss_peak(),
                "requests": (r.router.metric("varve_forward_requests_total") - asked) / got["requests"], "hops": max(p.metric("varve_forward_hops_max") for p in r.fleet.everybody())}


def prometheus(start):
    with lib.Server("prometheus", "ring") as s:
        shape = {"series": SERIES, "start": start, "connections": CONNECTIONS}
        lib.write(s, rounds=2, **shape)
        got = lib.write(s, first_round=2, rounds=STEADY, **shape)
        return {"cpu": got["server"]["cpu_ns_per_sample"] / 1000, "rate": got["samples_per_second"], "p99": got["latency_ms"]["p99"]}


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("bench-ring")
    rings, spread, alone = {f: [] for f in FACTORS}, {n: [] for n in SPREAD}, []
    try:
        for run in range(lib.RUNS):
            start = start_ms()
            alone.append(prometheus(start))
            for factor, got in rings.items():
                got.append(ring(3, factor, start))
                say(f"  run {run + 1}  router + 3 ingesters, factor {factor}: {show(got[-1]['cpu'])} µs a sample; Prometheus alone {show(alone[-1]['cpu'])}")
            for n in SPREAD if run % 2 == 0 else SPREAD[::-1]:
                spread[n].append(ring(n, 1, start))
                say(f"  run {run + 1}  router + {n} ingesters, factor 1: {show(spread[n][-1]['cpu'])} µs a sample")
    finally:
        lib.end()

    def medians(got):
        return {k: median([g[k] for g in got]) for k in got[0]}

    p, failed = medians(alone), False
    rows = [["", "CPU a sample, µs", "router", "each ingester", "Prometheus alone", "ratio", "peer requests a request", "hops", "router resident MiB", "samples/s", "p99 ms", ""]]
    results = []
    for factor, goal in FACTORS.items():
        m = medians(rings[factor])
        ratio = median([a["cpu"] / r["cpu"] for a, r in zip(alone, rings[factor])])
        met = ratio >= goal and m["requests"] <= 3 and m["hops"] == 1 and m["resident"] <= ROUTER_RESIDENT
        failed |= not met
        rows.append([f"router + 3 ingesters, factor {factor}", show(m["cpu"]), show(m["router"]), show(m["ingester"]), show(p["cpu"]), f"{ratio:.1f}x, goal ≥ {goal}x", show(m["requests"]), f"{m['hops']:.0f}",
                     show(m["resident"] / 1048576), show(m["rate"], 0), show(m["p99"]), "met" if met else "NOT MET"])
        results.append({"factor": factor, "goal": goal, "ratio": ratio, "met": met, **m})
    base, out = medians(spread[SPREAD[0]])["cpu"], []
    for n in SPREAD:
        m = medians(spread[n])
        times = m["cpu"] / base
        met = times <= SPREAD_GOAL
        failed |= not met
        rows.append([f"router + {n} ingesters, factor 1", show(m["cpu"]), show(m["router"]), show(m["ingester"]), "", f"{times:.2f}x of one, goal ≤ {SPREAD_GOAL}x", show(m["requests"]),
                     f"{m['hops']:.0f}", show(m["resident"] / 1048576), show(m["rate"], 0), show(m["p99"]), "met" if met else "NOT MET"])
        out.append({"nodes": n, "times": times, "met": met, **m})
    say()
    for line in lib.table(rows):
        say(line)
    lib.save("bench-ring", {"series": SERIES, "prometheus": p, "factors": results, "spread": out, "spread_goal": SPREAD_GOAL, "versions": lib.versions()})
    return 1 if failed and not SMALL else 0


if __name__ == "__main__":
    sys.exit(main())
