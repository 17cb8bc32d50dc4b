"""Tenants over a ring: series go by their label to the nodes of their tenant's ring, limits are the fleet's, wherever a request arrives, and a deletion is everybody's."""
import json
import threading
import time

import pytest
from lib import procs, remote, remote2
from lib.remote import labels
from lib.wire import bits, pb_len, snappy


def now():
    return int(time.time() * 1000)


@pytest.fixture
def fleet(varve):
    """fleet(n, factor, routers, **flags): storing nodes, then routers; rings may be given as a function of the addresses."""

    def make(n, factor=1, routers=0, rings=lambda a: [{"endpoints": a}], **flags):
        servers = [varve(f"node{k}", start=False) for k in range(n)] + [varve(f"router{k}", start=False) for k in range(routers)]
        text = json.dumps(rings([f"127.0.0.1:{s.port}" for s in servers[:n]]))
        for k, s in enumerate(servers):
            s.flags.update({"hashrings": text, "replication-factor": factor, **flags})
            s.flags.update({"hashrings.local-endpoint": f"127.0.0.1:{s.port}"} if k < n else {"target": "route"})
            s.start(wait=False)
        for s in servers:
            s.wait_url(s.url + "/-/ready")
        return servers

    return make


LOCAL = ("tenant_id", "varve_node")


def stored(server, tenant):
    return {tuple(p for p in k if p[0] not in LOCAL): v for k, v in server.read(tenant, path=remote.READ_LOCAL).items()}


def everywhere(servers, tenant):
    """{labels: (how many nodes have it, samples)}; all that have it have the same."""
    out = {}
    for s in servers:
        for k, v in stored(s, tenant).items():
            n, was = out.get(k, (0, v))
            assert was == v, k
            out[k] = (n + 1, v)
    return out


def send(client, version, all_series):
    if version == 1:
        return client.write(all_series)
    answer = remote2.write(client, [remote2.series(pairs, samples) for pairs, samples in all_series])
    assert remote2.written(answer) is not None
    return answer


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("factor", [1, 2])
def test_series_go_to_the_nodes_of_their_tenants_ring(fleet, version, factor):
    """Where each series is agrees with `varve ring where` for its tenant and the labels that are left."""
    rings = lambda a: [{"hashring": "two", "tenants": ["t-1", "t-2"], "endpoints": a[:2]}, {"hashring": "rest", "endpoints": a}]
    servers = fleet(3, factor, 1, rings, **{"tenant.split-label": "team"})
    nodes, router, t = servers[:3], servers[3], now()
    rows = [(labels("up", i=str(i), **({"team": f"t-{i % 7}"} if i % 7 else {})), [(t, bits(float(i)))]) for i in range(300)]
    answer = send(router.client("mine"), version, rows)
    assert answer.status == 204, answer.text
    if version == 2:
        assert remote2.written(answer) == (300, 0, 0)
    path = router.dir / "rings.json"
    path.write_text(router.flags["hashrings"], "utf-8")
    for k in range(7):
        tenant = f"t-{k}" if k else "mine"
        want = {labels("up", i=str(i)): (factor, [(t, bits(float(i)))]) for i in range(k, 300, 7)}
        assert everywhere(nodes, tenant) == want
        cases = "".join(json.dumps({"tenant": tenant, "labels": pairs}) + "\n" for pairs in want)
        (router.dir / "cases").write_text(cases, "utf-8")
        where = router.run("ring", "where", path, f"--cases={router.dir / 'cases'}", f"--replication-factor={factor}", check=0).stdout.splitlines()
        for pairs, addresses in zip(want, map(json.loads, where)):
            for s in nodes:
                assert (pairs in stored_once(s, tenant)) == (f"127.0.0.1:{s.port}" in addresses)
    assert everywhere(nodes[2:], "t-1") == {} == everywhere(nodes[2:], "t-2")


_stored = {}


def stored_once(server, tenant):
    key = (server.port, server.pid, tenant)
    if key not in _stored:
        _stored[key] = set(stored(server, tenant))
    return _stored[key]


