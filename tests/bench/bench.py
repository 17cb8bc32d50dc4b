#!/usr/bin/env python3
"""varve beside Debian's Prometheus and VictoriaMetrics, and beside a floor program: the same remote-write bodies, one core each, in turn, in one run.

    make bench                      medians of five interleaved runs, most of an hour
    make bench BENCH_SCALE=small    one run with few series in about a minute: does everything work?
    make bench BENCH_RUNS=7

Server on one core, sender on another. CPU is user + system of the server process, until it is quiet after the last answer. Ratios are peer to varve: higher is
better. Only ratios carry over to other machines. How each row is measured stands beside its function below.
"""
import functools
import json
import os
import pathlib
import sys
import threading
import time
import urllib.request

import bench_lib as lib
from bench_lib import SMALL, STEP_S, Server, dump, floor, median, procs, say, show, tree_bytes, write

MILLION, MID = (20_000, 10_000) if SMALL else (1_000_000, 200_000)
STEADY = 4 if SMALL else 8  # rounds after the first; the second one is apart, see load()
STRIDED_STEADY = 4
MID_STEADY = 4 if SMALL else 9
CUT_SERIES, CUT_ROUNDS = (2_000, 60) if SMALL else (50_000, 120)
RANGE_S = 7200

# name: (what it is, unit, {against: goal}); a goal of a peer is a least ratio, of the floor a greatest one, "most" an upper bound of varve's own figure
ROWS = {
    "steady": ("remote write 1.0, {million} series, scrape order: CPU a sample", "µs", {"prometheus": 50, "victoria": 8, "floor": 1.7}),
    "mid": ("the same, {mid} series", "µs", {"prometheus": 42, "victoria": 7}),
    "strided": ("the same, strided over 1,000 targets, {million} series", "µs", {"prometheus": 25, "victoria": 4}),
    "rw2": ("remote write 2.0, {mid} series (Prometheus: 1.0)", "µs", {"prometheus": 60}),
    "new": ("new series, {million}: CPU a series", "µs", {"prometheus": 8, "victoria": 25}),
    "resident": ("resident bytes a series, {million} series", "B", {"prometheus": 10, "victoria": 2, "most": 400}),
    "log": ("log bytes a sample", "B", {"prometheus": 3.5, "most": 2.5}),
    "restart": ("kill -9 to ready, {million} series + {replayed} samples", "s", {"prometheus": 12}),
    "cut": ("block cut, CPU a series", "µs", {"prometheus": 8, "most": 3}),
    "block": ("block bytes a sample, the same data", "B", {"prometheus": 1.0}),
    "mid_cpu": ("first goals: remote write 1.0, {mid} series: CPU a sample", "µs", {"prometheus": 10}),
    "mid_resident": ("first goals: resident bytes a series, {mid} series", "B", {"prometheus": 3}),
    "mid_restart": ("first goals: kill -9 to ready, {mid} series", "s", {"prometheus": 5}),
    "rate": ("samples a second on the one core, {million} series", "/s", {}),
    "second": ("second sample of each series, {million} series: CPU a sample", "µs", {}),
    "log_new": ("log bytes a new series: what it takes beyond its samples", "B", {}),
    "p99": ("p99 of a request at that rate", "ms", {}),
}
SYSTEMS = ("varve", "prometheus", "victoria", "floor")
TITLES = {"varve": "varve", "prometheus": "Prometheus", "victoria": "VictoriaMetrics", "floor": "floor"}


def start_ms(rounds):
    """Time of round 0, so that the last one is about now; the same for all servers of a run."""
    return (int(time.time()) - (rounds + 1) * STEP_S) // STEP_S * STEP_S * 1000


def restart(server):
    server.kill9()
    began = time.monotonic()
    server.start()
    return time.monotonic() - began


def load(kind, series, steady, start, order="scrape", rw=1, what="load", rest=True):
    """A fresh server: round 0 brings the series, the rounds after the second are the steady state; then memory, log and restart.

    The second round stands apart: varve writes each series' definition to its log once more there, which is a cost of having the series and not of its samples.
    """
    with Server(kind, what) as s:
        empty = s.rss()
        shape = {"series": series, "start": start, "order": order, "rw": rw}
        log = [s.log_bytes() if rest and s.has_log else 0]
        parts = []
        for first, rounds in ((0, 1), (1, 1), (2, steady - 1)):
            parts.append(write(s, first_round=first, rounds=rounds, **shape))
            log.append(s.log_bytes() if rest and s.has_log else 0)
        new, second, known = parts
        cpu = [p["server"]["cpu_seconds"] for p in parts]
        out = {"new": cpu[0] / series * 1e6, "second": cpu[1] / series * 1e6, "cpu": cpu[2] / known["samples"] * 1e6,
               "cpu_after_first": (cpu[1] + cpu[2]) / (second["samples"] + known["samples"]) * 1e6,
               "rate": known["samples_per_second"], "p99": known["latency_ms"]["p99"]}
        if rest:
            out["resident"] = (s.rss() - empty) / series
            if s.has_log:
                out["log"] = (log[3] - log[2]) / known["samples"]
                out["log_new"] = (log[2] - log[0]) / series - 2 * out["log"]
                out["restart"] = restart(s)
        return out


