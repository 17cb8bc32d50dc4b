"""Exemplars and metadata: sent by remote write, asked for as Prometheus has them; they survive what samples survive, and stay with their tenant."""
import http.server
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from lib import procs, remote, wire
from lib.remote import labels
from lib.wire import bits, pb_len


def now():
    return int(time.time() * 1000)


def series(pairs, samples=(), exemplars=()):
    """One TimeSeries; exemplars: (labels, t, value)."""
    return pb_len(1, remote.encode_labels(tuple(pairs)) + b"".join(remote.encode_sample(t, bits(v)) for t, v in samples)
                  + b"".join(remote.encode_exemplar(own, t, bits(v)) for own, t, v in exemplars))


def send(server, *parts, tenant=None, status=204):
    answer = server.client(tenant).write_body(wire.snappy(b"".join(parts)))
    assert answer.status == status, answer.text
    return answer


def ask(server, query, tenant=None, **more):
    answer = server.client(tenant).get("/api/v1/query_exemplars?" + urllib.parse.urlencode({"query": query, **more}))
    assert answer.status == 200, answer.text
    assert answer.json()["status"] == "success"
    return answer.json().get("data")


def metadata(server, tenant=None, **params):
    answer = server.client(tenant).get("/api/v1/metadata?" + urllib.parse.urlencode(params))
    assert answer.status == 200, answer.text
    return answer.json()["data"]


def traces(data):
    return [e["labels"].get("trace_id") for s in data for e in s["exemplars"]]


def test_exemplars_and_metadata_survive_kill_dash_nine(varve):
    server = varve()
    t = now()
    up = labels("up", job="x")
    send(server, series(up, [(t, 1.0)], [(labels(trace_id="first"), t, 0.25)]), remote.encode_metadata("up", "gauge", "Is it \"up\"?\n", "s"))
    # As real senders have them: a TimeSeries of its own.
    send(server, series(up, [], [(labels(trace_id="second", span="1"), t + 1, 1e300)]))
    want = [{"seriesLabels": {"__name__": "up", "job": "x", "tenant_id": "default-tenant"}, "exemplars": [
        {"labels": {"trace_id": "first"}, "value": "0.25", "timestamp": t / 1000},
        {"labels": {"span": "1", "trace_id": "second"}, "value": "1e+300", "timestamp": (t + 1) / 1000}]}]
    told = {"up": [{"type": "gauge", "help": "Is it \"up\"?\n", "unit": "s"}]}
    assert ask(server, "up") == want and metadata(server) == told
    for _ in range(2):
        server.kill9()
        server.start()
        assert ask(server, "up") == want and metadata(server) == told
    # Neither a block's cut nor the end of old log segments ends them.
    server.flush()
    assert ask(server, "up") == want and metadata(server) == told
    server.stop()
    server.start()
    assert ask(server, "up") == want and metadata(server) == told


def test_a_retry_is_harmless_and_nothing_new_is_logged(varve):
    server = varve()
    t = now()
    parts = [series(labels("up", i=str(i)), [(t, 1.0)], [(labels(trace_id=f"{i}-{k}"), t + k, float(k)) for k in range(5)]) for i in range(20)]
    parts += [remote.encode_metadata(f"family_{i}", "counter", "help " * i) for i in range(50)]
    send(server, *parts)
    written = server.metric("varve_wal_record_bytes_total")
    before = ask(server, "up")
    for _ in range(3):
        send(server, *parts)
    assert server.metric("varve_wal_record_bytes_total") == written
    assert ask(server, "up") == before and len(traces(before)) == 100
    assert server.metrics()['varve_ingest_exemplars_total{result="duplicate"}'] == 300
    assert server.metrics()['varve_ingest_exemplars_total{result="stored"}'] == 100
    assert server.metrics()['varve_ingest_metadata_total{result="known"}'] == 150
    assert server.metrics()['varve_ingest_metadata_total{result="new"}'] == 50


