"""Limits per tenant: what is over them is refused with words that say what to change, what is not is stored, and nobody else notices. The file is re-read,
whichever way it is replaced; a bad one changes nothing. And who uses the head: the same figures that Prometheus gives for the same series.
"""
import os
import re
import signal
import time

import pytest
from lib import procs, remote, remote2
from lib.remote import labels
from lib.wire import bits, snappy

# The example of Thanos' documentation, as it stands there.
THANOS = """write:
  global:
    max_concurrency: 30
    meta_monitoring_url: "http://localhost:9090"
    meta_monitoring_limit_query: "sum(prometheus_tsdb_head_series) by (tenant)"
  default:
    request:
      size_bytes_limit: 1024
      series_limit: 1000
      samples_limit: 10
    head_series_limit: 1000
  tenants:
    acme:
      request:
        size_bytes_limit: 0
        series_limit: 0
        samples_limit: 0
      head_series_limit: 2000
    ajax:
      request:
        series_limit: 50000
        samples_limit: 500
"""


def now():
    return int(time.time() * 1000)


def series(n, t, first=0, name="m"):
    return [(labels(name, i=str(i)), [(t, bits(float(i)))]) for i in range(first, first + n)]


@pytest.fixture
def limited(varve, tmp_path):
    """limited(text, **flags): a server with this limits file; .limits is its path."""

    def make(text, **flags):
        path = tmp_path / "limits.yml"
        path.write_text(text, "utf-8")
        server = varve(limits_file=path, **flags)
        server.limits = path
        return server

    return make


def stored(server, tenant):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(tenant).items()}


def refused(answer, error_id, *words):
    assert answer.status == 429, f"{answer.status} {answer.text[:300]}"
    assert answer.id == "err-varve-" + error_id, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    for w in words:
        assert w in answer.text, f"{w!r} is not in {answer.text!r}"


def counted(server, limit):
    return server.metrics().get(f'varve_limit_refused_total{{limit="{limit}"}}', 0)


# ---- the file ----

def test_thanos_example_is_taken_as_it_is(limited):
    server = limited(THANOS)
    t = now()
    log = server.log()
    assert "meta_monitoring_url is not used" in log and "meta_monitoring_limit_query is not used" in log
    assert "limits in force" in log
    refused(server.client("anybody").write(series(11, t)), "tenant-request-limit", "11 samples", "at most 10", "write.default.request.samples_limit")
    assert server.client("ajax").write(series(11, t)).status == 204
    refused(server.client("ajax").write([(labels("m", x="y" * 2000), [(t, bits(1.0))])]), "tenant-request-limit", "at most 1024",
            "write.default.request.size_bytes_limit")
    assert server.client("acme").write(series(1999, t)).status == 204
    refused(server.client("acme").write(series(2, t, first=5000)), "tenant-series", "at most 2000", "write.tenants.acme.head_series_limit")


@pytest.mark.parametrize("text, words", [
    ("write:\n  default:\n    head_series_limt: 5\n", ["limits.yml:3", "did you mean \"head_series_limit\"?"]),
    ("write: {default: {request: {series_limit: many}}}", ["write.default.request.series_limit is \"many\""]),
    ("", ["is empty"]),
    ("write: {default: {head_series_limit: '${VARVE_NO_SUCH_VARIABLE}'}}", ["VARVE_NO_SUCH_VARIABLE"]),
])
def test_a_bad_file_at_the_start_is_said_and_nothing_starts(varve, tmp_path, text, words):
    path = tmp_path / "limits.yml"
    path.write_text(text, "utf-8")
    server = varve(start=False, limits_file=path)
    server.start(wait=False)
    assert server.wait() == 1
    for w in ["--limits.file", *words]:
        assert w in server.log(), server.log_tail()


def test_no_file_at_the_start_is_said(varve, tmp_path):
    server = varve(start=False, limits_file=tmp_path / "nowhere.yml")
    server.start(wait=False)
    assert server.wait() == 1
    assert "there is no such file" in server.log()


def test_numbers_come_from_the_environment(varve, tmp_path):
    path = tmp_path / "limits.yml"
    path.write_text("write: {tenants: {a: {request: {series_limit: '${SERIES:-3}', samples_limit: '${SAMPLES}'}}}}", "utf-8")
    server = varve(limits_file=path, env={"SAMPLES": "4"})
    refused(server.client("a").write(series(4, now())), "tenant-request-limit", "4 series", "at most 3")
    assert server.client("a").write(series(3, now())).status == 204


