"""Writes to several nodes through their ring: each series is on exactly the nodes that `varve ring where` names, whoever it came to, and answers are those of a node alone."""
import json
import os
import random
import subprocess
import time

import pytest
from lib import procs, remote, remote2
from lib.wire import bits

labels = remote.labels
SECRET = "a secret of tests, long enough\n"


def now():
    return int(time.time() * 1000)


class Fleet:
    """n storing nodes and, when asked, a router; all share one ring file."""

    def __init__(self, tmp_path, spawn, n, factor, router=True, ring=None, **flags):
        self.file, self.factor = tmp_path / "hashrings.json", factor
        secret = tmp_path / "secret"
        secret.write_text(SECRET, "utf-8")
        self.flags = {"hashrings.file": self.file, "replication-factor": factor, "peer.secret-file": secret, **flags}
        self.nodes = [spawn(procs.Varve, name=f"node{i}") for i in range(n)]
        self.addresses = [f"127.0.0.1:{v.port}" for v in self.nodes]
        self.write_ring(ring or [{"endpoints": self.addresses}])
        for v, address in zip(self.nodes, self.addresses):
            v.flags = {**self.flags, "hashrings.local-endpoint": address}
            v.start()
        self.router = None
        if router:
            self.router = spawn(procs.Varve, name="router", flags={**self.flags, "target": "route"})
            self.router.start()

    def write_ring(self, rings):
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(rings), "utf-8")
        os.replace(new, self.file)

    def where(self, tenant, series):
        lines = "".join(json.dumps({"tenant": tenant, "labels": [list(p) for p in s]}) + "\n" for s in series)
        p = subprocess.run([procs.varve_binary(), "ring", "where", str(self.file), f"--replication-factor={self.factor}", "--cases=-"], input=lines,
                           capture_output=True, text=True, timeout=60, check=True)
        return [set(json.loads(line)) for line in p.stdout.splitlines()]

    def on_each(self, tenant):
        """{address: {labels: samples}}: what each node itself has."""
        out = {}
        for v, address in zip(self.nodes, self.addresses):
            c = v.client(tenant)
            got = c.read([(0, now() + 3_600_000, [("=~", "__name__", ".+")])], path=remote.READ_LOCAL)[0]
            out[address] = {tuple(p for p in k if p[0] not in ("tenant_id", "varve_node")): s for k, s in got.items()}
        return out


@pytest.fixture
def fleet(tmp_path, spawn):
    def make(n=3, factor=2, **kw):
        return Fleet(tmp_path, spawn, n, factor, **kw)

    return make


def check_placed(f, tenant, sent):
    """sent: {labels: samples}; every node has exactly what the ring gives it."""
    have = f.on_each(tenant)
    for pairs, owners in zip(sent, f.where(tenant, sent)):
        holders = {address for address, series in have.items() if pairs in series}
        assert holders == owners, (pairs, holders, owners)
        for address in holders:
            assert have[address][pairs] == sent[pairs], (pairs, address)
    assert all(set(series) <= set(sent) for series in have.values())


def test_every_series_is_on_its_nodes_and_no_other(fleet):
    f = fleet(5, 3)
    rng = random.Random(4)
    t = now()
    sent = {labels(f"m{i}", **{f"l{k}": "x" * rng.randrange(1, 200) for k in range(rng.randrange(6))}): [(t, bits(float(i)))] for i in range(400)}
    entries = [f.router, *f.nodes]
    for k, chunk in enumerate(sorted(sent)[i:i + 20] for i in range(0, 400, 20)):
        c = entries[k % len(entries)].client("team-a")
        if k % 2:
            a = c.write([(pairs, sent[pairs]) for pairs in chunk])
        else:
            a = remote2.write(c, [remote2.series(pairs, sent[pairs]) for pairs in chunk])
            assert remote2.written(a) == (len(chunk), 0, 0)
        assert a.status == 204, a.text
    check_placed(f, "team-a", sent)
    # Old and new, through another door: the same series.
    t2 = t + 1000
    c = f.nodes[1].client("team-a")
    assert c.write([(pairs, [(t2, bits(1.0))]) for pairs in sent]).status == 204
    check_placed(f, "team-a", {pairs: [*samples, (t2, bits(1.0))] for pairs, samples in sent.items()})
    m = f.router.metrics()
    assert sum(v for k, v in m.items() if k.startswith("varve_forward_requests_total") and 'result="answered"' in k) <= 4 * 5
    assert m.get("varve_forward_hops_max", 0) == 1