def million(run):
    start = start_ms(1 + STEADY)
    for kind in ("varve", "prometheus", "victoria"):
        got = load(kind, MILLION, STEADY, start)
        run.note(kind, steady=got["cpu"], **{k: got.get(k) for k in ("new", "second", "resident", "log", "log_new", "restart", "rate", "p99")})
    run.note("floor", steady=on_floor(start, MILLION, "scrape"))


def mid(run):
    start = start_ms(1 + MID_STEADY)
    for kind in ("varve", "prometheus", "victoria"):
        got = load(kind, MID, MID_STEADY, start)
        run.note(kind, mid=got["cpu"], mid_cpu=got["cpu_after_first"], mid_resident=got["resident"], mid_restart=got.get("restart"))
        if kind == "prometheus":
            run.note(kind, rw2=got["cpu"])
    run.note("floor", mid=on_floor(start, MID, "scrape"))


def rw2(run):
    if not speaks_rw2():
        run.missing["rw2"] = "this varve answers 415 to remote write 2.0"
        return
    run.note("varve", rw2=load("varve", MID, MID_STEADY, start_ms(1 + MID_STEADY), rw=2, rest=False)["cpu"])


def speaks_rw2():
    with Server("varve", "probe") as s:
        request = urllib.request.Request(s.url + "/api/v1/write", data=b"\x00", method="POST", headers={
            "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request", "Content-Encoding": "snappy"})
        try:
            urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as e:
            return e.code != 415
        return True


def strided(run):
    start = start_ms(1 + STRIDED_STEADY)
    for kind in ("varve", "prometheus", "victoria"):
        run.note(kind, strided=load(kind, MILLION, STRIDED_STEADY, start, order="strided", rest=False)["cpu"])
    run.note("floor", strided=on_floor(start, MILLION, "strided"))


def on_floor(start, series, order):
    return on_floor_stages(start, series, order)["ns_per_sample"] / 1e3


def on_floor_stages(start, series, order):
    directory = lib.DATA / f"bodies-{os.getpid()}"
    try:
        dump(directory, series=series, rounds=2, start=start, order=order)
        return floor(directory)
    finally:
        lib.shutil.rmtree(directory, ignore_errors=True)


# ---- the cut ----
#
# Both get CUT_ROUNDS samples of CUT_SERIES series, all within one two-hour window that is over. What is measured is the CPU from the moment that sets the cut off
# until the server is quiet: writing the block, freeing what it held, and what each does to its log.
#
# Prometheus cuts by itself when its head spans three hours. So it first gets one more sample of every series 2 h 59 min 45 s behind the first (they live on, as in
# real life, and nothing happens), and then a single sample behind the three hours. Its block of the window holds the same samples as varve's.
#
# varve is asked to by POST /-/flush. Its bucket is an address where nobody listens, so that it cuts and does not ship; the call itself is given up.

DEAD_BUCKET = "type: S3\nconfig:\n  bucket: none\n  endpoint: 127.0.0.1:1\n  access_key: none\n  secret_key: none\n  insecure: true\n"


def block_of(directory, samples):
    """The one block below a directory with that many samples: bytes of its chunks and index."""
    for meta in pathlib.Path(directory).glob("*/meta.json"):
        stats = json.loads(meta.read_text("utf-8"))["stats"]
        if stats["numSamples"] == samples:
            return tree_bytes(meta.parent / "chunks") + (meta.parent / "index").stat().st_size
    return None