def test_what_is_not_taken_is_counted_by_its_reason(varve):
    server = varve()
    t = now()
    up = labels("up")
    send(server,
         series(labels("unknown"), [], [(labels(trace_id="a"), t, 1.0)]),
         series(up, [(t, 1.0)], [
             ((), t, 1.0),  # without labels is fine
             (labels(trace_id="a"), t - 1, 1.0),
             (labels(trace_id="x" * 121), t + 1, 1.0),
             ((("a", "1"), ("a", "2")), t + 1, 1.0),
             (labels(trace_id="a"), t + 3600_000, 1.0)]),
         remote.encode_metadata("", "counter", "no name"), remote.encode_metadata("long", "counter", "x" * 10000))
    got = server.metrics()
    for reason in ("no-series", "out-of-order", "too-long", "invalid", "too-far-ahead", "stored"):
        assert got[f'varve_ingest_exemplars_total{{result="{reason}"}}'] == 1, reason
    assert got['varve_ingest_metadata_total{result="refused"}'] == 2
    assert traces(ask(server, "up")) == [None]
    assert metadata(server) == {}


def test_tenants_see_their_own_only(varve):
    server = varve(label="replica=r1")
    t = now()
    for tenant in ("a", "b"):
        send(server, series(labels("up"), [(t, 1.0)], [(labels(trace_id=tenant), t, 1.0)]), remote.encode_metadata("up", "info", tenant), tenant=tenant)
    for _ in range(2):
        for tenant in ("a", "b"):
            (only,) = ask(server, 'up{tenant_id="%s", replica=~"r.", job=""}' % tenant, tenant)
            assert only["seriesLabels"] == {"__name__": "up", "replica": "r1", "tenant_id": tenant}
            assert traces([only]) == [tenant]
            assert ask(server, 'up{tenant_id!="%s"}' % tenant, tenant) == [] and ask(server, 'up{replica="r2"}', tenant) == []
            assert metadata(server, tenant) == {"up": [{"type": "info", "help": tenant, "unit": ""}]}
        assert ask(server, "up") == [] and metadata(server) == {} and ask(server, "up", "c") == []
        server.kill9()
        server.start()


def test_limits_hold_and_the_newest_stay(varve):
    server = varve(exemplars_max=100, metadata_max=10)
    t = now()
    for i in range(30):
        for tenant in ("a", "b") if i >= 15 else ("a",):
            send(server, *[series(labels("up", k=str(k)), [(t + i, 1.0)], [(labels(trace_id=f"{i:02}-{k}"), t + i, 1.0)]) for k in range(10)],
                 remote.encode_metadata(f"family_{i:02}", "gauge", "help"), tenant=tenant)
    for _ in range(2):
        for tenant in ("a", "b"):
            assert sorted(traces(ask(server, "up", tenant))) == sorted(f"{i:02}-{k}" for i in range(25, 30) for k in range(10))
            assert sorted(metadata(server, tenant)) == [f"family_{i:02}" for i in range(20, 30)]
        assert server.metric("varve_head_exemplars") == 100
        server.kill9()
        server.start()
    server.stop()
    server.start(exemplars_max=0, metadata_max=0)
    assert ask(server, "up", "a") == [] and metadata(server, "a") == {}
    send(server, series(labels("up"), [(t, 1.0)], [(labels(trace_id="x"), t, 1.0)]), tenant="a")
    assert server.metrics()['varve_ingest_exemplars_total{result="off"}'] == 1


