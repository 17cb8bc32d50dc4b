"""What series that come and go cost in the end: memory returns, window by window; and with a budget below the need windows are cut early, writes are refused for a while and pass
when repeated, and the process lives. VARVE_FULL: four million series, a million of them replaced in each window (16 GiB of memory, 10 GiB of disk).
"""
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from lib import procs, remote

SERIES = 4_000_000 if "VARVE_FULL" in os.environ else 100_000
MIB = 1 << 20
SLACK = 8 * MIB  # what a process has beside its head, and buffers of connections
EMPTY = 16 * MIB  # what a head without series may hold on to
LOOSE = {"head_cut_delay": "10h", "head_max_age": "100h", "ingest_oldest": "1000h", "wal_max_size": "40GiB"}


def bench(server, *flags):
    """`varve bench write`; its report."""
    argv = [procs.varve_binary(), "bench", "write", f"--url={server.url}", f"--pid={server.pid}", "--rw=2", "--memory=1GiB", "--output=json", *flags]
    r = subprocess.run(argv, capture_output=True, text=True, timeout=3600, check=False)
    assert r.returncode == 0, r.stderr[-2000:]
    return json.loads(r.stdout)


@pytest.mark.timeout(7200)
@pytest.mark.skipif("VARVE_SANITIZED" in os.environ, reason="a sanitizer's memory is not the server's")
def test_memory_returns_when_series_are_replaced(varve):
    server = varve(**LOOSE, head_block_range="10m")
    start = (procs.time.time_ns() // 1_000_000 // 600_000 - 60) * 600_000
    empty, held, left = server.rss(), [], []
    for k in range(6):
        report = bench(server, f"--series={SERIES}", "--rounds=4", f"--first-round={4 * k}", "--step=150s", "--churn=2.5", f"--start={start}")
        assert report["acked"] == report["requests"] and report["answers"].keys() == {"204"}
        assert SERIES < server.metric("varve_head_series") < SERIES * 1.4
        held.append((server.rss(), server.metric("varve_head_series")))
        server.flush(timeout=1200)
        procs.wait_for(lambda: server.metric("varve_head_series") == 0 and server.metric("varve_head_memory_bytes") < EMPTY, 120, "the window's memory is given back")
        procs.time.sleep(1)
        left.append(server.rss())
        for block in pathlib.Path(server.bucket_dir).glob("01*"):
            shutil.rmtree(block)  # nobody reads them again
    print(f"{SERIES} series: MiB before each cut {[rss // MIB for rss, _ in held]}, {[int(rss / n) for rss, n in held]} B a series; MiB behind it {[rss // MIB for rss in left]}")
    # As much as in its first window, and no more. Whole targets go, so the series of a small run's windows differ by some percent.
    for rss, n in held[1:]:
        assert rss <= 1.1 * held[0][0] * max(1, n / held[0][1]) + SLACK, held
    # Behind a cut next to nothing stays, and no more behind the last one than behind the first.
    for rss in left:
        assert rss - empty <= min(1.1 * (left[0] - empty), 0.2 * held[0][0]) + 2 * SLACK, (empty, left)


@pytest.mark.timeout(7200)
@pytest.mark.skipif("VARVE_SANITIZED" in os.environ, reason="a sanitizer's memory is not the server's")
def test_a_budget_below_the_need_is_kept(varve):
    series = max(100_000, SERIES // 4)  # below that the least budget is enough
    start = (procs.time.time_ns() // 1_000_000 // 7_200_000 - 4) * 7_200_000
    flags = (f"--series={series}", "--rounds=10", "--step=1m", f"--start={start}")
    roomy = varve(name="roomy", **LOOSE)
    bench(roomy, *flags)
    need = roomy.metric("varve_head_memory_bytes")
    roomy.stop()
    shutil.rmtree(roomy.data)

    budget = int(need * 0.75)
    server = varve(name="tight", **LOOSE, head_max_memory=budget)
    pid = server.pid
    report = bench(server, *flags, "--retry=10m")
    early = server.log().count("why=memory")
    print(f"need {need / MIB:.0f} MiB, budget {budget / MIB:.0f} MiB: {early} early cuts, answers {report['answers']}, most resident {server.rss_peak() / MIB:.0f} MiB")
    assert early > 0 and report["answers"].get("503", 0) > 0
    assert report["acked"] == report["requests"] and report["failed"] == 0
    assert server.running() and server.pid == pid
    # By itself: what was refused for a while was taken, and goes on being taken.
    t = procs.time.time_ns() // 1_000_000
    procs.wait_for(lambda: server.client().write([(remote.labels("up"), [(t, 1)])]).status == 204, 60, "writes are taken again")
    assert server.metric("varve_head_memory_bytes") <= budget

    # Nothing of it is missing: each series of some targets has its ten samples.
    server.flush(timeout=1200)
    got = server.read(matchers=[("=~", "instance", ".*7:9100")])
    assert len(got) >= 500 and {len(v) for v in got.values()} == {10}
