#!/usr/bin/env python3
"""Writes the last results of `make bench`, `make bench-flat`, `make bench-sync`, `make bench-pause`, `make bench-profile` and `make bench-ring` into docs/performance.md and docs/scaling.md, between
their markers.

    make bench-docs                         build/results/bench*.json into the page; what was not run stays as it is
    tests/bench/bench_docs.py --small DIR   also of a small run, into other files: for looking at
"""
import json
import pathlib
import subprocess
import sys

import bench_lib as lib
from bench import ROWS, goal_text
from bench_lib import show

DOCS = lib.procs.ROOT / "docs"


def markdown(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(r) + " |" for r in rows]


def ratio(row, system):
    if system not in row["ratios"]:
        return ""
    v, goal = row["ratios"][system], goal_text(row, system)
    return (f"{v:.2f}x" if v < 10 else f"{v:.0f}x") + (f" (goal {goal})" if goal else "")


def page_bench(r):
    rows = []
    for row in r["rows"]:
        if row["key"] not in ROWS:
            continue
        f = row["figures"]
        most = goal_text(row, "most")
        rows.append([f"{row['title']}, {row['unit']}", show(f["varve"]) + (f" (goal {most})" if most else ""), show(f["prometheus"]), ratio(row, "prometheus"),
                     show(f["victoria"]), ratio(row, "victoria"), show(f["floor"]), ratio(row, "floor"), {True: "met", False: "**not met**", None: ""}[row["met"]]])
    rows.append(["durable before the answer", "fdatasync", "page cache", "", "nothing: about 5 s are in memory", "", "-", "", ""])
    v = r["versions"]
    missed = [f"- {row['title']}: {miss}" for row in r["rows"] for miss in row["missed"]]
    return markdown(["", f"varve {v['varve']}", f"Prometheus {v['prometheus']}", "ratio", f"VictoriaMetrics {v['victoria']}", "ratio", "floor", "varve to floor", ""], rows) \
        + (["", "Not met:", ""] + missed if missed else [])


def page_flat(r):
    rows = []
    for group in r["rows"]:
        points = group["points"]
        for label, m in points.items():
            rows.append([label, show(m["cpu"]), show(m["rate"], 0), show(m["p99"]), show(m["resident"], 0)])
        rows.append([f"{group['group']}: {group['worst']:.2f}x, goal ≤ {group['goal']:g}x, {'met' if group['met'] else '**not met**'}", "", "", "", ""])
    full = r["resident"]
    words = ", ".join(f"{show(v)} with {n} samples each" for n, v in full["points"].items())
    return markdown(["", "CPU a sample, µs", "samples/s", "p99, ms", "resident bytes a series"], rows) \
        + ["", f"Resident bytes a series at {full['series']:,} series: {words}; goal ≤ {full['goal']}, {'met' if full['met'] else '**not met**'}."]


def page_sync(r):
    rows = []
    for row in r["rows"]:
        verdict = {True: "met", False: "**not met**", None: f"bound by the disk: {show(row['bound'], 0)} samples/s"}[row["met"]]
        rows.append([str(row["connections"]), show(row["ack"]["rate"], 0), show(row["os"]["rate"], 0), f"{row['cost']:.1%}", show(row["ack"]["p99"]),
                     show(row["os"]["p99"]), show(row["ack"]["requests_per_sync"]), verdict])
    disk, half = r["fdatasync_ms"], r["half"]
    return [f"fdatasync of the disk: p50 {show(disk['p50'])} ms, p99 {show(disk['p99'])} ms.", ""] \
        + markdown(["connections", "`ack`, samples/s", "`os`, samples/s", "cost", "`ack` p99, ms", "`os` p99, ms", "requests a sync", "goal: cost ≤ 10 %"], rows) \
        + ["", f"At half load ({half['rate']:,.0f} samples/s) `ack` has p50 {show(half['p50'])} ms and p99 {show(half['p99'])} ms; goal ≤ 2 x fdatasync p99 + 5 ms = "
               f"{show(half['goal'])} ms: {'met' if half['met'] else '**not met**'}."]