class Changed:
    """Puts the limit of series in a request into force by rewriting the file, and says how long it took."""

    def __init__(self, server):
        self.server, self.t = server, now()
        self.client = server.client("a")

    def text(self, n):
        return f"write:\n  default:\n    request:\n      series_limit: {n}\n"

    def in_force(self, n):
        self.t += 1
        refused_more = self.client.write(series(n + 1, self.t)).status == 429
        return refused_more and self.client.write(series(n, self.t)).status == 204

    def within(self, n, seconds):
        procs.wait_for(lambda: self.in_force(n), seconds, f"a limit of {n} series")


def test_a_new_file_is_in_force_within_two_seconds_however_it_came(limited, tmp_path):
    server = limited(Changed.text(None, 5))
    c = Changed(server)
    assert c.in_force(5)
    for n in range(6, 9):  # by rename, as editors and `mv` do it
        new = tmp_path / "new.yml"
        new.write_text(c.text(n), "utf-8")
        os.rename(new, server.limits)
        c.within(n, 2)
    server.limits.write_text(c.text(9), "utf-8")  # in place
    c.within(9, 2)
    server.limits.write_text(c.text(10), "utf-8")
    server.signal(signal.SIGHUP)
    c.within(10, 0.4)
    server.limits.write_text(c.text(11), "utf-8")
    assert server.client().request("POST", "/-/reload", b"").status == 200
    assert c.in_force(11)
    assert server.metric("varve_limits_last_reload_successful") == 1


