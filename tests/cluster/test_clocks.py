"""Senders that are late or ahead while the ring changes, and a node whose clock is ahead."""
import os
import pathlib
import time

import pytest
from fleet import end_load, judge, procs

MINUTE_MS = 60_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("algorithm", ["ketama", "hashmod"])
def test_late_and_early_senders_during_ring_changes(fleet, algorithm):
    """Two senders 7 s late and one 10 minutes ahead: Thanos refuses a tenth of all samples for ever, or everything."""
    f = fleet(3, algorithm, **{"head.block-range": "1m", "ingest.future": "12m"})
    router = f.three()
    loads = [f.load(router, name, series=400, batch=50, clock_ms=ahead) for name, ahead in (("in-time", 0), ("late-1", -7000), ("late-2", -7000), ("ahead", 10 * MINUTE_MS))]
    for load in loads:
        load.wait_rounds(5)
    for n in (5, 3, 5):
        while len(f.nodes) < n:
            f.node()
        f.publish(f.nodes[:n])
        f.settle(timeout=3)
        time.sleep(6)
    time.sleep(3)
    for load in loads:
        book, found = end_load(load, f)
        s = book.summary()
        print(load.book.shape.name, s, found)
        assert s["refused"] == s["errors"] == s["open"] == 0, s
    refused = sum(v for n in f.everybody() for k, v in n.metrics().items() if k.startswith("varve_ingest_samples_total") and ("too-old" in k or "future" in k or "bounds" in k))
    assert refused == 0


@pytest.mark.timeout(300)
def test_a_node_whose_clock_is_ahead(fleet):
    """Ten minutes, by its own clock: it stores what peers send it, because time is judged once, where the client's request comes in. A secret's signature is good for a minute, so this
    fleet has none: it is on loopback."""
    clock = pathlib.Path(os.environ.get("VARVE_TOOLS") or procs.ROOT / "build" / "tool") / "fast_clock.so"
    assert clock.exists(), f"{clock}: run `make cluster-test`, which builds it"
    f = fleet(3, **{"head.block-range": "1m", "peer.secret-file": None, "ingest.future": "1m"})
    f.node()
    f.node()
    ahead = f.node(env={"LD_PRELOAD": str(clock), "VARVE_CLOCK_AHEAD": "600"})
    router = f.router()
    f.publish(f.nodes)
    f.settle()
    router.wait_url(router.url + "/-/ready")
    load = f.load(router, series=600, batch=50)
    load.wait_rounds(20)
    assert abs(ahead.metric("process_start_time_seconds") - time.time()) < 3600
    book, found = end_load(load, f)
    s = book.summary()
    print(s, found)
    assert s["refused"] == s["errors"] == 0, s
    assert judge.check_all(book, ahead.url).clean
    stored = {n.name: n.metric("varve_ingest_samples_total") for n in f.nodes}
    assert len(set(stored.values())) == 1 or max(stored.values()) - min(stored.values()) <= 0.01 * max(stored.values()), stored