def test_metadata_by_metric_and_limits(varve):
    server = varve()
    for i in range(5):
        send(server, *[remote.encode_metadata(f"m{k}", remote.METRIC_TYPES[i], f"help {i}", "bytes") for k in range(4)])
    everything = metadata(server)
    assert list(everything) == ["m0", "m1", "m2", "m3"]
    assert [m["type"] for m in everything["m2"]] == ["gaugehistogram", "histogram", "gauge", "counter", "unknown"]
    assert all(m["unit"] == "bytes" for v in everything.values() for m in v)
    assert list(metadata(server, limit=2)) == ["m0", "m1"] and metadata(server, limit=0) == {} and metadata(server, limit=-1) == everything
    assert metadata(server, metric="m1") == {"m1": everything["m1"]} and metadata(server, metric="m9") == {} and metadata(server, metric="") == everything
    assert metadata(server, limit_per_metric=2, limit=3) == {k: everything[k][:2] for k in ("m0", "m1", "m2")}
    assert metadata(server, metric="m3", limit_per_metric=1) == {"m3": everything["m3"][:1]}
    for wrong in ("limit=x", "limit_per_metric=1.5"):
        answer = server.client().get("/api/v1/metadata?" + wrong)
        assert (answer.status, answer.json()["errorType"]) == (400, "bad_data") and "must be a number" in answer.json()["error"]


# ---- beside Debian's Prometheus ----

def both(server, prometheus, params, post=False):
    """The same question to both: (status, JSON) of each; our own label for the tenant is taken out."""
    text, out = urllib.parse.urlencode(params), []
    for url in (server.url, prometheus.url):
        path = url + "/api/v1/query_exemplars"
        r = urllib.request.Request(path, text.encode()) if post else urllib.request.Request(path + "?" + text)
        try:
            with urllib.request.urlopen(r, timeout=30) as f:
                # Without any selector Prometheus says 204 and nothing; we say that nothing is there.
                out.append((200, {"status": "success", "data": []}) if f.status == 204 else (f.status, json.load(f)))
        except urllib.error.HTTPError as e:
            out.append((e.code, json.load(e)))
    for s in out[0][1].get("data") or []:
        assert s["seriesLabels"].pop("tenant_id") == "default-tenant"
    return out


def test_query_exemplars_answers_as_prometheus_does(varve, spawn):
    """The same requests to both, then the same questions."""
    prometheus = spawn(procs.Prometheus, flags=["--enable-feature=exemplar-storage", "--web.enable-remote-write-receiver"])
    prometheus.start()
    server, rng = varve(), random.Random(20261123)
    t0 = now() - 60_000
    names = [labels("requests_bucket", le=le, job=job) for le in ("0.1", "1", "+Inf") for job in ("a", "b \"c\"")]
    names += [labels("latency", quantile="0.5"), labels("büro", job="a")]
    values = [0.0, -0.0, 1.0, -1.5, 0.1, 1e-7, 1e21, 123456789.125, 1 / 3, float("inf"), float("-inf")]
    for step in range(40):
        t, parts = t0 + step * 1000, []
        for pairs in names:
            # One a step and series, sometimes again, an old one, one too long, one without its series.
            own = labels(trace_id="%032x" % rng.getrandbits(128)) if rng.random() < .8 else labels(a="<&>", b="\u20ac", c="")
            e = [(own, t + rng.randrange(900), rng.choice(values))]
            if rng.random() < .3:
                e += [e[0]]
            if rng.random() < .3:
                e += [(own, t - 5000, 1.0)]
            if rng.random() < .3:
                e += [(labels(trace_id="x" * rng.choice((119, 120, 121, 300))), t + 950, 2.0)]
            parts.append(series(pairs, [(t, 1.0)], e if rng.random() < .5 else []))
            if rng.random() < .5:
                parts.append(series(pairs, [], e))
        parts.append(series(labels("nobody"), [], [(labels(trace_id="a"), t, 1.0)]))
        body = wire.snappy(b"".join(parts))
        for url in (server.url, prometheus.url):
            assert remote.Client(url).write_body(body).status == 204
    some = 0
    for query in ("requests_bucket", 'requests_bucket{le="1"}', '{job="a"}', "latency", "nobody", "rate(requests_bucket[5m])",
                  'histogram_quantile(0.9, sum by (le) (rate(requests_bucket{job!="a"}[5m]))) + on() group_left latency', "latency or latency",
                  '{__name__=~".+"}', "1 + 1", "time()", "(((latency)))", 'latency{quantile=~"0.[0-9]"} offset 5m', "-latency @ 5 # x"):
        for params in ({}, {"start": t0 / 1000, "end": (t0 + 60_000) / 1000}, {"start": (t0 + 10_000) / 1000, "end": (t0 + 12_345) / 1000},
                       {"start": t0 / 1000 + 1000, "end": t0 / 1000 + 2000}, {"end": (t0 + 3000) / 1000}):
            ours, theirs = both(server, prometheus, {"query": query, **params}, post=rng.random() < .3)
            assert ours == theirs, (query, params)
            some += len(ours[1].get("data") or [])
    assert some > 100
    for params in ({"query": ""}, {}, {"query": "rate("}, {"query": "up{"}, {"query": "up", "start": "x"}, {"query": "up", "start": 2, "end": 1}, {"query": "{}"},
                   {"query": "a b"}, {"query": "up[5m"}):
        ours, theirs = both(server, prometheus, params)
        assert (ours[0], ours[1]["errorType"]) == (theirs[0], theirs[1]["errorType"]) == (400, "bad_data"), params