def page_pause(r):
    return [f"{r['windows']} windows of {r['series']:,} series each are cut while requests come at half of what the server can take: their p99 is {show(r['cutting_ms'])} ms, and {show(r['quiet_ms'])} ms "
            f"without a cut: {r['ratio']:.2f}x, goal ≤ {r['goals']['p99']:g}x, {'met' if r['met']['p99'] else '**not met**'}. Resident memory meanwhile: {r['memory'] - 1:+.1%}, "
            f"goal ≤ {r['goals']['memory'] - 1:+.0%}, {'met' if r['met']['memory'] else '**not met**'}."]


def page_profile(r):
    rows = [[row["stage"], show(row["ns"], 1), show(row["floor"], 1) if row["floor"] is not None else ""] for row in r["rows"]]
    return markdown(["stage", "ns a sample", "floor"], rows + [["all", show(r["all"], 1), show(r["floor"], 1)]])


def page_ring(r):
    rows = []
    for f in r["factors"]:
        rows.append([f"router + 3 ingesters, factor {f['factor']}", show(f["cpu"]), show(f["router"]), show(f["ingester"]), show(r["prometheus"]["cpu"]), f"{f['ratio']:.1f}x (goal ≥ {f['goal']}x)",
                     show(f["requests"]), show(f["resident"] / 1048576), "met" if f["met"] else "**not met**"])
    for s in r["spread"]:
        rows.append([f"router + {s['nodes']} ingester{'s' if s['nodes'] > 1 else ''}, factor 1", show(s["cpu"]), show(s["router"]), show(s["ingester"]), "",
                     f"{s['times']:.2f}x of one (goal ≤ {r['spread_goal']}x)", show(s["requests"]), show(s["resident"] / 1048576), "met" if s["met"] else "**not met**"])
    return markdown([f"{r['series']:,} series", "CPU a client's sample, µs", "of it the router", "each ingester", "Prometheus alone, µs", "ratio", "requests to peers a client's request",
                     "router resident, MiB", ""], rows)


# ---- docs/scaling.md: what the results mean for a fleet of a hundred million series ----

SERIES, SCRAPE_S, FACTOR, NODES, MORE, BUSY = 100_000_000, 15, 3, 40, 50, 0.5


def figure(results, name, *path):
    """Of a result, or None: not measured."""
    v = results.get(name)
    for key in path:
        if v is None:
            return None
        v = next((x for x in v if all(x.get(k) == w for k, w in key.items())), None) if isinstance(key, dict) else v.get(key)
    return v


def put_number(v, unit, scale=1.0, digits=None, none="not measured yet"):
    return none if v is None else f"{show(v * scale, digits)} {unit}"


def times(*values):
    out = 1.0
    for v in values:
        if v is None:
            return None
        out *= v
    return out