@pytest.mark.parametrize("version", [1, 2])
def test_what_comes_with_a_series_travels_with_it(fleet, version):
    """Histograms, exemplars, metadata: the frames of 2.0 have symbols of their own for each tenant."""
    servers = fleet(2, 2, 1, **{"tenant.split-label": "team"})
    t, router = now(), servers[2]
    if version == 2:
        def one(team, n):
            return remote2.series(labels("m_total", team=team, z=f"only-{team}"), [(t, bits(n))], [], [(labels(trace_id=team), bits(n), t)],
                                  (remote2.COUNTER, f"help of {team}", f"unit-{team}"))
        hist = {"schema": 0, "count": 3, "total": 4.0, "zero": 0, "pos": (1, 2)}
        answer = remote2.write(router.client(), [one("a", 1.0), one("b", 2.0), remote2.series(labels("h", team="b"), histograms=[remote2.histogram(t, **hist)])])
        assert (answer.status, remote2.written(answer)) == (204, (2, 1, 2)), answer.text
    else:
        body = b"".join(pb_len(1, remote.encode_labels(labels("m_total", team=team, z=f"only-{team}")) + remote.encode_sample(t, bits(n))
                               + remote.encode_exemplar(labels(trace_id=team), t, bits(n))) for team, n in (("a", 1.0), ("b", 2.0)))
        body += pb_len(1, remote.encode_labels(labels("h", team="b")) + remote.encode_int_histogram(t, 0, 0.001, 0, 3, 4.0, [(0, 2)], [1, 1]))
        body += remote.encode_metadata("m_total", "counter", "help of all")
        answer = router.client().write_body(snappy(body))
        assert answer.status == 204, answer.text
    for s in servers[:2]:
        for team, n in (("a", 1.0), ("b", 2.0)):
            got = stored(s, team)
            assert got[labels("m_total", z=f"only-{team}")] == [(t, bits(n))] and len(got) == (2 if team == "b" else 1)
            c = s.client(team)
            x = c.get(f"/api/v1/query_exemplars?query=m_total&start={t / 1000 - 60}&end={t / 1000 + 60}").json()["data"]
            assert [e["labels"] for one in x for e in one["exemplars"]] == [{"trace_id": team}]
            meta = c.get("/api/v1/metadata").json()["data"]
            if version == 2:
                assert [(m["help"], m["unit"]) for m in meta["m_total"]] == [(f"help of {team}", f"unit-{team}")]
            else:
                assert meta == {} and s.client().get("/api/v1/metadata").json()["data"]["m_total"][0]["help"] == "help of all"


@pytest.mark.parametrize("version", [1, 2])
def test_the_gravest_answers_and_the_rest_is_stored(fleet, tmp_path, version):
    limits = tmp_path / "limits.yml"
    limits.write_text("write: {tenants: {slow: {samples_per_second: 1, samples_burst: 1}, small: {request: {series_limit: 2}}, few: {head_series_limit: 1}}}", "utf-8")
    servers = fleet(2, 2, 1, **{"tenant.split-label": "team", "limits.file": limits})
    t, c = now(), servers[2].client("mine")

    def body(*rows):
        return [(labels("up", team=team, **more), [(at, bits(1.0))]) for team, more, at in rows]

    def refused(answer, status, error_id, *words):
        assert (answer.status, answer.id) == (status, "err-varve-" + error_id), answer.text
        for w in words:
            assert w in answer.text, answer.text

    old = t - 10**11
    refused(send(c, version, body(("a", {}, t), ("b", {}, old), ("..", {}, t))), 400, "too-old")
    refused(send(c, version, body(("a", {}, t + 1), ("..", {}, t))), 400, "tenant", "1 of 2 series refused")
    refused(send(c, version, body(("small", {"i": "1"}, t), ("small", {"i": "2"}, t), ("small", {"i": "3"}, t), ("a", {}, t + 2), ("b", {}, old))), 429,
            "tenant-request-limit", "tenant small")
    assert send(c, version, body(("slow", {}, t), ("slow", {}, t + 1), ("slow", {}, t + 2))).status == 204
    answer = send(c, version, body(("slow", {}, t + 3), ("a", {}, t + 3)))
    refused(answer, 429, "tenant-rate", "tenant slow")
    assert int(answer.headers["Retry-After"]) >= 1
    refused(send(c, version, body(("few", {"i": "1"}, t), ("few", {"i": "2"}, t), ("a", {}, t + 4))), 429, "tenant-series")
    assert everywhere(servers[:2], "a") == {labels("up"): (2, [(t + k, bits(1.0)) for k in range(5)])}
    assert everywhere(servers[:2], "small") == {} and len(everywhere(servers[:2], "few")) == 1
    refused(send(c, version, body(("..", {}, t))), 400, "tenant")
    servers[0].kill9()
    servers[1].kill9()
    refused(send(c, version, body(("a", {}, t + 5), ("small", {"i": "1"}, t), ("small", {"i": "2"}, t), ("small", {"i": "3"}, t))), 503, "no-quorum")


@pytest.mark.timeout(180)
def test_ten_thousand_tenants_over_three_nodes(fleet):
    servers = fleet(3, 3, 1, **{"tenant.split-label": "team", "bucket.audit-interval": "0s"})
    n, t = 10_000, now()
    for version in (1, 2):
        began = time.monotonic()
        for k in range(3):
            which = range(n) if k == 0 else range(k - 1, n, 2)
            answer = send(servers[3].client("mine", timeout=60), version, [(labels("up", team=f"t-{i}", version=str(version)), [(t + k, bits(float(i)))]) for i in which])
            assert answer.status == 204, answer.text[:300]
        print(f"remote write {version}.0: {n} tenants in 3 requests over 3 nodes, {time.monotonic() - began:.2f} s, router {servers[3].rss() >> 20} MiB, node "
              f"{servers[0].rss() >> 20} MiB")
    for s in servers[:3]:
        assert s.client().get("/-/tenants?limit=100000").json()["data"]["total"] == n
    for i in (0, 1, 4321, n - 1):
        got = everywhere(servers[:3], f"t-{i}")
        assert got == {labels("up", version=str(v)): (3, [(t, bits(float(i))), (t + 1 + i % 2, bits(float(i)))]) for v in (1, 2)}
    got = json.loads(servers[3].run("tenants", servers[3].url, "--fleet", "--json", check=0).stdout)
    assert (got["nodes"], got["total"]) == (3, n) and got["tenants"][0]["series"] == 6


