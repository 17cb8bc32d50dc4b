"""Growing and shrinking under load: 3, 5, 9, 5, 3 nodes with factor 3, a router in front, the ring changed by its file while a sender, a reader and a watch go on. Prints a table of what it saw."""
import time

import pytest
from fleet import LONG, end_load, judge, procs
from lib import gen, remote, tsdb, wire

STEPS = (3, 5, 9, 5, 3)
STEADY_S = 30 if LONG else 12  # with each ring, before it is changed
CHANGE_S = 6  # from a change on: the time that counts as "during"


def say(rows):
    widths = [max(len(str(r[i])) for r in rows) for i in range(len(rows[0]))]
    print("\n" + "\n".join("  ".join(str(c).rjust(w) for c, w in zip(r, widths)) for r in rows))


class Change:
    """One change of the ring, as it is made and as it was."""

    def __init__(self, f, old_nodes, new_nodes):
        self.f, self.old, self.was_text = f, old_nodes, f.text
        self.new = new_nodes

    def make(self):
        self.at_us = time.time() * 1e6
        self.text = self.f.publish(self.new)
        self.settled_s = self.f.settle()
        return self

    def judge(self, book):
        """Figures from the ledger and by `varve ring`: what moved, as told and as counted over the load's own series."""
        d = self.f.diff(self.was_text, self.text)
        before, after = self.f.owners(book.shape, self.was_text), self.f.owners(book.shape, self.text)
        counted = sum(len(set(b) - set(a)) for a, b in zip(before, after)) / sum(map(len, after))
        assert abs(counted - d["moved"]) < 0.05, (counted, d)
        return d, counted


def requests_to_peers(f):
    return sum(v for n in f.everybody() for k, v in n.metrics().items() if k.startswith("varve_forward_requests_total"))


def placed(f, book, since_round):
    """That every node got, of these rounds, exactly the series that `varve ring where` gives it."""
    owners = f.owners(book.shape)
    last = min(max(rounds, default=0) for rounds in book.acked.values())
    for n in f.nodes:
        have = {i for i, rounds in judge.held(n.url, book, since_round, last).items() if rounds}
        want = {i for i, a in enumerate(owners) if n.address in a}
        assert have <= want, f"{n.name} was sent series that are not its own: {sorted(have - want)[:5]}"
        assert want <= have, f"{n.name} misses series of its own: {sorted(want - have)[:5]}"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("algorithm", ["ketama"] + (["hashmod"] if LONG else []))
def test_from_3_to_9_and_back_under_load(fleet, algorithm):
    f = fleet(3, algorithm, **{"head.block-range": "1m"})
    router = f.three(STEPS[0])
    querier = f.querier()
    watch = f.watch(*f.everybody())
    load = f.load(router, series=2000, batch=100, step_ms=1000)
    alone = f.beside()
    load.wait_rounds(3)
    reader = f.reader(load, f.nodes + [querier])
    began_requests, began_us = requests_to_peers(f), time.time() * 1e6
    changes, steady, most_nodes = [], [], STEPS[0]
    for want in STEPS[1:]:
        since = time.time() * 1e6
        time.sleep(STEADY_S)
        steady.append((since + 2e6, time.time() * 1e6))
        old = list(f.nodes)
        if want > len(old):
            for _ in range(want - len(old)):
                f.node(start=False).start(wait=False)
            for n in f.nodes[len(old):]:
                n.wait_url(n.url + "/-/ready")
            watch.put(*f.nodes[len(old):])
            c = Change(f, old, list(f.nodes)).make()
            leavers = []
        else:
            c = Change(f, old, old[:want]).make()
            leavers = old[want:]
        most_nodes = max(most_nodes, len(c.new))
        reader.through(c.new + [querier])
        load.wait_rounds(CHANGE_S)
        rounds = load.book.last_round() - 3
        for n in leavers:  # they have what they took until they are drained; reads ask them, whoever is asked
            watch.drop(n)
            c.drain_s = max(getattr(c, "drain_s", 0), f.drain(n))
        if not leavers:
            placed(f, load.book, rounds)
        changes.append(c)
    time.sleep(3)
    watched, read = watch.end(), reader.end()
    peers = requests_to_peers(f) - began_requests
    hops = max(n.metric("varve_forward_hops_max") for n in f.everybody())
    onward = f.sum("varve_forward_requests_total", f.nodes)
    book, found = end_load(load, f)  # through the querier
    for n in f.nodes:
        again = judge.check_all(book, n.url)
        assert again.clean, f"through {n.name}: {again}"

    total = book.summary()
    attempts = book.summary(began_us)["attempts"]
    rows = [["nodes", "all run it after s", "moved", "ideal", "p50 ms before", "during", "p99 ms before", "during", "alone, before", "during", "errors", "drained in s"]]
    spans = {"before": steady, "during": [(c.at_us - 5e5, c.at_us + CHANGE_S * 1e6) for c in changes]}
    other = alone.book
    for c, was, now in zip(changes, spans["before"], spans["during"]):
        d, _ = c.judge(book)
        before, during = book.summary(*was), book.summary(*now)
        rows.append([f"{len(c.old)} -> {len(c.new)}", f"{c.settled_s:.2f}", f"{d['moved']:.1%}", f"{d['ideal']:.1%}", f"{before['p50_ms']:.1f}", f"{during['p50_ms']:.1f}",
                     f"{before['p99_ms']:.1f}", f"{during['p99_ms']:.1f}", f"{other.summary(*was)['p99_ms']:.1f}", f"{other.summary(*now)['p99_ms']:.1f}", during["errors"], f"{getattr(c, 'drain_s', 0):.1f}"])
    say(rows)
    p99_before, p99_during, p99_alone = judge.p99_ms(book, spans["before"]), judge.p99_ms(book, spans["during"]), judge.p99_ms(other, spans["during"])
    unready = sum(watched["unready_s"].values())
    print(f"{found}\nread back while it ran: {read}\nunready: {unready:.2f} s of {watched['polls']} looks, {watched['first']}\nall requests: {total}\n"
          f"p99 before {p99_before:.1f} ms, during {p99_during:.1f} ms, of one that is alone during {p99_alone:.1f} ms; requests to peers a client's request: {peers / attempts:.2f}, most nodes {most_nodes}, hops {hops:.0f}")

    assert not any(read[k] for k in judge.Findings.KINDS) and read["reads"] > 20, read
    assert read["refused"] == 0, read
    assert unready == 0, watched
    assert total["refused"] == total["open"] == 0 and total["errors"] < 1e-4 * total["attempts"], total
    assert p99_during <= 2 * max(p99_before, p99_alone), (p99_during, p99_before, p99_alone)
    for c in changes:
        d, counted = c.judge(book)
        assert d["moved"] <= 1.2 * d["ideal"] or algorithm == "hashmod", d
        assert c.settled_s < 1, c.settled_s
    assert peers / attempts <= most_nodes and hops == 1 and onward == 0