def test_a_configmap_is_followed_from_link_to_link(varve, tmp_path):
    """As the kubelet does it: the file is a link to ..data/limits.yml, ..data a link to a directory, replaced by rename."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def publish(n):
        version = volume / f"..2026_{n}"
        version.mkdir()
        (version / "limits.yml").write_text(Changed.text(None, n), "utf-8")
        os.utime(version / "limits.yml", (1_700_000_000, 1_700_000_000))  # the same time and the same size, always
        tmp = volume / "..data_tmp"
        tmp.symlink_to(version.name)
        os.rename(tmp, volume / "..data")

    publish(11)
    (volume / "limits.yml").symlink_to("..data/limits.yml")
    server = varve(limits_file=volume / "limits.yml")
    c = Changed(server)
    assert c.in_force(11)
    for n in (12, 13, 14):
        publish(n)
        c.within(n, 2)


def test_a_bad_file_changes_nothing(limited):
    server = limited(Changed.text(None, 5))
    c = Changed(server)

    def good():
        return server.metric("varve_limits_last_reload_successful")

    def reload():
        return server.client().request("POST", "/-/reload", b"")

    for text in ("write: {default: {reqest: {}}}", "", "write: [", "write: {default: {request: {series_limit: -x}}}"):
        server.limits.write_text(text, "utf-8")
        a = reload()
        assert a.status == 500 and "--limits.file" in a.text, a.text
        assert server.metric("varve_config_last_reload_successful") == 0 and good() == 0
        assert c.in_force(5)
        server.limits.write_text(c.text(5), "utf-8")
        assert reload().status == 200 and good() == 1
    assert re.search(r'unknown key \\?"reqest\\?" in write.default, did you mean \\?"request', server.log())
    server.limits.write_text("write: {}\n---\nwrite: {}", "utf-8")  # noticed without being told of, too
    procs.wait_for(lambda: good() == 0, 2, "the metric says so")
    assert c.in_force(5)
    server.limits.write_text(c.text(5), "utf-8")
    procs.wait_for(lambda: good() == 1, 2, "and that it is well again")
    os.unlink(server.limits)
    procs.wait_for(lambda: good() == 0, 2, "a file that is gone is no file without limits")
    assert c.in_force(5)
    assert "the old ones stay in force" in server.log()


# ---- what is refused ----

def test_a_request_over_its_limits_is_refused_as_a_whole(limited):
    server = limited("write: {tenants: {a: {request: {size_bytes_limit: 2000, series_limit: 10, samples_limit: 30}}}}")
    a, b = server.client("a"), server.client("b")
    t = now()
    key = "write.tenants.a.request."
    incompressible = [(labels("m", x=os.urandom(1500).hex()), [(t, bits(1.0))])]
    compressible = [(labels("m", x="x" * 3000), [(t, bits(1.0))])]
    many_samples = [(labels("m", i="100"), [(t + i, bits(1.0)) for i in range(31)])]
    for body, words in ((incompressible, ["bytes as sent", "at most 2000", key + "size_bytes_limit"]),
                        (compressible, ["bytes decompressed", "at most 2000", key + "size_bytes_limit"]),
                        (series(11, t), ["11 series", "at most 10", key + "series_limit"]),
                        (many_samples, ["31 samples", "at most 30", key + "samples_limit"])):
        refused(a.write(body), "tenant-request-limit", "tenant a", "nothing was stored", "--limits.file", *words)
        assert stored(server, "a") == {}
        assert b.write(body).status == 204
    assert a.write(series(10, t)).status == 204
    assert len(stored(server, "a")) == 10
    assert (counted(server, "size"), counted(server, "series"), counted(server, "samples")) == (2, 1, 1)


def test_a_rate_is_held_and_whoever_waits_gets_through(limited):
    server = limited("write: {tenants: {a: {samples_per_second: 100, samples_burst: 200}}}")
    a, b = server.client("a"), server.client("b")
    t = now()
    assert a.write(series(150, t)).status == 204
    assert a.write(series(150, t + 1)).status == 204  # on credit: the bucket was not empty
    answer = a.write(series(1, t + 2))
    refused(answer, "tenant-rate", "tenant a", "100 samples a second", "bursts of 200", "write.tenants.a.samples_per_second", "nothing was stored")
    assert int(answer.headers["Retry-After"]) == 1 or int(answer.headers["Retry-After"]) == 2
    assert b.write(series(1000, t + 2)).status == 204
    time.sleep(int(answer.headers["Retry-After"]))
    assert a.write(series(1, t + 2)).status == 204
    got = stored(server, "a")
    assert sorted(s[0] for s in got[labels("m", i="0")]) == [t, t + 1, t + 2]
    assert len(got) == 150
    assert counted(server, "rate") == 1


def test_over_a_longer_time_the_rate_is_what_it_says(limited):
    rate, burst, each = 2000, 1000, 100
    server = limited(f"write: {{default: {{samples_per_second: {rate}, samples_burst: {burst}}}}}")
    c, n, t, begin = server.client("a"), 0, now(), time.monotonic()
    while time.monotonic() - begin < 3:
        t += 1
        n += each if c.write(series(each, t)).status == 204 else 0
    took = time.monotonic() - begin
    assert 0.9 * (burst + rate * took) - each <= n <= burst + rate * took + each


def test_what_is_refused_is_cheap(limited):
    """One tenant far over its limits takes little from the others: in processor time, held against the same request stored."""
    server = limited("write: {tenants: {rate: {samples_per_second: 1, samples_burst: 1}, full: {head_series_limit: 1}}}")
    t = now()
    pad = {f"label_{k}": "some value of common length" for k in range(8)}
    body = snappy(remote.encode_request([(labels("m", i=str(i), **pad), [(t, bits(1.0))]) for i in range(2000)]))

    def cost(tenant, status, n=200):
        c = server.client(tenant)
        for _ in range(3):
            c.write_body(body)
        before = server.cpu()
        for _ in range(n):
            assert c.write_body(body).status == status
        return (server.cpu() - before) / n

    stored_once, rate, full = cost("free", 204), cost("rate", 429), cost("full", 429)
    assert rate <= 0.6 * stored_once, f"{rate * 1e6:.0f} us refused for its rate, {stored_once * 1e6:.0f} us stored"
    assert full <= 2 * stored_once, f"{full * 1e6:.0f} us refused for its series, {stored_once * 1e6:.0f} us stored"


def test_known_series_are_stored_and_new_ones_refused(limited):
    server = limited("write: {default: {head_series_limit: 50}, tenants: {big: {head_series_limit: 0}}}", head_block_range="1m")
    a, t = server.client("a"), now()
    assert a.write(series(40, t)).status == 204
    answer = a.write(series(60, t + 1))
    refused(answer, "tenant-series", "10 of 60 samples refused (tenant-series 10), the rest is stored", "tenant a has 50 series", "at most 50",
            "write.default.head_series_limit", "10 of the request's 60 series are new")
    assert int(answer.headers["Retry-After"]) == 60
    got = stored(server, "a")
    assert len(got) == 50 and all((t + 1, bits(float(i))) in got[labels("m", i=str(i))] for i in range(50))
    # The same again: the same verdict, nothing twice.
    again = a.write(series(60, t + 1))
    assert (again.status, again.text) == (answer.status, answer.text)
    assert stored(server, "a") == got
    assert a.write(series(50, t + 2)).status == 204
    assert server.client("big").write(series(500, t)).status == 204
    assert server.client("b").write(series(50, t)).status == 204
    assert counted(server, "head-series") == 2
    assert server.metrics()['varve_head_samples_refused_total{reason="err-varve-tenant-series"}'] == 20
    # When their windows are blocks the series leave, and others come.
    server.flush()
    procs.wait_for(lambda: tenants(server)["a"]["series"] == 0, 20, "the head lets the series go")
    assert a.write(series(50, t + 3, first=1000)).status == 204
    refused(a.write(series(1, t + 3)), "tenant-series")


def test_answers_to_remote_write_2_say_what_was_written(limited):
    """Over a limit too: nothing of a request that is refused whole, exemplars and metadata included; known series' of one that is refused for its new ones."""
    server = limited("write: {tenants: {a: {request: {series_limit: 10, size_bytes_limit: 4000}, head_series_limit: 3}, "
                     "r: {samples_per_second: 1, samples_burst: 1}}}")
    a, r, t = server.client("a"), server.client("r"), now()

    def send(c, n, t, first=0, exemplars=False, **pad):
        return remote2.write(c, [remote2.series(labels("m", i=str(i), **pad), [(t, bits(float(i)))], metadata=(remote2.GAUGE, f"help {t}", ""),
                                                exemplars=[((("trace_id", f"{t}-{i}"),), bits(1.0), t)] if exemplars else ()) for i in range(first, first + n)])

    def exemplars(tenant):
        answer = server.client(tenant).get(f"/api/v1/query_exemplars?query=m&start=0&end={t // 1000 + 100}")
        return {(s["seriesLabels"]["i"], e["labels"]["trace_id"]) for s in answer.json()["data"] for e in s["exemplars"]}

    def metadata(tenant):
        return [m["help"] for m in server.client(tenant).get("/api/v1/metadata").json()["data"].get("m", [])]

    for answer, words in ((send(a, 11, t, exemplars=True), "11 series"), (send(a, 1, t, exemplars=True, x=os.urandom(4000).hex()), "bytes as sent")):
        refused(answer, "tenant-request-limit", words)
        assert remote2.written(answer) == (0, 0, 0)
    assert stored(server, "a") == {} and exemplars("a") == set() and metadata("a") == []

    answer = send(a, 2, t, exemplars=True)
    assert answer.status == 204 and remote2.written(answer) == (2, 0, 2)
    answer = send(a, 5, t + 1, exemplars=True)
    refused(answer, "tenant-series", "2 of 5 samples refused (tenant-series 2)", "2 of the request's 5 series are new", 'first: {__name__="m", i="3"}')
    assert remote2.written(answer) == (3, 0, 3)
    again = send(a, 5, t + 1, exemplars=True)  # the same verdict, and what is there counts as written
    assert (again.status, again.text, remote2.written(again)) == (answer.status, answer.text, remote2.written(answer))
    assert {k: len(v) for k, v in stored(server, "a").items()} == {labels("m", i="0"): 2, labels("m", i="1"): 2, labels("m", i="2"): 1}
    assert exemplars("a") == {(str(i), f"{at}-{i}") for i, at in ((0, t), (1, t), (0, t + 1), (1, t + 1), (2, t + 1))}
    # Known by 2.0 is known by 1.0, and the other way around.
    assert a.write(series(3, t + 2)).status == 204
    refused(a.write(series(4, t + 3)), "tenant-series", "1 of the request's 4 series are new")
    # TENANT_SERIES stands before what is refused for good, wherever that is.
    answer = remote2.write(a, [remote2.series(labels(job="nameless"), [(t, bits(1.0))]), remote2.series(labels("empty")),
                               remote2.series(labels("m", i="9"), [(t, bits(1.0))]), remote2.series(labels("m", i="0"), [(t + 4, bits(1.0))])])
    refused(answer, "tenant-series", "3 of 4 samples refused", "no-metric-name 1", "no-samples 1", "tenant-series 1", 'first: {__name__="m", i="9"}')
    assert remote2.written(answer) == (1, 0, 0)

    assert remote2.written(send(r, 100, t)) == (100, 0, 0)
    answer = send(r, 1, t + 1, exemplars=True)
    refused(answer, "tenant-rate")
    assert remote2.written(answer) == (0, 0, 0) and exemplars("r") == set() and metadata("r") == [f"help {t}"]