def test_answers_are_those_of_a_node_alone(fleet, varve):
    f = fleet(3, 2)
    alone = varve(name="alone")
    t = now()
    old = t - 40 * 24 * 3_600_000
    good, late, nameless = labels("good", a="1"), labels("late", a="1"), (("a", "1"),)
    body = [(good, [(t, bits(1.0))]), (late, [(old, bits(1.0))]), (nameless, [(t, bits(2.0))]), (labels("more"), [(t, bits(3.0))])]
    one, many = alone.client("x").write(body), f.router.client("x").write(body)
    assert (one.status, one.text) == (400, many.text) and many.status == 400
    again = f.router.client("x").write(body)
    assert (again.status, again.text) == (many.status, many.text)
    check_placed(f, "x", {good: [(t, bits(1.0))], labels("more"): [(t, bits(3.0))]})
    # 2.0 says what was written, over nodes
    a = remote2.write(f.router.client("x"), [remote2.series(p, s) for p, s in [*body, (labels("both"), [(t, bits(1.0)), (old, bits(1.0))])]])
    assert a.status == 400 and remote2.written(a) == (3, 0, 0), a.text
    # what is wrong with all of a request stores nothing
    for bad in ([((("a", "1"), ("\udcff", "x")), [(t, bits(1.0))]), (labels("never"), [(t, bits(1.0))])],):
        x, y = alone.client("x").write(bad), f.router.client("x").write(bad)
        assert x.status == y.status == 400 and x.id == y.id, (x.text, y.text)
    assert not any(labels("never") in series for series in f.on_each("x").values())
    assert f.router.client("../x").write(body).status == 400


def test_a_quorum_is_enough_and_less_is_not(fleet):
    f = fleet(3, 3)
    t = now()
    series = [labels("s", i=str(i)) for i in range(50)]
    c = f.router.client("q")
    assert c.write([(p, [(t, bits(1.0))]) for p in series]).status == 204
    f.nodes[0].kill9()
    for k in range(1, 8):
        assert c.write([(p, [(t + k, bits(1.0))]) for p in series]).status == 204
    f.nodes[1].kill9()
    for k in range(8, 12):
        begin = time.monotonic()
        a = c.write([(p, [(t + k, bits(1.0))]) for p in series])
        assert a.status == 503 and a.id == "err-varve-no-quorum" and a.headers["Retry-After"], a.text
        assert time.monotonic() - begin < 1
    f.nodes[1].start()
    deadline = time.monotonic() + 20
    while c.write([(p, [(t + 11, bits(1.0))]) for p in series]).status != 204:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    have = f.on_each("q") if f.nodes[0].start() else None
    for p in series:
        acked = {t + k for k in range(8)} | {t + 11}
        holders = [{x for x, _ in have[a].get(p, [])} for a in f.addresses]
        for k in acked:
            assert sum(k in h for h in holders) >= 2, (p, k - t)


def test_a_router_lives_with_and_without_rings(fleet, tmp_path):
    f = fleet(3, 2, ring=[{"endpoints": ["only-one:1"]}], router=False)
    router = procs.Varve(tmp_path / "router", flags={**f.flags, "target": "route"})
    router.start(wait=False)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                a = router.client().get("/-/ready")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(0.5)
        a = router.client().get("/-/ready")
        assert a.status == 503 and "fewer than the replication factor" in a.text, a.text
        assert router.client("x").write([(labels("a"), [(now(), bits(1.0))])]).status == 503
        assert f.nodes[0].client().get("/-/ready").status == 200
        ring = router.client().get("/-/ring").json()
        assert ring["epoch"] is None and not ring["good"] and "fewer" in ring["error"]
        assert router.metrics()["varve_ring_last_reload_successful"] == 0
        f.write_ring([{"endpoints": f.addresses}])
        begin = time.monotonic()
        while router.client().get("/-/ready").status != 200:
            assert time.monotonic() - begin < 1
            time.sleep(0.02)
        t = now()
        while time.monotonic() - begin < 1 and len({v.client().get("/-/ring").json()["epoch"] for v in [router, *f.nodes]}) > 1:
            time.sleep(0.02)
        assert router.client("x").write([(labels("a"), [(t, bits(1.0))])]).status == 204
        check_placed(f, "x", {labels("a"): [(t, bits(1.0))]})
        # a bad one changes nothing
        epoch = router.client().get("/-/ring").json()["epoch"]
        f.file.write_text("[{", "utf-8")
        time.sleep(0.6)
        ring = router.client().get("/-/ring").json()
        assert ring["epoch"] == epoch and not ring["good"] and router.metrics()["varve_ring_last_reload_successful"] == 0
        assert router.client("x").write([(labels("a"), [(t + 1, bits(1.0))])]).status == 204
    finally:
        router.stop()


def test_only_peers_come_through_the_peers_door(fleet):
    f = fleet(2, 1)
    for path, method in (("/-/peer/write", "POST"), ("/-/ring", "PUT")):
        a = f.nodes[0].client("x").request(method, path, b"[]")
        assert a.status == 401 and a.id == "err-varve-peer-unknown", a.text
        a = f.nodes[0].client("x").request(method, path, b"[]", {"X-Varve-Peer": "v1 1 abc 00"})
        assert a.status == 403 and a.id == "err-varve-peer-forged", a.text


def test_a_node_that_does_not_route_says_who_does(varve):
    v = varve(target="ingest")
    a = v.client("x").write([(labels("a"), [(now(), bits(1.0))])])
    assert a.status == 404 and "--target" in a.text