SCRAPE = """
scrape_configs:
  - job_name: generated
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""
WRITE = """
remote_write:
  - url: %s/api/v1/write
    queue_config: {capacity: 20000, max_samples_per_send: 500, batch_send_deadline: 1s, min_backoff: 100ms}
"""


def page_value(prometheus, name):
    _, page = procs.http_get(prometheus.url + "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{") or line.startswith(name + " "))


@pytest.mark.timeout(900)
def test_a_real_prometheus_notices_nothing(fleet, tmp_path):
    """Debian's 2.42 as the sender: no sample failed or dropped, and what the fleet has in the end is what it has itself."""
    f = fleet(3, **{"head.block-range": "1m"})
    router = f.three(3)
    target = gen.Target(20261124, 300)
    write = WRITE % router.url
    prometheus = procs.Prometheus(tmp_path / "prometheus", SCRAPE % target.port + write).start()
    config = prometheus.config_path.read_text()
    time.sleep(8)
    for want in STEPS[1:]:
        old = list(f.nodes)
        for _ in range(want - len(old)):
            f.node()
        f.publish(f.nodes[:want])
        f.settle()
        time.sleep(STEADY_S)
        for n in old[want:]:
            f.drain(n)
    prometheus.config_path.write_text(config[:config.index("scrape_configs:")] + write)
    prometheus.signal(1)

    def sent_all():
        newest = page_value(prometheus, "prometheus_remote_storage_highest_timestamp_in_seconds")
        return newest and page_value(prometheus, "prometheus_remote_storage_queue_highest_sent_timestamp_seconds") >= newest \
            and page_value(prometheus, "prometheus_remote_storage_samples_pending") == 0

    time.sleep(3)
    procs.wait_for(sent_all, 60, "Prometheus has sent everything")
    target.stop()
    for name in ("failed", "dropped"):
        assert page_value(prometheus, f"prometheus_remote_storage_samples_{name}_total") == 0, name
    print(f"retried: {page_value(prometheus, 'prometheus_remote_storage_samples_retried_total'):.0f} samples")
    ours = {}
    for labels, samples in remote.read_all(f.nodes[0].url).items():
        ours[tuple(p for p in labels if p[0] not in judge.OWN_LABELS)] = samples
    c = remote.Client(prometheus.url, timeout=60)
    assert c.request("POST", "/api/v1/admin/tsdb/snapshot", b"").status == 200
    c.close()
    prometheus.stop()
    (snapshot,) = (prometheus.data / "snapshots").iterdir()
    zero = {wire.bits(-0.0): 0}  # its sender leaves out a value that equals 0
    theirs = {k: [(t, zero.get(v, v)) for t, v in s] for k, s in tsdb.dump_dir(snapshot).items()}
    assert len(theirs) >= 300 and ours == theirs