def test_a_limit_that_is_lowered_takes_nothing_away_and_one_after_a_restart_neither(limited):
    server = limited("write: {default: {head_series_limit: 100}}")
    t = now()
    assert server.client("a").write(series(100, t)).status == 204
    server.limits.write_text("write: {default: {head_series_limit: 10}}", "utf-8")
    assert server.client().request("POST", "/-/reload", b"").status == 200
    assert server.client("a").write(series(100, t + 1)).status == 204
    refused(server.client("a").write(series(101, t + 2)), "tenant-series", "tenant a has 100 series", "at most 10")
    server.kill9()
    server.start()
    assert server.client("a").write(series(100, t + 3)).status == 204
    refused(server.client("a").write(series(101, t + 4)), "tenant-series", "tenant a has 100 series", "at most 10")
    got = stored(server, "a")
    assert len(got) == 100 and all(len(v) == 5 for v in got.values())


def test_for_good_and_for_now_is_for_now(limited):
    """A sender that tries again after a 429 may still get its new series stored; a 400 would make it drop them."""
    server = limited("write: {default: {head_series_limit: 2}}")
    t = now()
    body = [(labels("m", i="0"), [(t, bits(1.0))]), (labels("m", i="1"), [(t - 10**11, bits(1.0)), (t, bits(1.0))]), (labels(x="nameless"), [(t, bits(1.0))]),
            (labels("m", i="2"), [(t, bits(1.0))])]
    answer = server.client("a").write(body)
    refused(answer, "tenant-series", "3 of 5 samples refused", "too-old 1", "no-metric-name 1", "tenant-series 1", "first: {__name__=\"m\", i=\"2\"}")
    server.limits.write_text("write: {}", "utf-8")
    assert server.client().request("POST", "/-/reload", b"").status == 200
    answer = server.client("a").write(body)
    assert (answer.status, answer.id) == (400, "err-varve-too-old"), answer.text
    assert len(stored(server, "a")) == 3


