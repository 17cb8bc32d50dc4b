"""promtool and a real Prometheus read what varve wrote: blocks on disk, and series by remote read."""
import os
import shutil
import time

import pytest
from lib import gen, procs, promdump, remote, tsdb, wire
from lib.remote import labels
from lib.wire import bits

HOUR = 3_600_000
RANGE = 2 * HOUR


def blocks_for_prometheus(server, directory):
    """The bucket as a Prometheus data directory."""
    shutil.copytree(server.bucket_dir, directory, ignore=shutil.ignore_patterns("varve"))
    (directory / "wal").mkdir()
    return directory


@pytest.fixture
def six_hours(varve):
    """A server with six hours of 200 series, all shipped; and what was sent."""
    server = varve()
    start = int(time.time() * 1000) // RANGE * RANGE - 4 * RANGE
    samples = gen.Samples(11, 200, start, 30_000)
    c = server.client()
    for first in range(0, 200, 50):
        for k in range(0, 720, 40):
            merged = {}
            for step in range(k, k + 40):
                for pairs, one in samples.batch(step, first, 50):
                    merged.setdefault(pairs, []).extend(one)
            a = c.write(merged.items())
            assert a.status == 204, a.text
    blocks = server.flush()
    assert len(blocks) == 3
    return server, samples.all(720), start


def test_promtool_accepts_every_block(six_hours, tmp_path):
    server, want, _ = six_hours
    directory = blocks_for_prometheus(server, tmp_path / "blocks")
    ulids = [os.path.basename(p) for p in tsdb.blocks(directory)]
    for newest in (False, True):
        r = procs.promtool("tsdb", "list", directory, newest=newest)
        assert r.returncode == 0 and all(u in r.stdout for u in ulids), r.stdout + r.stderr
        for u in ulids:
            r = procs.promtool("tsdb", "analyze", "--extended", directory, u, newest=newest)
            assert r.returncode == 0, r.stdout[-2000:] + r.stderr
            meta = tsdb.Block(directory / u).meta
            assert f"Series: {meta['stats']['numSeries']}\n" in r.stdout
        dumped = promdump.parse(promdump.lines(directory, newest))
        text = lambda v: "NaN" if v in (wire.NORMAL_NAN, wire.STALE_NAN) else v
        number = lambda s: "NaN" if s == "NaN" else bits(float(s))
        assert {k: [(t, number(v)) for t, v in s] for k, s in dumped.items()} == {k: [(t, text(v)) for t, v in s] for k, s in want.items()}


def test_our_own_reader_agrees_bit_for_bit(six_hours):
    server, want, _ = six_hours
    assert tsdb.dump_dir(server.bucket_dir, external=False) == want
    for path in tsdb.blocks(server.bucket_dir):
        b = tsdb.Block(path)
        assert b.external_labels == {"tenant_id": "default-tenant"}
        thanos = b.meta["thanos"]
        assert thanos["source"] == "receive" and thanos["downsample"]["resolution"] == 0
        files = {f["rel_path"]: f for f in thanos["files"]}
        assert list(files) == sorted(files) and "meta.json" in files
        for name, f in files.items():
            if name != "meta.json":
                assert os.path.getsize(f"{path}/{name}") == f["size_bytes"]
        assert thanos["segment_files"] == sorted(os.listdir(f"{path}/chunks"))


QUERIES = ["sum by (job) (gen_gauge_07)", "count({job=~\"job-.*\"})", "rate(gen_counter_00_total[5m])", "max_over_time(gen_integer_07[10m])",
           "gen_constant_05 or gen_constant_06", "topk(3, gen_gauge_03)", "count_over_time({namespace=\"ns-3\"}[1h])", "gen_special_08_ratio"]


def matrix(result, drop=()):
    return {tuple(sorted((k, v) for k, v in r["metric"].items() if k not in drop)): r["values"] for r in result}


