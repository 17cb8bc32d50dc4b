"""Reads over several nodes: any of them answers for all, each sample once, while windows become blocks and blocks move to the bucket; who is missing is missed only when it matters."""
import random
import signal
import threading
import time
import urllib.parse

import pytest
from lib import procs, remote, wire
from lib.remote import labels
from lib.wire import bits
from test_fleet_writes import Fleet

TENANT = "team-a"
ALL = [("=~", "__name__", ".+")]
EVER = (0, 1 << 50)


def now():
    return int(time.time() * 1000)


@pytest.fixture
def fleet(tmp_path, spawn):
    """Nodes that share a bucket, too."""

    def make(n=3, factor=3, **flags):
        bucket = tmp_path / "bucket"
        bucket.mkdir()
        objstore = tmp_path / "objstore.yaml"
        objstore.write_text(procs.filesystem_yaml(bucket), "utf-8")
        f = Fleet(tmp_path, spawn, n, factor, **{"objstore.config-file": objstore, "query.peer-timeout": "2s", **flags})
        heard(f)
        return f

    return make


def heard(f):
    """Every node has heard of every other."""
    for v in f.nodes:
        procs.wait_for(lambda v=v: sum(x == 1 for k, x in v.metrics().items() if k.startswith("varve_peer_up")) >= len(f.nodes) - 1, 20, "peers")


def own(got):
    return {tuple(p for p in k if p[0] != "tenant_id"): s for k, s in got.items()}