def test_few_at_once_still_serve_many(limited):
    server = limited("write: {global: {max_concurrency: 1}}", http_threads=4)
    t = now()
    got = [c.write(series(200, t + i)).status for i in range(20) for c in [server.client(f"t{i % 5}")]]
    assert got == [204] * 20
    assert server.metric("varve_limit_waits_total") >= 0


# ---- who uses the head ----

def tenants(server, query=""):
    a = server.client().get("/-/tenants" + query)
    assert a.status == 200, a.text
    return {t["tenant"]: t for t in a.json()["data"]["tenants"]}


def test_operators_see_who_uses_what(limited):
    server = limited("write: {tenants: {many: {head_series_limit: 1000, samples_per_second: 5, samples_burst: 100000}}}")
    t = now()
    for k in range(40):
        server.client("often").write(series(20, t + k))
    server.client("many").write(series(500, t))
    server.client("few").write(series(3, t))
    got = tenants(server)
    assert list(got) == ["many", "often", "few"]
    assert [got[k]["series"] for k in got] == [500, 20, 3]
    assert got["many"]["limits"] == {"request": {"size_bytes_limit": 0, "series_limit": 0, "samples_limit": 0}, "head_series_limit": 1000,
                                     "samples_per_second": 5, "samples_burst": 100000}
    assert got["few"]["limits"]["head_series_limit"] == 0
    assert 12 <= got["often"]["samplesPerSecond"] <= 13.4
    assert 450 <= got["many"]["newSeriesPerMinute"] <= 500
    assert list(tenants(server, "?sort=samples")) == ["often", "many", "few"]
    assert list(tenants(server, "?sort=memory&limit=1")) == ["many"]
    assert list(tenants(server, "?sort=new-series&limit=2")) == ["many", "often"]
    total = sum(x["memoryBytes"] for x in got.values())
    assert 0 < total <= server.metric("varve_head_memory_bytes")
    for bad in ("?sort=size", "?limit=0", "?limit=x", "?limit=-1"):
        assert server.client().get("/-/tenants" + bad).status == 400


def tsdb(server, tenant=None, query=""):
    a = server.client(tenant).get("/api/v1/status/tsdb" + query)
    assert a.status == 200, a.text
    assert a.json()["status"] == "success"
    return a.json()["data"]


