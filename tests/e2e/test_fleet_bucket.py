"""One picture of the bucket: what a node ships, the others read, within two seconds and without a listing; also after they were away, killed, or lost their catalogs."""
import json
import os
import time

import pytest
from lib import procs, remote
from lib.wire import bits

labels = remote.labels
SECRET = "a secret of tests, long enough\n"
LOCAL = "/api/v1/read?scope=local"


class Nodes:
    """Nodes of one ring over one directory as the bucket. None lists it: audits are off, but for the first of a new catalog and those that are owed."""

    def __init__(self, tmp_path, spawn, n, **flags):
        secret, self.ring, store = tmp_path / "secret", tmp_path / "hashrings.json", tmp_path / "objstore.yml"
        self.bucket = tmp_path / "bucket"
        self.bucket.mkdir()
        secret.write_text(SECRET, "utf-8")
        store.write_text(f"type: FILESYSTEM\nconfig:\n  directory: {self.bucket}\n", "utf-8")
        self.nodes = [spawn(procs.Varve, name=f"node{i}") for i in range(n)]
        self.addresses = addresses = [f"127.0.0.1:{v.port}" for v in self.nodes]
        self.ring.write_text(json.dumps([{"endpoints": addresses}]), "utf-8")
        for i, (v, address) in enumerate(zip(self.nodes, addresses)):
            v.flags = {"hashrings.file": self.ring, "hashrings.local-endpoint": address, "peer.secret-file": secret, "objstore.config-file": store,
                       "bucket.audit-interval": "0s", "catalog.snapshot-interval": "0s", "label": f"node={i}", **flags}
            v.start()
        # A node is followed once it has said who it is.
        procs.wait_for(lambda: all(v.metric("varve_feed_peers") == n - 1 for v in self.nodes), 20, "all follow all")

    def digests(self):
        answers = [procs.http_get(v.url + "/api/v1/status/blocks?digest=1") for v in self.nodes if v.running()]
        return [json.loads(text) if status == 200 else {} for status, text in answers]


def patience():
    """Sanitized binaries are slower; the promise is that of a plain one."""
    return 5 if os.environ.get("VARVE_SANITIZED") else 1


@pytest.fixture
def nodes(tmp_path, spawn):
    return lambda n=2, **flags: Nodes(tmp_path, spawn, n, **flags)


def same(f, n=None):
    d = f.digests()
    return len({x.get("digest") for x in d}) == 1 and "digest" in d[0] and n in (None, len(d))


def ship(v, tenant, k, series=20):
    """Series that go where the ring has them; a flush makes blocks of them."""
    t = int(time.time() * 1000)
    sent = {labels("shipped", i=str(i), k=str(k)): [(t, bits(float(i)))] for i in range(series)}
    assert v.client(tenant).write([(p, s) for p, s in sent.items()]).status == 204
    return sent


