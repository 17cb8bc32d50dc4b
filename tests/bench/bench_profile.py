#!/usr/bin/env python3
"""Where a sample's time goes: the steady state of known series under perf, summed up by stage, beside what the floor program takes for the same stage.

    make bench-profile              a million series; needs perf (Debian: linux-perf), which is asked for the processor's clock only
    make bench-profile BENCH_SCALE=small

A function belongs to the stage that it serves; memmove is counted to decompressing, whose copies are nearly all of it. The table's sum is the CPU of the server's process
as the kernel counts it; perf only says how it is shared out.
"""
import collections
import os
import re
import shutil
import signal
import subprocess
import sys

import bench_lib as lib
from bench_lib import SMALL, STEP_S, Server, say, show, table, write
from bench import on_floor_stages, start_ms

SERIES, ROUNDS = (20_000, 40) if SMALL else (1_000_000, 12)
# stage: (pattern of "thread library symbol", the floor's name of it). The first that fits.
STAGES = [
    ("kernel: fdatasync and write of the log", r"^\S+ \[kernel.* (?!.*(tcp|sock|epoll|ip_|net_|skb|eventfd))", None),
    ("kernel: network, wake-ups", r"\[kernel", None),
    ("HTTP (libmicrohttpd, net/)", r"libmicrohttpd|libgnutls| (http_|net_|conn_|MHD_)", None),
    ("decompress", r"snappy|memmove|memcpy", "snappy_ns"),
    ("walk the message, hash the labels", r" (series_decode|series_fast|rw1_decode|pb_\w+|rw_\w+)$|libxxhash| head_hash", "walk_hash_ns"),
    # The floor's probe compares the labels and stores 24 bytes.
    ("find the series", r" (find_\w+|by_shard|pass_find|head_table_find\w*|known_\w+|shard_by_\w+)", "probe_ns"),
    ("append to the open chunk", r" (append_series_locked|head_leaf\w*|head_open\w*|append|xor_\w+|chunk_cutter\w*|head_chain\w*|head_piece\w*|put|open_full|pass_known|win_\w+|"
                                 r"head_chunkfile\w*|head_pieces\w*|key_change)$", None),
    ("write the log", r" (wal_\w+|value_append|block_put|block_\w+|head_log\w*|samples_\w+|crc32c\w*|frame_\w+|put_\w+|buf_\w+)$|liblz4", None),
    ("what a request needs (ingest/, head_append)", r" (ingest_\w+|head_append\w*|head_batch_bound|windows_of|judge|count|store|account|ctx_\w+|arena_\w+|head_tenant\w*|metric_\w+|"
                                                    r"malloc|free|calloc|realloc|_int_\w+|cfree|unlink_chunk\w*|malloc_consolidate|pthread_\w+|__memset\w*|__memcmp\w*)", None),
]


def perf_binary():
    found = shutil.which("perf")
    if not found:
        lib.die("perf is not here; Debian has it in linux-perf")
    return found


def stage_of(line):
    for name, pattern, _ in STAGES:
        if re.search(pattern, line):
            return name
    return "the rest"


def recorded(server, directory, **shape):
    """CPU a sample, and each stage's share of it."""
    data = directory / "perf.data"
    perf = subprocess.Popen([perf_binary(), "record", "-q", "-e", "cpu-clock", "-F", "2000", "-p", str(server.pid), "-o", data], stderr=subprocess.DEVNULL)
    try:
        got = write(server, **shape)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait(60)
    report = subprocess.run([perf_binary(), "report", "-i", data, "--stdio", "-g", "none", "--sort", "comm,dso,sym", "--percent-limit", "0"], capture_output=True, text=True,
                            check=True).stdout
    shares, rest = collections.Counter(), collections.Counter()
    for line in report.splitlines():
        m = re.match(r"\s*([\d.]+)%\s+(\S+)\s+(\S+)\s+\[(.)\]\s+(.*\S)", line)
        if not m:
            continue
        where = "[kernel" if m[4] == "k" else m[3]
        stage = stage_of(f"{m[2]} {where} {m[5]}")
        # Threads of the server's own are the log's and the head's; what they ask of the kernel is the log's.
        if m[4] == "k":
            stage = STAGES[0][0] if m[2] == "varve" else STAGES[1][0]
        shares[stage] += float(m[1])
        if stage == "the rest":
            rest[m[5]] += float(m[1])
    total = sum(shares.values())
    return got["server"]["cpu_seconds"] / got["samples"] * 1e9, {k: v / total for k, v in shares.items()}, rest


def main():
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    lib.begin("Profile")
    start = start_ms(ROUNDS + 2)
    try:
        with Server("varve", "profile") as s:
            write(s, series=SERIES, rounds=2, start=start)
            ns, shares, rest = recorded(s, s.dir, series=SERIES, first_round=2, rounds=ROUNDS, start=start)
        floor = on_floor_stages(start, SERIES, "scrape")
    finally:
        lib.end()
    names = [name for name, _, _ in STAGES] + ["the rest"]
    below = {name: floor[key] for name, _, key in STAGES if key}
    rows = [{"stage": name, "ns": ns * shares.get(name, 0), "floor": below.get(name)} for name in names]
    out = [["stage", "ns a sample", "floor"]]
    out += [[r["stage"], show(r["ns"], 1), show(r["floor"], 1) if r["floor"] is not None else "-"] for r in rows]
    out.append(["all", show(ns, 1), show(floor["ns_per_sample"], 1)])
    say("\n".join(table(out)))
    say("the rest: " + ", ".join(f"{k} {v:.1f} %" for k, v in rest.most_common(6)))
    lib.save("bench-profile", {"series": SERIES, "rows": rows, "all": ns, "floor": floor["ns_per_sample"]})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("BENCH_RUNS", "1")
    sys.exit(main())