def test_the_series_limit_is_the_fleets(fleet, tmp_path):
    limits = tmp_path / "limits.yml"
    limits.write_text("write: {default: {head_series_limit: 20000}}", "utf-8")
    servers = fleet(3, 1, 1, **{"limits.file": limits})
    time.sleep(1.2)  # shares follow the rings within a second
    t, c = now(), servers[3].client("a")
    rows = [(labels("m", i=str(i)), [(t, bits(1.0))]) for i in range(40_000)]
    assert all(c.write(rows[k:k + 2000]).status == 204 for k in range(0, 20_000, 2000))  # within the limit nobody is refused
    held = sum(s.client().get("/-/tenants").json()["data"]["tenants"][0]["series"] for s in servers[:3])
    assert held == 20_000
    answers = [c.write(rows[k:k + 2000]).status for k in range(20_000, 40_000, 2000)]
    held = [s.client().get("/-/tenants").json()["data"]["tenants"][0]["series"] for s in servers[:3]]
    print(f"limit 20000: {held} on three nodes, {sum(held)} together")
    assert answers[-1] == 429 and 20_000 <= sum(held) <= 22_010


@pytest.mark.timeout(120)
def test_the_rate_is_the_fleets(fleet, tmp_path):
    """Three senders over two routers and a node, one of them with most of it: together they get what the file says."""
    rate = 10_000
    limits = tmp_path / "limits.yml"
    limits.write_text(f"write: {{default: {{samples_per_second: {rate}, samples_burst: {rate}}}}}", "utf-8")
    servers = fleet(2, 1, 2, **{"limits.file": limits})
    t, over, counts = now(), threading.Event(), {}

    def sender(k, server, per_second):
        c, due, size, j = remote.Client(server.url, "a"), time.monotonic(), 500, 0
        while not over.is_set():
            body = [(labels("m", i=str(i), k=str(k)), [(t + j, bits(1.0))]) for i in range(size)]
            status = c.write(body).status
            assert status in (204, 429)
            counts.setdefault(k, []).append((time.monotonic(), size if status == 204 else 0))
            j += 1
            due = max(due + size / per_second, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
        c.close()

    loads = [(servers[2], 15_000), (servers[3], 4_000), (servers[0], 6_000)]
    threads = [threading.Thread(target=sender, args=(k, *load)) for k, load in enumerate(loads)]
    for x in threads:
        x.start()
    time.sleep(10)  # until all have heard of each other, and what they could send meanwhile is owed
    began = time.monotonic()
    time.sleep(20)
    ended = time.monotonic()
    over.set()
    for x in threads:
        x.join()
    got = [sum(n for at, n in counts[k] if began <= at < ended) / (ended - began) for k in range(3)]
    print(f"rate {rate}: {[round(g) for g in got]} stored a second by {len(loads)} doors, {sum(got):.0f} together; sent {[r for _, r in loads]}")
    assert abs(sum(got) - rate) <= rate / 10


def deletion(server):
    return server.client().get("/-/tenants/gone").json()["deletion"]


def test_a_deleted_tenant_is_gone_everywhere(fleet, tmp_path):
    """Also on a node that was away when it was asked; what comes after stays."""
    bucket = tmp_path / "bucket.yml"
    bucket.write_text(f"type: FILESYSTEM\nconfig: {{directory: {tmp_path}/bucket}}\n", "utf-8")
    servers = fleet(3, 3, 0, **{"tenant.delete-delay": "3s", "objstore.config-file": bucket, "bucket.audit-interval": "1s"})
    t = now()
    for tenant in ("gone", "stays"):
        for k in range(3):
            assert servers[k].client(tenant).write([(labels("up", i=str(i + 100 * k)), [(t, bits(1.0))]) for i in range(100)]).status == 204
    assert len(everywhere(servers, "gone")) == 300
    servers[2].kill9()
    assert servers[0].client().request("DELETE", "/-/tenants/gone?confirm=gone").status == 202
    for s in servers[:2]:
        procs.wait_for(lambda: stored(s, "gone") == {}, 20, "nothing is read")
    assert servers[1].client().get("/-/tenants/gone").json()["deletion"] is not None
    servers[2].start()
    for s in servers:
        procs.wait_for(lambda: stored(s, "gone") == {} and s.client().get("/-/tenants/gone").json()["deletion"], 20, "nothing is read")
    assert servers[1].client("gone").write([(labels("after"), [(now(), bits(2.0))])]).status == 204
    for s in servers:
        procs.wait_for(lambda: deletion(s)["state"] in ("removing", "done"), 25, "removing")
    assert list(everywhere(servers, "gone")) == [labels("after")] and len(everywhere(servers, "stays")) == 300