def read_local(v, tenant):
    """What this node says by itself: its head, its directories, and the bucket by its catalog."""
    end = int(time.time() * 1000) + 3_600_000
    a = v.client(tenant).request("POST", LOCAL, remote.snappy(remote.encode_read([(0, end, [("=~", "__name__", ".+")])])),
                                 {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Read-Version": "0.1.0"})
    return {tuple(p for p in k if p[0] not in ("tenant_id", "node", "varve_node")): s for k, s in remote.parse_read(a, 1)[0].items()}


def blocks_of(v):
    return [b for b in json.loads(procs.http_get(v.url + "/api/v1/status/blocks")[1])["blocks"] if b["state"] == "live"]


def audits(v):
    """Listings are the only pages that a bucket is asked for."""
    return v.metrics().get('varve_bucket_operations_total{operation="list",result="ok"}', 0)


def test_what_one_ships_the_other_reads_within_two_seconds(nodes):
    f = nodes(2)
    a, b = f.nodes
    listed = [audits(v) for v in f.nodes]
    expected, live = {}, 0
    for k in range(4):
        expected.update(ship(f.nodes[k % 2], "t", k))
        for v in f.nodes:
            v.flush()  # returns when its blocks are live
        procs.wait_for(lambda: same(f) and f.digests()[0]["live_blocks"] > live, 2 * patience(), f"one picture: {f.digests()}", every=0.01)
        live = f.digests()[0]["live_blocks"]
        for v in f.nodes:
            assert read_local(v, "t") == expected
    assert {x["ulid"] for x in blocks_of(a)} == {x["ulid"] for x in blocks_of(b)}
    assert [audits(v) for v in f.nodes] == listed, "nobody listed the bucket for it"
    assert a.metrics()["varve_catalog_digest"] == b.metrics()["varve_catalog_digest"]
    assert a.metrics()["varve_feed_peers"] == 1 and a.metrics()["varve_feed_peers_silent"] == 0


def test_who_was_away_reads_on(nodes):
    f = nodes(3)
    a, b, c = f.nodes
    expected = ship(a, "t", 0)
    for v in f.nodes:
        v.flush()
    procs.wait_for(lambda: same(f), 2 * patience(), f"{f.digests()}", every=0.01)
    c.kill9()
    # The third's share is with nobody; what the ring gives the two others is enough here.
    t = int(time.time() * 1000)
    for k in range(40):
        pairs = labels("later", k=str(k))
        if a.client("t").write([(pairs, [(t, bits(1.0))])]).status == 204:
            expected[pairs] = [(t, bits(1.0))]
    assert len(expected) > 25
    a.flush()
    b.flush()
    c.start()
    procs.wait_for(lambda: same(f, 3), 10, f"{f.digests()}", every=0.01)
    c.flush()
    procs.wait_for(lambda: same(f), 2 * patience(), f"{f.digests()}", every=0.01)
    assert read_local(c, "t") == expected
    assert c.metrics().get("varve_feed_gaps_total", 0) == 0


def test_a_lost_catalog_begins_with_a_snapshot(nodes):
    f = nodes(2, **{"catalog.snapshot-interval": "200ms"})
    a, b = f.nodes
    expected = ship(a, "t", 0)
    for v in f.nodes:
        v.flush()
    procs.wait_for(lambda: same(f) and f.digests()[0]["live_blocks"] > 0, 2 * patience(), "", every=0.01)

    def written():
        return [v.metric("varve_catalog_snapshots_total") for v in f.nodes]

    procs.wait_for(lambda: sum(written()) >= 1, 20, "a snapshot in the bucket")
    names = {p.name for p in (f.bucket / "varve" / "catalog").iterdir() if not p.name.startswith("claim-")}
    assert names and names <= {"snapshot-0", "snapshot-1"}, names
    # nothing changes: nothing is written; then it is, by one of them
    time.sleep(2)
    before = written()
    time.sleep(1)
    assert written() == before
    expected.update(ship(a, "t", 1))
    for v in f.nodes:
        v.flush()
    procs.wait_for(lambda: written() != before, 20, "the next snapshot")
    time.sleep(1)
    assert sum(n > m for n, m in zip(written(), before)) == 1, (written(), before)
    assert same(f)
    digest = f.digests()[0]["digest"]
    b.kill9()
    for p in b.data.glob("catalog.sqlite*"):
        p.unlink()
    b.start()
    procs.wait_for(lambda: len({x.get("digest") for x in f.digests()} | {digest}) == 1 and len(f.digests()) == 2, 10, f"{f.digests()} {digest}", every=0.01)
    assert "snapshot of the catalog taken from the bucket" in b.log()
    assert read_local(b, "t") == expected
    # a new one of its: the feed goes on
    more = ship(b, "t", 2)
    for v in f.nodes:
        v.flush()
    procs.wait_for(lambda: same(f), 10, f"{f.digests()}", every=0.01)
    assert read_local(a, "t") == {**expected, **more}


def test_a_snapshot_that_is_rotten_is_refused(nodes):
    f = nodes(2, **{"catalog.snapshot-interval": "200ms"})
    a, b = f.nodes
    expected = ship(a, "t", 0)
    for v in f.nodes:
        v.flush()
    procs.wait_for(lambda: sum(v.metric("varve_catalog_snapshots_total") for v in f.nodes) >= 1, 20, "a snapshot in the bucket")
    procs.wait_for(lambda: same(f) and f.digests()[0]["live_blocks"] > 0, 10, "", every=0.01)
    digest = f.digests()[0]["digest"]
    b.kill9()
    a.kill9()
    for p in (f.bucket / "varve" / "catalog").glob("snapshot-*"):
        raw = bytearray(p.read_bytes())
        raw[len(raw) // 2] ^= 0x10
        p.write_bytes(raw)
    for p in b.data.glob("catalog.sqlite*"):
        p.unlink()
    b.start()
    procs.wait_for(lambda: f.digests()[0].get("digest") == digest, 10, f"{f.digests()} {digest}")
    assert "snapshot of the catalog refused" in b.log() or "is not whole" in b.log()
    a.start()
    procs.wait_for(lambda: same(f, 2), 10, f"{f.digests()}")
    assert read_local(b, "t") == expected


def test_who_leaves_is_heard_first(nodes):
    f = nodes(3)
    a, b, c = f.nodes
    expected = {}
    for k in range(3):
        expected.update(ship(f.nodes[k], "t", k))
    new = f.ring.with_suffix(".new")
    new.write_text(json.dumps([{"endpoints": f.addresses[:2]}]), "utf-8")
    os.replace(new, f.ring)
    assert c.client().request("POST", "/-/drain", b"", {"Authorization": "Bearer " + SECRET.strip()}).status == 200
    assert c.wait(60) == 0
    for v in (a, b):
        v.flush()
    procs.wait_for(lambda: same(f, 2), 2 * patience(), f"{f.digests()}", every=0.01)
    # nobody else has what it took, and nobody listed the bucket
    assert read_local(a, "t") == read_local(b, "t") == expected
    assert a.metrics().get("varve_feed_gaps_total", 0) == 0
    procs.wait_for(lambda: a.metric("varve_feed_peers") == 1 and a.metric("varve_feed_peers_silent") == 0, 20, "it is followed no more")


def test_the_feed_is_for_peers(nodes):
    f = nodes(2)
    for q in ("", "?after=0", "?node=x"):
        a = f.nodes[0].client().get("/-/peer/changes" + q)
        assert a.status == 401 and a.id == "err-varve-peer-unknown", a.text
    a = f.nodes[0].client().request("GET", "/-/peer/changes", b"", {"X-Varve-Peer": "v1 1 abc 00"})
    assert a.status == 403 and a.id == "err-varve-peer-forged", a.text


def test_stopping_waits_for_no_question(nodes):
    f = nodes(3)
    for v in f.nodes:
        begin = time.monotonic()
        assert v.stop() == 0
        assert time.monotonic() - begin < 4 * patience()