def read(server, accept=(remote.SAMPLES,), params="", matchers=None):
    c = server.client(TENANT)
    body = wire.snappy(remote.encode_read([(*EVER, matchers or ALL)], accept))
    return c.request("POST", "/api/v1/read" + params, body, {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"})


def samples_of(server, accept=(remote.SAMPLES,), params="", matchers=None):
    a = read(server, accept, params, matchers)
    assert a.status == 200, a.text
    assert "X-Varve-Warning" not in a.headers, a.headers
    return own(remote.parse_read(a, 1)[0])


def make_series(rng, n, t0, per=30):
    return {labels(f"m{i % 7}", i=str(i), **{f"l{k}": "v" * rng.randrange(1, 30) for k in range(rng.randrange(4))}):
            [(t0 + k * 1000, bits(float(rng.randrange(1000)))) for k in range(per)] for i in range(n)}


def send(f, sent, through=None):
    c = (through or f.router or f.nodes[0]).client(TENANT)
    items = sorted(sent.items())
    for k in range(0, len(items), 100):
        a = c.write(items[k:k + 100])
        assert a.status == 204, a.text


def test_any_node_answers_for_all(fleet, spawn):
    f = fleet(5, 3)
    sent = make_series(random.Random(1), 300, now() - 60_000)
    send(f, sent)
    reader = spawn(procs.Varve, name="reader", flags={**f.flags, "target": "query"}).start()
    for v in [*f.nodes, reader]:
        for accept in (remote.SAMPLES,), (remote.STREAMED,):
            got = samples_of(v, accept)
            assert got == sent, (len(got), len(sent))
        c = v.client(TENANT)
        a = c.get("/api/v1/series?" + urllib.parse.urlencode({"match[]": '{__name__=~"m.*"}'})).json()
        assert {tuple(sorted((k, x) for k, x in s.items() if k != "tenant_id")) for s in a["data"]} == {tuple(sorted(s)) for s in sent}
        assert len(a["data"]) == len(sent) and "warnings" not in a
        names = c.get("/api/v1/labels").json()["data"]
        assert set(names) == {n for s in sent for n, _ in s} | {"tenant_id"}
        values = c.get("/api/v1/label/i/values").json()["data"]
        assert values == sorted(dict(s)["i"] for s in sent)
        assert c.get("/api/v1/label/varve_node/values").json()["data"] == []
        some = c.get("/api/v1/label/i/values?" + urllib.parse.urlencode({"match[]": "m3"})).json()["data"]
        assert some == sorted(dict(s)["i"] for s in sent if dict(s)["__name__"] == "m3")
    # What each has itself, and where the replicas are.
    each = [samples_of(v, params="?scope=local") for v in f.nodes]
    assert all(len(e) < len(sent) for e in each) and sum(map(len, each)) == 3 * len(sent)
    assert samples_of(f.nodes[0], matchers=[*ALL, ("=", "varve_node", f.addresses[2])]) == each[2]
    shown = samples_of(f.nodes[0], params="?dedup=false")
    assert len(shown) == 3 * len(sent) and {dict(k)["varve_node"] for k in shown} == set(f.addresses)
    assert samples_of(reader, params="?scope=local") == {}
    a = read(f.nodes[0], params="?scope=elsewhere")
    assert a.status == 400 and a.id == "err-varve-bad-parameter", a.text


def test_who_is_missing_is_missed_only_when_it_matters(fleet):
    f = fleet(5, 3)
    sent = make_series(random.Random(2), 200, now() - 60_000)
    send(f, sent)
    f.nodes[4].kill9()
    # Also before anybody has noticed.
    assert samples_of(f.nodes[0]) == sent and samples_of(f.nodes[1], (remote.STREAMED,)) == sent
    f.nodes[3].kill9()
    a = read(f.nodes[0])
    assert a.status == 503 and a.id == "err-varve-incomplete" and ("127.0.0.1" in a.text), a.text
    procs.wait_for(lambda: sum(x == 0 for k, x in f.nodes[0].metrics().items() if k.startswith("varve_peer_up")) >= 2, 20, "the roster")
    begin = time.monotonic()
    a = read(f.nodes[0])
    assert a.status == 503 and time.monotonic() - begin < 1
    for accept in (remote.SAMPLES,), (remote.STREAMED,):
        a = read(f.nodes[0], accept, "?partial_response=true")
        warnings = a.headers.get_all("X-Varve-Warning")
        assert a.status == 200 and sorted(w.split(": ")[0] for w in warnings) == sorted(f.addresses[3:]), warnings
        got = own(remote.parse_read(a, 1)[0])
        assert got and all(sent[k] == s for k, s in got.items())
    a = f.nodes[0].client(TENANT).get("/api/v1/labels?partial_response=1")
    assert a.status == 200 and len(a.json()["warnings"]) == 2 and len(a.headers.get_all("X-Varve-Warning")) == 2
    assert f.nodes[0].client(TENANT).get("/api/v1/labels").status == 503
    # Back, with what it had.
    f.nodes[3].start()
    procs.wait_for(lambda: read(f.nodes[0]).status == 200, 20, "an answer that is whole")
    assert samples_of(f.nodes[0]) == sent


def test_a_node_that_hangs_costs_its_time_out_once(fleet):
    f = fleet(3, 3)
    sent = make_series(random.Random(3), 100, now() - 60_000)
    send(f, sent)
    f.nodes[2].signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            begin = time.monotonic()
            assert samples_of(f.nodes[0]) == sent
            assert time.monotonic() - begin < 4
    finally:
        f.nodes[2].signal(signal.SIGCONT)


def test_blocks_on_their_way_to_the_bucket_are_seen_throughout(fleet):
    """Windows become blocks, blocks go live, while all is read from every node; the other nodes' catalogs do not hear of it before the next audit."""
    f = fleet(3, 2, **{"head.block-range": "1m", "bucket.audit-interval": "1h"})
    sent = make_series(random.Random(4), 150, now() - 300_000, per=240)
    send(f, sent)
    over, wrong, reads = threading.Event(), [], [0] * 3

    def reader(k):
        while not over.is_set():
            got = samples_of(f.nodes[k], (remote.STREAMED,) if reads[k] % 2 else (remote.SAMPLES,))
            reads[k] += 1
            if got != sent:
                wrong.append((k, reads[k], len(got), [p for p in sent if got.get(p) != sent[p]][:1]))
                return

    threads = [threading.Thread(target=reader, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    try:
        for v in f.nodes:
            time.sleep(0.5)
            assert v.flush()
            time.sleep(0.5)
    finally:
        over.set()
        for t in threads:
            t.join()
    assert not wrong and min(reads) > 3, (wrong, reads)
    # Each of them knows its own blocks only.
    for v in f.nodes:
        assert samples_of(v) == sent


def test_nodes_that_left_the_ring_are_asked(fleet):
    f = fleet(5, 2)
    sent = make_series(random.Random(5), 200, now() - 60_000)
    send(f, sent)
    f.write_ring([{"endpoints": f.addresses[:3]}])
    procs.wait_for(lambda: len({v.client().get("/-/ring").json()["epoch"] for v in [f.router, *f.nodes]}) == 1, 5, "one epoch")
    more = {k: [(t + 40_000, b) for t, b in s] for k, s in sent.items()}
    send(f, more)
    both = {k: s + more[k] for k, s in sent.items()}
    for v in f.nodes:
        assert samples_of(v) == both


def test_exemplars_and_metadata_of_all_nodes(fleet):
    f = fleet(4, 2)
    t = now()
    c = f.router.client(TENANT)
    parts = []
    for i in range(40):
        pairs = labels(f"fam{i}", i=str(i))
        body = remote.encode_labels(pairs) + remote.encode_sample(t, bits(1.0)) + remote.encode_exemplar(labels(trace_id=f"t{i}"), t, bits(0.5))
        parts += [wire.pb_len(1, body)]
    parts += [remote.encode_metadata(f"fam{i}", "gauge", f"help {i}") for i in range(40)]
    a = c.write_body(wire.snappy(b"".join(parts)))
    assert a.status == 204, a.text
    for v in f.nodes:
        data = v.client(TENANT).get("/api/v1/query_exemplars?" + urllib.parse.urlencode({"query": '{__name__=~"fam.*"}'})).json()["data"]
        assert sorted(e["labels"]["trace_id"] for s in data for e in s["exemplars"]) == sorted(f"t{i}" for i in range(40))
        assert all("varve_node" not in s["seriesLabels"] for s in data)
        told = v.client(TENANT).get("/api/v1/metadata").json()["data"]
        assert told == {f"fam{i}": [{"type": "gauge", "help": f"help {i}", "unit": ""}] for i in range(40)}
        assert len(v.client(TENANT).get("/api/v1/metadata?limit=3").json()["data"]) == 3


def test_only_peers_may_ask_as_peers(fleet):
    f = fleet(2, 1)
    a = f.nodes[0].client(TENANT).request("POST", "/-/peer/read", b"\x01\x01\x00\x00\x00\x00\x00\x00")
    assert a.status == 401 and a.id == "err-varve-peer-unknown", a.text
    a = f.nodes[0].client(TENANT).request("POST", "/-/peer/read", b"", {"X-Varve-Peer": "v1 1 abc 00"})
    assert a.status == 403, a.text
