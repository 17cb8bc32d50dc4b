#!/usr/bin/env python3
"""varve beside Debian's Prometheus: the same remote-write bodies, one core each, one after the other in the same run.

    make bench                      what the table below needs, a few minutes
    tests/bench/bench.py --runs 5   medians of five interleaved runs

CPU is user + system of the server process, from /proc; the server is pinned to one core and the sender to another. Durability beside the numbers:
varve answers after fdatasync, Prometheus from the page cache. Only ratios carry over to other machines.
"""
import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from lib import procs  # noqa: E402  (the path comes first)

STEP_S = 15


def pin(core):
    return ["taskset", "-c", str(core)] if os.cpu_count() > 1 else []


class Prometheus(procs.Prometheus):
    def start(self, timeout=600):
        self.spawn([procs.prometheus_binary(), f"--config.file={self.config_path}", f"--storage.tsdb.path={self.data}", f"--web.listen-address=127.0.0.1:{self.port}",
                    "--web.enable-remote-write-receiver"], cwd=self.dir, wrap=pin(1))
        self.wait_url(self.url + "/-/ready", timeout)
        return self


def settle(server):
    """Until the server has nothing left to do, 3 s at most: what it does after the last answer belongs to the samples, too."""
    last = server.cpu()
    for _ in range(6):
        time.sleep(0.5)
        now = server.cpu()
        if now - last < 0.02:
            return
        last = now


def send(server, series, first_round, rounds, start_ms):
    load = os.path.join(os.path.dirname(procs.varve_binary()), "bench", "query_load")
    argv = [*pin(0), load, "send", f"--url={server.url}", f"--series={series}", f"--rounds={rounds}", f"--first-round={first_round}", f"--step={STEP_S}s",
            f"--start={start_ms}", "--prebuild", "--retry", "--connections=4", "--batch=2000"]
    p = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    p.stdout.readline()  # the bodies are built
    before, begin = server.cpu(), time.monotonic()
    result = json.loads(p.stdout.read().splitlines()[-1])
    if p.wait() != 0 or result["acked"] != result["requests"]:
        raise SystemExit(f"{server.name}: the load failed: {result}")
    wall = time.monotonic() - begin
    settle(server)
    return {"cpu": server.cpu() - before, "wall": wall, "samples": result["samples"]}


def measure(server, series, rounds):
    start_ms = (int(time.time()) - (rounds + 1) * STEP_S) // STEP_S * STEP_S * 1000
    empty = server.rss()
    new = send(server, series, 0, 1, start_ms)
    steady = send(server, series, 1, rounds, start_ms)
    out = {
        "new series, CPU µs": new["cpu"] / series * 1e6,
        "CPU µs a sample": steady["cpu"] / steady["samples"] * 1e6,
        "samples/s while pinned": steady["samples"] / steady["wall"],
        "resident B a series": (server.rss() - empty) / series,
    }
    server.kill9()
    begin = time.monotonic()
    server.start()
    out["kill -9 to ready, s"] = time.monotonic() - begin
    server.kill9()
    return out


def one(kind, directory, series, rounds):
    if kind == "varve":
        server = procs.Varve(directory, flags={"head.cut-delay": "1h", "head.max-age": "6h"}, wrap=pin(1))
        server.start()
    else:
        server = Prometheus(directory).start()
    try:
        return measure(server, series, rounds)
    finally:
        procs.stop_all()
        shutil.rmtree(directory, ignore_errors=True)


LOWER = {"CPU µs a sample": 10, "resident B a series": 3, "kill -9 to ready, s": 5, "new series, CPU µs": None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    procs.raise_open_files()
    procs.Process.poll_s = 0.005
    root = pathlib.Path(tempfile.mkdtemp(prefix="varve-bench-"))
    got = {"varve": [], "prometheus": []}
    version = subprocess.run([procs.prometheus_binary(), "--version"], capture_output=True, text=True, check=False)
    words = (version.stdout + version.stderr).split()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}; Prometheus {words[2] if len(words) > 2 else '?'}; {args.series:,} series, 10 labels, "
          f"2,000 series a request, 4 connections, {args.rounds} steady rounds, median of {args.runs} interleaved runs")
    try:
        for run in range(args.runs):
            for kind, results in got.items():
                results.append(one(kind, root / f"{kind}-{run}", args.series, args.rounds))
                print(f"  run {run + 1} {kind}: " + ", ".join(f"{k} {v:,.2f}" for k, v in results[-1].items()), flush=True)
    finally:
        procs.stop_all()
        shutil.rmtree(root, ignore_errors=True)
    print(f"\n{'':28}{'varve':>14}{'Prometheus':>14}{'ratio':>9}   goal")
    failed = 0
    for key in got["varve"][0]:
        v, p = (statistics.median(r[key] for r in got[k]) for k in ("varve", "prometheus"))
        ratio = p / v if key in LOWER else v / p
        goal = LOWER.get(key)
        met = "" if goal is None else f"at least {goal}x: " + ("met" if ratio >= goal else "NOT MET")
        failed += goal is not None and ratio < goal
        print(f"{key:28}{v:>14,.2f}{p:>14,.2f}{ratio:>8.1f}x   {met}")
    print("durable before the answer     fdatasync    page cache")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