@pytest.mark.parametrize("newest", [False, True], ids=["2.42", "3.5"])
def test_prometheus_on_our_blocks_answers_as_on_its_own(six_hours, spawn, tmp_path, newest):
    server, want, start = six_hours
    own = spawn(procs.Prometheus, name="own", newest=newest, flags=["--web.enable-remote-write-receiver"]).start()
    c = remote.Client(own.url, timeout=60)
    ordered = {}
    for pairs, samples in want.items():
        for t, v in samples:
            ordered.setdefault(t // HOUR, {}).setdefault(pairs, []).append((t, v))
    for hour in sorted(ordered):
        assert c.write(ordered[hour].items()).status == 204
    ours = spawn(procs.Prometheus, name="ours", newest=newest, data=blocks_for_prometheus(server, tmp_path / "blocks")).start()
    for query in QUERIES:
        args = (query, start // 1000, (start + 6 * HOUR) // 1000, 60)
        a, b = matrix(own.query_range(*args)), matrix(ours.query_range(*args))
        assert a and a == b, query


def remote_read_prometheus(spawn, server, newest, extra=""):
    config = f"remote_read:\n  - url: {server.url}/api/v1/read\n    read_recent: true\n    filter_external_labels: false\n{extra}"
    return spawn(procs.Prometheus, config, newest=newest).start()


def raw_series(prometheus, selector, end_s, window):
    """{labels: [(t, text of value)]} by a range selector."""
    return {tuple(sorted(r["metric"].items(), key=lambda p: wire.raw(p[0]))): [(round(float(t) * 1000), v) for t, v in r["values"]]
            for r in prometheus.query(f"{selector}[{window}]", end_s)}


def as_prometheus_prints(samples, minus_zero):
    out = []
    for t, v in samples:
        if v == wire.STALE_NAN:
            continue
        x = wire.unbits(v)
        out.append((t, None if x != x else bits(x) if x or minus_zero else 0))
    return out


@pytest.mark.parametrize("newest", [False, True], ids=["2.42-samples", "3.5-streamed"])
def test_remote_read_gives_exactly_the_data(six_hours, spawn, newest):
    server, want, start = six_hours
    # Some more that is still in the head, so that head, local and bucket are one.
    t = int(time.time() * 1000) // 1000 * 1000
    assert server.client().write([(labels("fresh", job="job-1"), [(t - 5000, bits(1.0)), (t, bits(2.0))])]).status == 204
    p = remote_read_prometheus(spawn, server, newest)
    end = (start + 6 * HOUR) // 1000
    for selector in ('{job="job-1"}', '{__name__=~"gen_counter.*"}', '{job!="job-1",namespace=~"ns-[1-3]"}', '{tenant_id="default-tenant",job="job-4"}'):
        got = raw_series(p, selector, end, "7h")
        keep = {k: v for k, v in want.items() if selects(selector, dict(k))}
        assert keep
        # Range selectors of 3.x are left-open; the window is wider than the data, so that makes no difference.
        expect = {tsdb.with_external(k, {"tenant_id": "default-tenant"}): as_prometheus_prints(v, True) for k, v in keep.items()}
        number = lambda s: None if s == "NaN" else bits(float(s.replace("Inf", "inf")))
        assert {k: [(t, number(v)) for t, v in s] for k, s in got.items()} == {k: v for k, v in expect.items() if v}
    fresh = raw_series(p, "fresh", t // 1000 + 1, "1m")
    assert list(fresh.values()) == [[(t - 5000, "1"), (t, "2")]]
    m = server.metrics()
    asked = [k for k in m if "read" in k]
    print({k: m[k] for k in asked})


def selects(selector, d):
    import re

    for name, op, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selector):
        have = {**d, "tenant_id": "default-tenant"}.get(name, "")
        hit = re.fullmatch(value, have) is not None if "~" in op else have == value
        if hit == op.startswith("!"):
            return False
    return True


@pytest.mark.timeout(600)
def test_one_series_of_a_year(varve, spawn):
    server = varve(ingest_oldest="400d", head_block_range="24h", flush_timeout="5m")
    end = int(time.time()) // 300 * 300
    samples = [((end - 365 * 86400 + i * 300) * 1000, bits(float(i % 1000) + i / 7)) for i in range(365 * 288 + 1)]
    c = server.client()
    for i in range(0, len(samples), 20_000):
        a = c.write([(labels("year", job="x"), samples[i:i + 20_000])])
        assert a.status == 204, a.text
    server.flush(timeout=400)
    assert len(tsdb.blocks(server.bucket_dir)) >= 365
    key = labels("year", job="x", tenant_id="default-tenant")
    for accept in ((remote.SAMPLES,), (remote.STREAMED,)):
        assert server.read(accept=accept) == {key: samples}
    for newest in (False, True):
        p = remote_read_prometheus(spawn, server, newest) if newest else spawn(
            procs.Prometheus, f"remote_read:\n  - url: {server.url}/api/v1/read\n    read_recent: true\n    filter_external_labels: false\n", name="old").start()
        got = raw_series(p, "year", end, "366d")
        assert {k: [(t, bits(float(v))) for t, v in s] for k, s in got.items()} == {key: samples}


def test_remote_read_asks_and_answers_in_every_way(six_hours):
    server, want, start = six_hours
    with_tenant = {tsdb.with_external(k, {"tenant_id": "default-tenant"}): v for k, v in want.items()}
    c = server.client()
    window = (start + HOUR, start + 3 * HOUR)
    queries = [(*remote.EVER, [("=", "job", "job-2")]), (*window, [("!=", "job", "job-2")]), (*window, [("=~", "__name__", "gen_(counter|gauge)_0.+")]),
               (*window, [("!~", "job", "job-[0-3]"), ("=", "tenant_id", "default-tenant")]), (*remote.EVER, [("=", "tenant_id", "another")]),
               (*remote.EVER, [("=", "job", "no such job")]), (5, 4, remote.ALL), (*remote.EVER, [("=", "nothing", ""), ("=", "id", "000007")])]
    text = {"=": lambda a, b: a == b, "!=": lambda a, b: a != b}

    def expected(start_ms, end_ms, matchers):
        import re

        out = {}
        for k, samples in with_tenant.items():
            d = dict(k)
            ok = all(text[o](d.get(n, ""), v) if o in text else (re.fullmatch(v, d.get(n, "")) is not None) == (o == "=~") for o, n, v in matchers)
            inside = [s for s in samples if start_ms <= s[0] <= end_ms]
            if ok and inside:
                out[k] = inside
        return out

    want_all = [expected(*q) for q in queries]
    assert all(want_all[i] for i in (0, 1, 2, 3, 7)) and not any(want_all[i] for i in (4, 5, 6))
    assert c.read(queries, (remote.SAMPLES,)) == want_all
    assert c.read(queries, ()) == want_all
    streamed = c.read(queries, (remote.STREAMED, remote.SAMPLES))
    assert [remote.clip(r, q[0], q[1]) for r, q in zip(streamed, queries)] == want_all
    raw = c.read_raw(queries, (remote.STREAMED,))
    assert raw.headers["Content-Type"].replace(" ", "") == "application/x-streamed-protobuf;proto=prometheus.ChunkedReadResponse"
    assert c.read_raw(queries, (9,)).status == 400
    assert c.read_raw([(*remote.EVER, [("=~", "job", "(")])]).status == 400
    assert c.request("POST", "/api/v1/read", b"garbage").status == 400
    assert c.request("GET", "/api/v1/read").status == 405
    assert server.read("another-tenant") == {}


def test_series_and_labels(six_hours):
    import urllib.parse

    server, want, start = six_hours
    c = server.client()
    full = [dict(tsdb.with_external(k, {"tenant_id": "default-tenant"})) for k in want]

    def get(path, method="GET", **params):
        q = urllib.parse.urlencode([(k, one) for k, v in params.items() for one in (v if isinstance(v, list) else [v])])
        if method == "POST":
            a = c.request("POST", path, q.encode(), {"Content-Type": "application/x-www-form-urlencoded"})
        else:
            a = c.get(path + ("?" + q if q else ""))
        assert a.status == 200, a.text
        body = a.json()
        assert body["status"] == "success"
        return body["data"]

    times = {"start": start / 1000, "end": start / 1000 + 6 * 3600}
    assert get("/api/v1/labels", **times) == sorted({n for d in full for n in d})
    assert get("/api/v1/labels", "POST", **times, **{"match[]": 'gen_gauge_03'}) == sorted({n for d in full for n in d if d["__name__"] == "gen_gauge_03"})
    for name in ("job", "note", "__name__", "tenant_id"):
        assert get(f"/api/v1/label/{name}/values", **times) == sorted({d[name] for d in full}, key=wire.raw)
    assert get("/api/v1/label/nothing/values", **times) == []
    assert len(get("/api/v1/label/id/values", limit=7, **times)) == 7
    key = lambda d: sorted(d.items())
    for method in ("GET", "POST"):
        got = get("/api/v1/series", method, **{"match[]": ['{job="job-1"}', '{__name__=~"gen_gauge_.*",job="job-3"}']}, **times)
        expect = [d for d in full if d["job"] == "job-1" or d["job"] == "job-3" and d["__name__"].startswith("gen_gauge_")]
        assert sorted(map(key, got)) == sorted(map(key, expect))
    assert get("/api/v1/series", **{"match[]": '{job="job-1"}', "start": 1, "end": 2}) == []
    everything = get("/api/v1/label/id/values")
    ends = {"start": "-292273086-05-16T16:47:06Z", "end": "292277025-08-18T07:12:54.999999999Z"}
    assert get("/api/v1/label/id/values", **ends) == everything and len(everything) > 7
    assert get("/api/v1/label/id/values", **{"match[]": '{__name__="gen_gauge_03",__name__=~"gen_counter.*"}'}) == []
    assert get("/api/v1/label/__name__/values", **{"match[]": 'gen_gauge_03{__name__=~"gen_.*"}'}) == ["gen_gauge_03"]
    for time in ("2026-02-30T00:00:00Z", "2026-11-23T23:59:60Z", "2026-11-23T10:00:00.Z", "%205", "0x10", "NaN"):
        assert c.get(f"/api/v1/labels?end={time}").status == 400, time
    for bad in ("/api/v1/series", "/api/v1/series?match[]={", "/api/v1/labels?start=soon", "/api/v1/series?match[]={}"):
        a = c.get(bad)
        assert a.status == 400 and a.json()["status"] == "error" and a.json()["errorType"] == "bad_data", bad
