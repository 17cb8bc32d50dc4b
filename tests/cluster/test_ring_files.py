"""Ring files that are wrong, replaced in every way, or not the same everywhere; and those of Thanos' documentation."""
import json
import threading
import time

import pytest
from fleet import LONG, end_load, judge, procs

DIFFER_S = 120 if LONG else 20


def wrong_files(good):
    """(name, text, words of the reason)"""
    nodes = json.loads(good)[0]["endpoints"]

    def ring(**kw):
        return json.dumps([{"hashring": "default", "endpoints": nodes, **kw}], indent=1)
    return [
        ("empty", "", "empty"),
        ("half written", good[:len(good) // 2], "ends"),
        ("not JSON", "endpoints: []\n", ":1"),
        ("no rings", "[]", ""),
        ("no endpoints", ring(endpoints=[]), ""),
        ("duplicate endpoint", ring(endpoints=nodes + nodes[:1]), "twice"),
        ("fewer than the factor", ring(endpoints=nodes[:2]), "replication factor"),
        ("unknown key", ring(endpoint=nodes), "endpoint"),
        ("unknown algorithm", ring(algorithm="md5"), "md5"),
        ("zones with hashmod", ring(algorithm="hashmod", endpoints=[{"address": a, "az": f"z{i}"} for i, a in enumerate(nodes)]), "zone"),
        ("shard larger than the ring", ring(shuffle_sharding_config={"shard_size": 9}), "shard"),
        ("no port", ring(endpoints=["a", "b", "c"]), "port"),
    ]


def test_a_wrong_file_is_refused_as_a_whole_and_the_old_ring_stays(fleet):
    f = fleet(3)
    router = f.three()
    good, epoch, some = f.text, f.epoch_of(f.text), [router, f.nodes[0]]
    client = router.client()
    for name, text, words in wrong_files(good):
        f.rings.write(text)
        for n in some:
            procs.wait_for(lambda n=n: n.metric("varve_ring_last_reload_successful") == 0, 3, f"{name}: {n.name} says that it was refused", 0.05)
            status = n.ring_status()
            assert status["epoch"] == epoch and n.running(), (name, status)
            said = json.dumps(status)
            assert "hashrings.json:" in said and words in said, (name, status)
            assert n.ready()[0] == 200, name
            assert "hashrings.json:" in n.log_tail(5), name
        assert client.write([(judge.remote.labels("still", kind=name), [(int(time.time() * 1000), 1)])]).status == 204, name
        f.rings.write(good)
        for n in some:
            procs.wait_for(lambda n=n: n.metric("varve_ring_last_reload_successful") == 1, 3, f"after {name}: {n.name} takes the good one", 0.05)


def test_without_any_valid_ring_a_router_waits_and_a_store_is_ready(fleet):
    f = fleet(3)
    f.rings.write('[{"endpoints": [')
    for _ in range(3):
        f.node()  # ready, or this would not return
    router = f.router()
    status, text = router.ready()
    assert status == 503 and "ring" in text, text
    a = router.client().write([(judge.remote.labels("up"), [(int(time.time() * 1000), 1)])])
    assert a.status == 503 and a.headers.get("Retry-After") and a.id, (a.status, a.text)
    f.publish(f.nodes)
    began = time.monotonic()
    procs.wait_for(lambda: router.ready()[0] == 200, 5, "the router comes alive", 0.02)
    print(f"alive after {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 1
    f.settle()
    assert router.client().write([(judge.remote.labels("up"), [(int(time.time() * 1000), 1)])]).status == 204


class Epochs(threading.Thread):
    """What a node says that it runs, fifty times a second."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.seen, self.over = node, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.02):
            e = self.node.epoch()
            if e and (not self.seen or self.seen[-1][1] != e):
                self.seen.append((time.monotonic(), e))


@pytest.mark.parametrize("how", ["rename", "links", "in place"])
def test_twenty_replacements_in_a_row(fleet, how):
    f = fleet(1)
    router = f.three(3)
    looks = [Epochs(n) for n in f.everybody()]
    versions = [(None, f.epoch_of(f.text))]
    slowest = 0
    for i in range(20):
        text = f.publish(f.nodes[:2] if i % 2 == 0 else f.nodes, how, name=f"version-{i}", tenants=[], external_labels={"version": str(i)})
        done = time.monotonic()
        f.settle(timeout=3)
        slowest = max(slowest, time.monotonic() - done)
        versions.append((done, f.epoch_of(text)))
    time.sleep(0.2)  # the last one is seen by all who look
    for look in looks:
        look.over.set()
        look.join()
        told = [e for _, e in versions]
        assert [e for _, e in look.seen] == told[told.index(look.seen[0][1]):], f"{look.node.name} ran something else, or something twice"
    print(f"the slowest of 20 was everywhere after {slowest:.2f} s")
    assert slowest < 1
    assert all(n.metric("varve_ring_last_reload_successful") == 1 for n in f.everybody())
    assert router.ready()[0] == 200


def test_reload_and_put_are_at_once(fleet):
    f = fleet(1)
    f.three(3)
    secret = {"Authorization": f"Bearer {f.secret.read_text().strip()}"}
    n = f.nodes[0]
    client = n.client()
    text = f.ring_text(f.nodes[:2])
    assert client.request("PUT", "/-/ring", text.encode()).status in (401, 403)
    assert client.request("PUT", "/-/ring", text.encode(), {"Authorization": "Bearer wrong"}).status in (401, 403)
    a = client.request("PUT", "/-/ring", text.encode(), secret)
    assert a.status in (200, 204) and n.epoch() == f.epoch_of(text), (a.status, a.text)
    a = client.request("PUT", "/-/ring", b'[{"endpoints": ["a:1", "a:1"]}]', secret)
    assert 400 <= a.status < 500 and "twice" in a.text and n.epoch() == f.epoch_of(text), (a.status, a.text)
    f.publish(f.nodes, name="reloaded")
    assert client.request("POST", "/-/reload", b"").status in (200, 204)
    assert n.epoch() == f.epoch_of(f.text)


@pytest.mark.timeout(600)
def test_nodes_on_different_rings_for_long(fleet):
    """Two routers, each with half of the nodes on its ring: a sample is stored by a quorum of the ring of the router that took it, in one hop, and whoever is asked finds it."""
    f = fleet(3)
    f.three(5)
    other = f.dir / "other.json"
    behind = f.router(start=False, flags={"hashrings.file": other})
    old = f.ring_text(f.nodes[:3])
    other.write_text(old)
    behind.start()
    # A storing node that has the old ring as well.
    for n in f.nodes[3:]:
        n.stop()
        n.flags["hashrings.file"] = other
        n.start()
    assert behind.epoch() == f.epoch_of(old) != f.routers[0].epoch()
    loads = [f.load(r, name, series=600, batch=50) for r, name in ((f.routers[0], "new"), (behind, "old"))]
    time.sleep(DIFFER_S)
    reads = [f.reader(load, f.nodes) for load in loads]
    time.sleep(5)
    for r in reads:
        got = r.end()
        assert got["refused"] == 0 and not any(got[k] for k in judge.Findings.KINDS), got
    for load in loads:
        book, found = end_load(load, f)
        s = book.summary()
        print(s, found)
        assert s["errors"] == s["refused"] == 0
        assert judge.check_all(book, f.nodes[4].url).clean, "one that has the old ring finds all as well"
    for r, load, nodes in ((f.routers[0], loads[0], 5), (behind, loads[1], 3)):
        assert f.sum("varve_forward_requests_total", [r]) <= nodes * (len(load.book.requests) + 1)
    assert f.sum("varve_forward_requests_total", f.nodes) == 0, "no second hop"
    assert max(n.metric("varve_forward_hops_max") for n in f.everybody()) == 1
    # And they agree again.
    other.write_text(f.text)
    f.settle(timeout=3)


DOCUMENTED = {
    "the talk": '[{"hashring": "default", "tenants": ["ci", "telemetry"], "endpoints": ["127.0.0.1:1337", "127.0.0.1:1338", "127.0.0.1:1339"]}]',
    "receive.md": '[\n    {\n        "endpoints": [\n            "127.0.0.1:10907",\n            "127.0.0.1:11907",\n            "127.0.0.1:12907"\n        ]\n    }\n]\n',
    "receive.md, zones": json.dumps([{"endpoints": [{"address": f"127.0.0.1:1{i}907", "az": "ABC"[i % 3]} for i in range(6)]}]),
    "receive.md, glob": '[{"tenants": ["foo*"], "tenant_matcher_type": "glob", "endpoints": ["127.0.0.1:1234", "127.0.0.1:12345", "127.0.0.1:1235"]}]',
    "receive.md, Cap'n Proto": json.dumps([{"endpoints": [{"address": f"node-{i}:10901", "capnproto_address": f"node-{i}:19391"} for i in range(1, 4)]}]),
    "receive.md, shuffle sharding": json.dumps([{
        "endpoints": [{"address": f"node-{i + 1}:10901", "capnproto_address": f"node-{i + 1}:19391", "az": ("foo", "bar", "qux")[i % 3]} for i in range(6)], "algorithm": "ketama",
        "shuffle_sharding_config": {"shard_size": 2, "cache_size": 100,
                                    "overrides": [{"shard_size": 3, "tenants": ["prefix-tenant-*"], "tenant_matcher_type": "glob"}]}}]),
}


def test_files_of_thanos_load_unchanged(fleet):
    """Each is in force in a running node within a second, and is what the tool says it is."""
    f = fleet(1)
    f.rings.write(DOCUMENTED["the talk"])
    node = f.node()
    for name, text in DOCUMENTED.items():
        f.rings.write(text)
        took = f.settle(text, [node], 3)
        assert took < 1, (name, took)
        assert node.metric("varve_ring_nodes") == len(json.loads(text)[0]["endpoints"]), name


def test_the_talks_ring_serves_its_tenants_and_nobody_else(fleet):
    """Its file word for word but for the ports, which have to be free here."""
    f = fleet(1)
    for _ in range(3):
        f.node()
    router = f.router()
    f.text = f.ring_text(f.nodes, tenants=["ci", "telemetry"])
    f.rings.write(f.text)
    f.settle()
    now = int(time.time() * 1000)
    for tenant in ("ci", "telemetry"):
        c = router.client(tenant)
        assert c.write([(judge.remote.labels("up", i=str(i)), [(now, 1)]) for i in range(30)]).status == 204
        where = [judge.ask(n.url, tenant, judge.remote.ALL, now, now, scope="local") for n in f.nodes]
        assert sum(map(len, where)) == 30 and all(where), "each series on one node, and each node has some"
    a = router.client("nobody").write([(judge.remote.labels("up"), [(now, 1)])])
    assert a.status >= 400 and a.id, "no ring serves this tenant"


KINDS = {
    "ketama": ({}, "ketama"), "hashmod": ({}, "hashmod"), "zones": ({"zones": 3}, "ketama"), "a tenant by pattern": ({"tenants": ["t?am-*"], "tenant_matcher_type": "glob"}, "ketama"),
    "shuffle sharding": ({"zones": 3, "shuffle_sharding_config": {"shard_size": 3}}, "ketama"),
    "an override, and an algorithm that goes before the flag": ({"algorithm": "ketama", "shuffle_sharding_config": {"shard_size": 5, "overrides": [{"shard_size": 3, "tenants": ["team-*"], "tenant_matcher_type": "glob"}]}}, "hashmod"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tool_and_the_server_place_alike(fleet, kind):
    more, algorithm = KINDS[kind]
    f = fleet(2, algorithm)
    for _ in range(6):
        f.node()
    router = f.router()
    f.publish(f.nodes, **more)
    f.settle()
    load = f.load(router, series=1000, batch=250, tenant="team-x")
    load.wait_rounds(2)
    book, _ = end_load(load, f)
    owners = f.owners(book.shape)
    have = {n.address: judge.held(n.url, book) for n in f.nodes}
    for i, addresses in enumerate(owners):
        assert {a for a, series in have.items() if i in series} == set(addresses), i
