"""Tenants of a fleet: ten thousand of them over three nodes, and one that is over its limit beside one that is not."""
import threading
import time

import pytest
from fleet import LONG, end_load, judge, procs
from lib import remote
from lib.ledger import seeded
from lib.wire import bits

TENANTS, SENDERS = 10_000, 8
GRAIN_MS = 5


@pytest.mark.timeout(600)
def test_ten_thousand_tenants_over_three_nodes(fleet):
    """Each is written to and read back by itself, none sees another's, and no name of one is in any path."""
    f = fleet(3)
    router = f.three()
    now, bad = int(time.time() * 1000), []

    def name(t):
        return f"acme-{t:05d}-corp"

    def sender(k):
        c = remote.Client(router.url, timeout=60)
        for t in range(k, TENANTS, SENDERS):
            for _ in range(5):
                a = c.write([(remote.labels("up", of=str(t)), [(now, bits(float(t + 1)))])], {remote.TENANT: name(t)})
                if a.status != 503:
                    break
                time.sleep(0.2)
            if a.status != 204:
                bad.append((t, a.status, a.text))
        c.close()

    began = time.monotonic()
    threads = [threading.Thread(target=sender, args=(k,)) for k in range(SENDERS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    print(f"{TENANTS} tenants in {time.monotonic() - began:.1f} s; resident {[n.rss() >> 20 for n in f.everybody()]} MiB")
    assert not bad, bad[:3]
    for t in seeded("tenants").sample(range(TENANTS), 200):
        found = judge.ask(f.nodes[t % 3].url, name(t), remote.ALL, now, now)
        mine = [{k: v for k, v in labels.items() if k not in judge.OWN_LABELS} for labels, _ in found]
        assert mine == [{"__name__": "up", "of": str(t)}] and found[0][1][0][1] == float(t + 1), (t, found)
    assert judge.ask(f.nodes[0].url, "acme-99999-corp", remote.ALL, now, now) == []
    for n in f.everybody():
        paths = [p for p in n.dir.rglob("*") if "acme" in str(p.relative_to(n.dir))]
        assert not paths, paths[:3]
        assert "acme" not in procs.http_get(n.url + "/metrics")[1]


@pytest.mark.timeout(600)
def test_a_tenant_at_ten_times_its_limit_costs_the_other_nothing(fleet, tmp_path):
    """B's p99 is held against B's p99 without A, in turns within one run."""
    limits = tmp_path / "limits.yml"
    limits.write_text("write:\n  tenants:\n    a:\n      samples_per_second: 500\n      samples_burst: 500\n")
    f = fleet(3, **{"limits.file": limits})
    router = f.three()
    b = f.load(router, "b", tenant="b", series=1000, batch=50)
    b.wait_rounds(4)
    turns, seconds = (8, 20) if LONG else (4, 6)
    alone, beside, refused = [], [], 0
    for _ in range(turns):
        since = time.time() * 1e6
        time.sleep(seconds)
        alone.append((since, time.time() * 1e6))
        a = f.load(router, "a", tenant="a", series=5000, batch=100, shards=4)
        a.wait_rounds(1)
        since = time.time() * 1e6
        time.sleep(seconds)
        beside.append((since, time.time() * 1e6))
        a.end()
        refused += a.book.summary()["refused"]
    book, found = end_load(b, f)
    p99 = {k: judge.quantile([r.latency_us / 1000 for s, u in spans for r in book.between(s, u)], 0.99) for k, spans in (("alone", alone), ("beside", beside))}
    s = book.summary()
    print(f"B's p99: {p99['alone']:.1f} ms alone, {p99['beside']:.1f} ms beside A, of whose requests {refused} were refused; {found}")
    assert refused > 20 * turns, "A was over its limit"
    assert s["errors"] == s["refused"] == 0, s
    assert p99["beside"] <= max(1.1 * p99["alone"], p99["alone"] + GRAIN_MS), p99