def page_scaling(results):
    p = subprocess.run([lib.procs.varve_binary(), "ring", "simulate", f"--nodes=3,5,9,20,{NODES},{MORE},100,200", f"--replication-factor={FACTOR}", "--output=json"], capture_output=True, text=True,
                       check=True)
    steps = {s["nodes"]: s for s in json.loads(p.stdout)["steps"]}
    rate, fullest, moved = SERIES / SCRAPE_S, steps[NODES]["max_over_mean"], steps[MORE]["moved"]
    router = figure(results, "bench-ring", "factors", {"factor": FACTOR}, "router")
    per_replica = figure(results, "bench-ring", "factors", {"factor": FACTOR}, "ingester")  # three of them and factor 3: each stores every sample
    resident = figure(results, "bench-flat", "resident", "points", "480") or figure(results, "bench", "rows", {"key": "resident"}, "figures", "varve")
    new = figure(results, "bench", "rows", {"key": "new"}, "figures", "varve")
    log = figure(results, "bench", "rows", {"key": "log"}, "figures", "varve")
    cores = times(rate, FACTOR, per_replica, 1e-6)
    memory = times(SERIES, FACTOR / NODES, fullest, resident)
    rows = [
        ["samples a second, from clients", f"{SERIES / 1e6:.0f} M series every {SCRAPE_S} s", f"{rate / 1e6:.2f} M"],
        ["samples a second, stored", f"times factor {FACTOR}", f"{rate * FACTOR / 1e6:.0f} M"],
        ["routers, cores busy", f"CPU a sample of a router, {put_number(router, 'µs', none='by `make bench-ring`')}", put_number(times(rate, router, 1e-6), "cores")],
        [f"{NODES} nodes, cores busy", f"CPU a stored sample, {put_number(per_replica, 'µs', none='by `make bench-ring`')}", put_number(cores, "cores")],
        ["cores of a node", f"so that the mean is {BUSY:.0%} busy, times {fullest:.3f} for the fullest", put_number(times(cores, 1 / NODES / BUSY, fullest), "cores")],
        ["memory of the fullest node", f"{SERIES * FACTOR / NODES / 1e6:.1f} M series on the mean node, times {fullest:.3f}, at {put_number(resident, 'bytes', none='what `make bench-flat` says')} a series", put_number(memory, "GiB", 2**-30)],
        ["log written by a node", f"{put_number(log, 'bytes', none='what `make bench` says')} a sample", put_number(times(rate, FACTOR / NODES, log), "MB/s", 1e-6)],
        [f"growing from {NODES} to {MORE}: replicas that move", "`varve ring simulate`", f"{moved:.1%}, {SERIES * FACTOR * moved / 1e6:.0f} M"],
        ["what they cost the new nodes, once", f"{put_number(new, 'µs', none='what `make bench` says')} for a series that is new to a node", put_number(times(SERIES, FACTOR, moved, new, 1e-6), "CPU seconds, all together")],
    ]
    table = [[str(n), f"{s['max_over_mean']:.3f}", f"{s['min_over_mean']:.3f}", f"{s['moved']:.1%}" if s["moved"] else "-", f"{s['ideal']:.1%}" if s["moved"] else "-"] for n, s in steps.items()]
    return ["`" + " ".join(["varve", *p.args[1:-1]]) + "`:", ""] \
        + markdown(["nodes", "fullest node over the mean", "emptiest", "replicas that move", "least that must"], table) + [""] + markdown(["", "from", ""], rows)


# ---- pages ----


def put(page, text, name, lines):
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{page}: the markers '{begin.strip()}' and '{end}' must be there")
    before, rest = text.split(begin, 1)
    return before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]


PAGES = {"bench": page_bench, "bench-flat": page_flat, "bench-sync": page_sync, "bench-pause": page_pause, "bench-profile": page_profile, "bench-ring": page_ring}


def main():
    small = len(sys.argv) == 3 and sys.argv[1] == "--small"
    if len(sys.argv) > 1 and not small:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    out = pathlib.Path(sys.argv[2]) if small else DOCS
    text, results = (DOCS / "performance.md").read_text("utf-8"), {}
    for name, page in PAGES.items():
        path = lib.RESULTS / f"{name}.json"
        if not path.exists():
            continue
        r = json.loads(path.read_text("utf-8"))
        if r["scale"] == "small" and not small:
            print(f"{path}: a small run says nothing about speed, left out; run make {name}")
            continue
        text = put("performance.md", text, name, [f"{r['date']}, varve at {r['commit']}; {r['machine']}; median of {r['runs']} interleaved run{'s' if r['runs'] > 1 else ''}.", ""] + page(r))
        results[name] = r
    (out / "performance.md").write_text(text, "utf-8")
    scaling = (DOCS / "scaling.md").read_text("utf-8")
    (out / "scaling.md").write_text(put("scaling.md", scaling, "scaling", page_scaling(results)), "utf-8")
    print(f"{out}: performance.md has {', '.join(results) or 'nothing new'}; scaling.md is worked out of them")
    if not results:
        raise SystemExit(f"{lib.RESULTS} has no result of " + ", ".join(f"make {name}" for name in PAGES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
