"""A thousand tenants of a hundred series cost what one tenant of a hundred thousand costs: same requests, same samples, only the tenant header differs."""
import threading
import time

import pytest
from lib import procs, remote
from lib.remote import labels
from lib.wire import bits, snappy

TENANTS, SERIES, ROUNDS, SENDERS = 1000, 100, 4, 16
STEP = 15_000


class Load:
    """Requests of SERIES series, one sample each: request i of a round belongs to tenant i, or all to one. Built once, sent to both servers."""

    def __init__(self):
        self.start = int(time.time()) * 1000 - 300_000
        self.names = [[self.labels(t, i) for i in range(SERIES)] for t in range(TENANTS)]
        self.bodies = [[snappy(remote.encode_request((n, [(self.time(r), self.value(t, i, r))]) for i, n in enumerate(self.names[t]))) for t in range(TENANTS)]
                       for r in range(ROUNDS)]

    @staticmethod
    def labels(t, i):
        """Ten labels, one of them of this series alone: what a scrape of Kubernetes looks like."""
        return labels(f"container_metric_{i % 10}_total", cluster=f"eu-central-{t % 3}", container=f"worker-{i % 7}", instance=f"10.0.{t // 250}.{t % 250}:9100",
                      job=f"integrations/kubernetes/{i % 5}", namespace=f"team-{t % 20}", node=f"ip-10-{t // 250}-{t % 250}.compute.internal",
                      pod=f"workload-{t}-{t * 2654435761 % 2**32:08x}", prometheus="monitoring/k8s", series=f"{t * SERIES + i}")

    def time(self, r):
        return self.start + r * STEP

    @staticmethod
    def value(t, i, r):
        return bits(float(t * 1000 + i * 10 + r))

    def want(self, t):
        return {n: [(self.time(r), self.value(t, i, r)) for r in range(ROUNDS)] for i, n in enumerate(self.names[t])}

    def send(self, server, tenant):
        """Every request of every round over SENDERS connections; the seconds it took."""
        bad = []

        def sender(k):
            c = remote.Client(server.url, timeout=60)
            for r in range(ROUNDS):
                for t in range(k, TENANTS, SENDERS):
                    a = c.write_body(self.bodies[r][t], {remote.TENANT: tenant(t)})
                    if a.status != 204:
                        bad.append((a.status, a.text))
            c.close()

        threads = [threading.Thread(target=sender, args=(k,)) for k in range(SENDERS)]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not bad, bad[:3]
        return time.monotonic() - begin


def until_ready(server):
    begin = time.monotonic()
    server.start(wait=False)
    while procs.http_get(server.url + "/-/ready", 10)[0] != 200:
        assert server.running() and time.monotonic() - begin < 60, server.log_tail()
        time.sleep(0.005)
    return time.monotonic() - begin


def measure(server, load, tenant):
    m = {}
    before, cpu = server.metrics(), server.cpu()
    m["send s"] = load.send(server, tenant)
    after = server.metrics()
    m["CPU s"] = server.cpu() - cpu
    m["fsyncs"] = after["varve_wal_fsyncs_total"] - before["varve_wal_fsyncs_total"]
    m["series"] = after["varve_head_series"]
    m["MiB"] = server.rss() / (1 << 20)
    m["files"] = server.files()
    time.sleep(1)
    cpu, begin = server.cpu(), time.monotonic()
    time.sleep(5)
    m["idle %"] = (server.cpu() - cpu) / (time.monotonic() - begin) * 100
    m["metrics bytes"] = len(procs.http_get(server.url + "/metrics")[1])
    ready = []
    for _ in range(3):
        server.kill9()
        ready.append(until_ready(server))
    m["ready s"] = min(ready)
    m["MiB replayed"] = server.rss() / (1 << 20)
    ends = []
    for _ in range(3):
        begin = time.monotonic()
        assert server.stop(60) == 0
        ends.append(time.monotonic() - begin)
        server.start()
    m["SIGTERM s"] = min(ends)
    return m


def stored(server, tenant):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(tenant).items()}


@pytest.mark.timeout(600)
def test_a_thousand_tenants_cost_what_one_costs(varve):
    load = Load()
    quiet = {"bucket_audit_interval": "0s", "head_cut_delay": "2h", "head_max_age": "6h"}
    one = varve("one", **quiet)
    a = measure(one, load, lambda t: "all")
    one.stop()
    many = varve("many", **quiet)
    b = measure(many, load, lambda t: f"team-{t:04d}")
    for k in a:
        print(f"{k:14} one {a[k]:10.3f}   thousand {b[k]:10.3f}   {b[k] / a[k] if a[k] else 0:6.2f}x")

    sampled = [0, 1, 2, 41, 42, 499, 500, 733, 998, 999]
    for t in sampled:
        assert stored(many, f"team-{t:04d}") == load.want(t)
    assert not stored(many, "all") and not stored(many, "team-1000")
    begin = time.monotonic()
    blocks = many.flush(timeout=300)
    print(f"flush of {TENANTS} tenants: {time.monotonic() - begin:.1f} s")
    per_tenant = {}
    for x in blocks:
        per_tenant.setdefault(x["tenant"], []).append(x)
    windows = {load.time(r) // 7_200_000 for r in range(ROUNDS)}
    assert set(per_tenant) == {f"team-{t:04d}" for t in range(TENANTS)} and len(blocks) == TENANTS * len(windows)
    assert all(sum(x["samples"] for x in v) == SERIES * ROUNDS and x["state"] == "live" for v in per_tenant.values() for x in v)
    for t in sampled:
        assert stored(many, f"team-{t:04d}") == load.want(t)

    assert a["series"] == b["series"] == TENANTS * SERIES
    # How many requests share a sync is a matter of timing; a log per tenant would sync once for each request.
    assert b["fsyncs"] <= 0.75 * TENANTS * ROUNDS and b["fsyncs"] <= 2.5 * a["fsyncs"]
    assert b["MiB"] <= 1.3 * a["MiB"]
    assert b["files"] <= a["files"] + 10
    assert b["idle %"] <= 1.0
    assert b["ready s"] <= 1.5 * a["ready s"] + 0.05
    assert b["SIGTERM s"] <= 1.5 * a["SIGTERM s"] + 0.05
    assert b["metrics bytes"] <= a["metrics bytes"] + 4096