def cut(run):
    now = int(time.time())
    start = (now // RANGE_S - 2) * RANGE_S * 1000
    samples = CUT_SERIES * CUT_ROUNDS
    for kind, flags in (("varve", {"objstore_config": DEAD_BUCKET, "flush_timeout": "1s"}), ("prometheus", {})):
        with Server(kind, "cut", **flags) as s:
            shape = {"series": CUT_SERIES, "start": start}
            write(s, rounds=CUT_ROUNDS, **shape)
            blocks = s.data
            if kind == "prometheus":
                write(s, first_round=719, rounds=1, **shape)
            else:
                blocks = s.data / "blocks"
            s.settle()
            before = s.cpu()
            if kind == "prometheus":
                write(s, first_round=722, rounds=1, series=1, start=start)
            else:
                threading.Thread(target=ask_flush, args=(s.url,), daemon=True).start()
            size = procs.wait_for(functools.partial(block_of, blocks, samples), 300, f"{kind}: a block of {samples:,} samples", every=0.2)
            s.settle()
            run.note(kind, cut=(s.cpu() - before) / CUT_SERIES * 1e6, block=size / samples)


def ask_flush(url):
    try:
        urllib.request.urlopen(urllib.request.Request(url + "/-/flush", data=b"", method="POST"), timeout=300).read()
    except OSError:
        pass  # 503: nothing went live


# ---- all of it ----


class Run:
    def __init__(self, number):
        self.number = number
        self.got = {s: {} for s in SYSTEMS}
        self.missing = {}

    def note(self, system, **figures):
        figures = {k: v for k, v in figures.items() if v is not None}
        self.got[system].update(figures)
        say(f"  run {self.number + 1}  {TITLES[system]:<16}" + "  ".join(f"{k} {show(v)}" for k, v in figures.items()))


def verdicts(medians):
    """Rows as they are printed and kept: figures, ratios, goals, and what is not met."""
    words = {"million": f"{MILLION:,}", "mid": f"{MID:,}", "replayed": f"{MILLION * (1 + STEADY):,}"}
    rows = []
    for key, (title, unit, goals) in ROWS.items():
        row = {"key": key, "title": title.format(**words), "unit": unit, "figures": {}, "ratios": {}, "goals": goals, "missed": []}
        for system in SYSTEMS:
            row["figures"][system] = medians[system].get(key)
        mine = row["figures"]["varve"]
        for system in SYSTEMS[1:]:
            theirs = row["figures"][system]
            if mine and theirs and mine > 0 and theirs > 0:
                row["ratios"][system] = mine / theirs if system == "floor" or unit == "/s" else theirs / mine
        for against, goal in goals.items():
            value = mine if against == "most" else row["ratios"].get(against)
            if value is None:
                row["missed"].append(f"{against}: not measured")
            elif (value > goal) if against in ("most", "floor") else (value < goal):
                row["missed"].append(f"{against}: {show(value)}, goal {'≤' if against in ('most', 'floor') else '≥'} {show(goal, None if goal < 10 else 0)}")
        row["met"] = None if not goals else not row["missed"]
        rows.append(row)
    return rows


def goal_text(row, against):
    if against not in row["goals"]:
        return ""
    goal = row["goals"][against]
    return f"{'≤' if against in ('most', 'floor') else '≥'} {goal:g}" + ("" if against == "most" else "x")


def printed(rows):
    head = ["", "varve", "goal", "Prometheus", "ratio", "goal", "VictoriaMetrics", "ratio", "goal", "floor", "varve/floor", "goal", ""]
    out = [head]
    for r in rows:
        f, q = r["figures"], {k: f"{v:.2f}x" if v < 10 else f"{v:.0f}x" for k, v in r["ratios"].items()}
        out.append([f"{r['title']}, {r['unit']}", show(f["varve"]), goal_text(r, "most"), show(f["prometheus"]), q.get("prometheus", ""), goal_text(r, "prometheus"),
                    show(f["victoria"]), q.get("victoria", ""), goal_text(r, "victoria"), show(f["floor"]), q.get("floor", ""), goal_text(r, "floor"),
                    {True: "met", False: "NOT MET", None: ""}[r["met"]]])
    out.append(["durable before the answer"] + ["fdatasync", "", "page cache", "", "", "none (about 5 s)", "", "", "-", "", "", ""])
    return lib.table(out)


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("bench")
    versions = lib.versions()
    say("Prometheus {prometheus}, VictoriaMetrics {victoria}; 10 labels, 2,000 series a request, 4 connections".format(**versions))
    runs = []
    try:
        for number in range(lib.RUNS):
            run = Run(number)
            runs.append(run)
            for scenario in (million, mid, rw2, strided, cut):
                scenario(run)
    finally:
        lib.end()
    medians = {s: {k: median([r.got[s].get(k) for r in runs]) for k in ROWS} for s in SYSTEMS}
    rows = verdicts(medians)
    say()
    for line in printed(rows):
        say(line)
    missing = {k: v for r in runs for k, v in r.missing.items()}
    for row in rows:
        for miss in row["missed"]:
            say(f"NOT MET  {row['title']}: {miss}" + (f" ({missing[row['key']]})" if row["key"] in missing else ""))
    lib.save("bench", {"versions": versions, "rows": rows, "raw": [r.got for r in runs], "missing": missing})
    failed = any(r["met"] is False for r in rows)
    return 1 if failed and not SMALL else 0


if __name__ == "__main__":
    sys.exit(main())
