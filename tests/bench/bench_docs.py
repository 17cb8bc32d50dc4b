#!/usr/bin/env python3
"""Writes the last results of `make bench`, `make bench-flat`, `make bench-sync`, `make bench-pause` and `make bench-profile` into docs/performance.md, between its markers.

    make bench-docs                         build/results/bench*.json into the page; what was not run stays as it is
    tests/bench/bench_docs.py --small FILE  also of a small run, into another file: for looking at
"""
import json
import pathlib
import sys

import bench_lib as lib
from bench import ROWS, goal_text
from bench_lib import show

PAGE = lib.procs.ROOT / "docs" / "performance.md"


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


def put(text, name, lines):
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{PAGE}: the markers '{begin.strip()}' and '{end}' must be there")
    before, rest = text.split(begin, 1)
    return before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]


def main():
    small = len(sys.argv) == 3 and sys.argv[1] == "--small"
    if len(sys.argv) > 1 and not small:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    text = PAGE.read_text("utf-8")
    written = []
    for name, page in (("bench", page_bench), ("bench-flat", page_flat), ("bench-sync", page_sync), ("bench-pause", page_pause), ("bench-profile", page_profile)):
        path = lib.RESULTS / f"{name}.json"
        if not path.exists():
            continue
        r = json.loads(path.read_text("utf-8"))
        if r["scale"] == "small" and not small:
            print(f"{path}: a small run says nothing about speed, left out; run make {name}")
            continue
        text = put(text, name, [f"{r['date']}, varve at {r['commit']}; {r['machine']}; median of {r['runs']} interleaved run{'s' if r['runs'] > 1 else ''}.", ""] + page(r))
        written.append(name)
    if not written:
        raise SystemExit(f"nothing to write: {lib.RESULTS} has no result of make bench, make bench-flat, make bench-sync, make bench-pause or make bench-profile")
    out = pathlib.Path(sys.argv[2]) if small else PAGE
    out.write_text(text, "utf-8")
    print(f"{out}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