def pairs(entries):
    return [(e["name"], e["value"]) for e in entries]


LISTS = ("seriesCountByMetricName", "labelValueCountByLabelName", "memoryInBytesByLabelName", "seriesCountByLabelValuePair")


def everything_like_prometheus(varve_data, theirs, full):
    """The same heads, and the same lists but for the order of what is equal; what they list exists in our full list with the same value."""
    assert varve_data["headStats"] == theirs["headStats"]
    for key in LISTS:
        if key == "memoryInBytesByLabelName" and full is None:
            continue
        assert [v for _, v in pairs(varve_data[key])] == [v for _, v in pairs(theirs[key])], key
        if full:
            have = dict(pairs(full[key]))
            for name, value in pairs(theirs[key]):
                assert have.get(name) == value, (key, name)


@pytest.mark.parametrize("newest", [False, True], ids=["prometheus-2.42", "prometheus-3.5"])
def test_status_is_what_prometheus_says_of_the_same_series(varve, spawn, newest):
    server = varve(head_block_range="2h")
    theirs = spawn(procs.Prometheus, newest=newest, flags=["--web.enable-remote-write-receiver"]).start()
    receiver = remote.Client(theirs.url)
    start = now() // 7_200_000 * 7_200_000 - 7_200_000 + 1000  # all in one window, and not in the future
    for step in range(0, 300, 50):  # 300 samples: three chunks
        body = []
        for i in range(70):
            times = [(start + 15_000 * k, bits(float(i * k % 17))) for k in range(step, step + 50)]
            body.append((labels(f"metric_{i % 13}", instance=f"host-{i % 11}:9100", job="node" if i % 3 else "kube", shard=str(i),
                                **({"zone": "ü" * 100} if i % 5 == 0 else {})), times))
        for c in (receiver, server.client("a")):
            assert c.write(body).status in (200, 204)
    server.client("b").write(series(1000, now()))  # somebody else's are not seen
    full = tsdb(server, "a", "?limit=10000")
    assert len(full["seriesCountByMetricName"]) == 13 and full["headStats"]["numSeries"] == 70
    what = theirs.api("status/tsdb")
    if not newest:  # 2.42 counts each value's bytes once
        assert {n for n, _ in pairs(what["memoryInBytesByLabelName"])} == {n for n, _ in pairs(full["memoryInBytesByLabelName"])}
        what["memoryInBytesByLabelName"] = tsdb(server, "a")["memoryInBytesByLabelName"]
    everything_like_prometheus(tsdb(server, "a"), what, full)
    if newest:
        for limit in (1, 3, 40, 1000):
            everything_like_prometheus(tsdb(server, "a", f"?limit={limit}"), theirs.api("status/tsdb", limit=limit), full)
            ours = tsdb(server, "a", f"?limit={limit}")
            assert {k: ours[k] for k in LISTS} == {k: full[k][:limit] for k in LISTS}
    receiver.close()


def test_status_of_nobody_and_bad_questions(varve, spawn):
    server = varve()
    nobody = tsdb(server, "nobody")
    assert nobody["headStats"] == {"numSeries": 0, "numLabelPairs": 0, "chunkCount": 0, "minTime": 2**63 - 1, "maxTime": -2**63}
    assert all(nobody[k] == [] for k in LISTS)
    for bad in ("0", "-1", "x", "10001", "1.5"):
        a = server.client().get("/api/v1/status/tsdb?limit=" + bad)
        assert a.status == 400 and a.json()["errorType"] == "bad_data", a.text
    assert server.client("no such name!").get("/api/v1/status/tsdb").status == 400


def test_a_series_in_two_windows_counts_once(varve):
    server = varve(head_block_range="1m", head_cut_delay="1h")
    c, t = server.client("a"), now() // 60_000 * 60_000
    for k in range(4):
        assert c.write(series(10 + k, t - k * 60_000)).status == 204
    got = tsdb(server, "a")
    assert got["headStats"]["numSeries"] == 13 and got["headStats"]["chunkCount"] == 46
    assert pairs(got["seriesCountByMetricName"]) == [("m", 13)]
    assert got["varve"]["windows"] == 4
    assert 0 < got["varve"]["memoryBytes"] <= server.metric("varve_head_memory_bytes")
    assert got["varve"]["newSeriesPerMinute"] in (12, 13)