OPENMETRICS = """# HELP rpc A call's duration
# TYPE rpc histogram
# UNIT rpc seconds
rpc_bucket{le="0.1"} %(n)d # {trace_id="%(trace)s"} 0.0%(n)d
rpc_bucket{le="+Inf"} %(n)d # {trace_id="b%(trace)s",span="7"} 3.5 %(t).3f
rpc_sum 1
rpc_count %(n)d
# HELP calls Calls
# TYPE calls counter
calls_total{a="b"} %(n)d # {} 1
# TYPE build info
build_info{v="1"} 1
# EOF
"""


class Page(http.server.BaseHTTPRequestHandler):
    n = 0

    def do_GET(self):
        Page.n += 1
        body = (OPENMETRICS.replace("# UNIT rpc seconds\n", "") % {"n": Page.n, "trace": "%032x" % Page.n, "t": time.time()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.timeout(180)
def test_a_real_prometheus_sends_them(varve, spawn):
    server = varve()
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    prometheus = spawn(procs.Prometheus, """
scrape_configs:
  - job_name: page
    static_configs: [{targets: ["127.0.0.1:%d"]}]
  - job_name: prometheus
    static_configs: [{targets: ["127.0.0.1:@PORT@"]}]
remote_write:
  - url: %s/api/v1/write
    send_exemplars: true
    metadata_config: {send: true, send_interval: 1s}
    queue_config: {batch_send_deadline: 500ms}
""" % (page.server_port, server.url), flags=["--enable-feature=exemplar-storage"])
    try:
        prometheus.start()
        procs.wait_for(lambda: len(traces(ask(server, "{job=\"page\"}"))) > 25, 60, "exemplars have come")
        page.shutdown()
        page.server_close()
        time.sleep(3)
        ours, theirs = both(server, prometheus, {"query": 'rate(rpc_bucket[1m]) or calls_total', "start": 0, "end": 1e11})
        assert ours == theirs and len(ours[1]["data"]) == 3
        ours, theirs = metadata(server), prometheus.api("metadata")
        assert len(theirs) > 100 and {k: sorted(map(str, v)) for k, v in ours.items()} == {k: sorted(map(str, v)) for k, v in theirs.items()}
        assert metadata(server, metric="rpc") == prometheus.api("metadata", metric="rpc") == {"rpc": [{"type": "histogram", "help": "A call's duration",
                                                                                                 "unit": ""}]}
        # Repeated every second, and nothing of it is written again.
        new = server.metrics()['varve_ingest_metadata_total{result="new"}']
        known = server.metrics()['varve_ingest_metadata_total{result="known"}']
        time.sleep(3)
        assert server.metrics()['varve_ingest_metadata_total{result="new"}'] == new
        assert server.metrics()['varve_ingest_metadata_total{result="known"}'] > known
    finally:
        page.server_close()
