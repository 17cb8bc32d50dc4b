"""Remote write 2.0: what a receiver must take, refuse and count, with the data read back after each request: what Prometheus' receiver compliance suite leaves out. Its cases
are in test_remote_write_2_suite.py.
"""
import os
import random
import time

import pytest
from lib import remote, remote2, wire
from lib.remote2 import series, write, write_body, written
from lib.wire import NORMAL_NAN, STALE_NAN, bits, pb_int, pb_len

labels = remote.labels
HOUR = 3_600_000
VALUES = {"1.0": bits(1.0), "0": 0, "-0": bits(-0.0), "StaleNaN": STALE_NAN, "NaN": NORMAL_NAN, "Inf": bits(float("inf")), "-Inf": bits(float("-inf"))}


def now():
    return int(time.time() * 1000)


@pytest.fixture
def server(varve):
    return varve()


def stored(server, tenant=None):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(tenant).items()}


def taken(answer, samples=0, histograms=0, exemplars=0):
    assert answer.status == 204, f"{answer.status} {answer.text[:300]}"
    assert answer.body == b"" and written(answer) == (samples, histograms, exemplars)
    return answer


def refused(answer, error_id, samples=0, histograms=0, exemplars=0, status=400):
    assert answer.status == status, f"{answer.status} {answer.text[:300]}"
    assert answer.id == "err-varve-" + error_id, answer.text
    assert written(answer) == (samples, histograms, exemplars), answer.text
    return answer


def shuffled(pairs, seed=1):
    """Senders of the suite go over a map: labels come in any order."""
    out = list(pairs)
    random.Random(seed).shuffle(out)
    return tuple(out)


# ---- samples ----

GOOD = {
    "simple": labels("up"),
    "several labels": labels("up", job="testjob", instance="localhost:9090"),
    "newlines": labels("up", job="test\njob\n", instance="localhost:9090"),
    "dots": labels("resource.cpu.usage", **{"job.name": "testjob", "instance.name": "localhost:9090"}),
    "spaces": labels("resource cpu usage", **{"job name": "testjob", "instance name": "localhost:9090"}),
    "beyond the plane": labels("test_metric", job="test-job_with.special@chars", environment="test\U0001F680"),
}
BAD = {
    "no name": (labels(job="testjob", instance="localhost:9090"), "no-metric-name"),
    "empty name": (labels("", job="x"), "no-metric-name"),
    "no labels": ((), "no-metric-name"),
    "a name twice": ((("__name__", "up"), ("a", "1"), ("a", "2")), "duplicate-label"),
    "an empty label name": ((("__name__", "up"), ("", "1")), "empty-label-name"),
    "a value that is not UTF-8": ((("__name__", "up"), ("a", "\udcff")), "label-utf8"),
}


@pytest.mark.parametrize("value", VALUES)
def test_a_single_sample(server, value):
    t, c = now(), server.client()
    for i, pairs in enumerate(GOOD.values()):
        taken(write(c, [series(shuffled(pairs), [(t, VALUES[value])])]), 1)
        taken(write(c, [series(shuffled(pairs, 2), [(t, VALUES[value])])]), 1)  # again: a duplicate is written
    for pairs, reason in BAD.values():
        refused(write(c, [series(pairs, [(t, VALUES[value])])]), reason)
    # Go's encoder leaves a zero out, whatever its sign
    want = 0 if value == "0" else VALUES[value]
    assert stored(server) == {pairs: [(t, want)] for pairs in GOOD.values()}


@pytest.mark.parametrize("value", ["1.0", "StaleNaN", "-Inf"])
def test_several_samples(server, value):
    t, c, v = now(), server.client(), VALUES[value]
    hosts = [labels("up", job="testjob", instance=f"localhost:909{i}") for i in range(4)]
    nameless = [tuple(p for p in h if p[0] != "__name__") for h in hosts]
    a = refused(write(c, [series(h, [(t, v)]) for h in nameless]), "no-metric-name", 0)
    assert "no-metric-name 4" in a.text
    assert stored(server) == {}
    a = refused(write(c, [series(nameless[0], [(t, v)])] + [series(h, [(t, v)]) for h in hosts[1:]]), "no-metric-name", 3)
    assert "1 of 4 samples" in a.text and 'first: {instance="localhost:9090", job="testjob"}' in a.text
    assert stored(server) == {h: [(t, v)] for h in hosts[1:]}
    taken(write(c, [series(shuffled(h, i), [(t, v)]) for i, h in enumerate(hosts)]), 4)
    assert stored(server) == {h: [(t, v)] for h in hosts}


def test_times_of_the_suite(server):
    t, c = now(), server.client()
    want = [(t - HOUR, bits(1.0)), (t - HOUR // 2, bits(2.0)), (t, bits(3.0))]
    taken(write(c, [series(labels("old"), want[:1]), series(labels("new"), want[2:])]), 2)
    taken(write(c, [series(labels("latency"), [s]) for s in (want[0], want[2], want[1])]), 3)  # several series of one label set
    assert stored(server) == {labels("old"): want[:1], labels("new"): want[2:], labels("latency"): want}


def test_what_samples_are_refused_for(server):
    t, c = now(), server.client()
    up = labels("up")
    taken(write(c, [series(up, [(t, bits(1.0))])]), 1)
    refused(write(c, [series(up, [(t, bits(2.0)), (t + 1, bits(2.0))])]), "duplicate-timestamp", 1)
    refused(write(c, [series(up, [(t - 31 * 24 * HOUR, bits(2.0)), (t + 2, bits(2.0))])]), "too-old", 1)
    refused(write(c, [series(up, [(t + HOUR, bits(2.0)), (t + 3, bits(2.0))])]), "too-far-ahead", 1)
    taken(write(c, [series(up, [(t - 5, bits(5.0)), (t + 3, bits(2.0))])]), 2)  # out of order, and a duplicate
    assert stored(server) == {up: [(t - 5, bits(5.0)), (t, bits(1.0)), (t + 1, bits(2.0)), (t + 2, bits(2.0)), (t + 3, bits(2.0))]}


def test_a_series_that_holds_nothing_is_refused_alone(server):
    t = now()
    a = refused(write(server.client(), [series(labels("up"), [(t, bits(1.0))]), series(labels("empty", job="x"))]), "no-samples", 1)
    assert "1 of 2 samples" in a.text and 'first: {__name__="empty", job="x"}' in a.text
    assert stored(server) == {labels("up"): [(t, bits(1.0))]}


def test_an_empty_request(server):
    taken(write(server.client(), []))
    taken(write_body(server.client(), wire.snappy(b"")))


def test_many_samples_with_metadata(server):
    t = now()
    many = [series(labels(f"counter_{i}", series=f"s{i}"), [(t, bits(i * 100.0))], metadata=(remote2.COUNTER, f"Counter number {i}", "count")) for i in range(50)]
    taken(write(server.client(), many), 50)
    assert stored(server) == {labels(f"counter_{i}", series=f"s{i}"): [(t, 0 if i == 0 else bits(i * 100.0))] for i in range(50)}


# ---- histograms that are none: refused alone, with words ----

INVALID = {
    "bad count": (dict(count=9, pos=[1, 2]), "add up to 3, the count is 9"), "schema": (dict(schema=-5), "schema -5 is not one of"),
    "spans": (dict(count=3, pos=[1, 2], pos_spans=[(0, 3)]), "positive side: the spans need 3 buckets, there are 2"),
    "a negative bucket": (dict(count=1, neg=[2, -1]), "negative side: bucket 1"),
    "a negative bucket, float": (dict(count=1.0, pos=[-0.5], is_float=True), "bucket 0 has the negative count -0.5"),
    "a gap backwards": (dict(count=3, pos=[1, 2], pos_spans=[(0, 1), (-1, 1)]), "span 1 has the negative offset -1"),
    "bounds of no custom schema": (dict(count=1, pos=[1], custom=[1.0]), "schema 0 has no custom bounds"),
    "bounds that do not ascend": (dict(schema=-53, threshold=0, count=1, pos=[1], custom=[1.0, 1.0]), "custom bound 1 is 1"),
    "a custom zero bucket": (dict(schema=-53, threshold=0, count=2, zero=1, pos=[1], custom=[1.0]), "a zero bucket that is not empty"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_histogram_is_named(server, case):
    t, (fields, words) = now(), INVALID[case]
    bad = series(labels("latency", job="x"), histograms=[remote2.histogram(t, **fields)])
    a = refused(write(server.client(), [series(labels("fine"), [(t, bits(1.0))]), bad]), "histogram-invalid", 1)
    for text in (words, "1 of 2 samples", "histogram-invalid 1", f'first: {{__name__="latency", job="x"}} at {t}'):
        assert text in a.text, a.text
    assert stored(server) == {labels("fine"): [(t, bits(1.0))]}


# ---- metadata: taken with its samples, whatever it says ----

METADATA = {
    "counter": (remote2.COUNTER, "Total number of HTTP requests", "requests"), "gauge": (remote2.GAUGE, "CPU usage", "percent"),
    "neither help nor unit": (remote2.COUNTER, "", ""), "special characters": (remote2.GAUGE, 'with\nnewlines, "quotes", \u00e4\u00f6\u00fc', "bytes/sec"),
    "unspecified": (0, "Unknown metric type", ""), "info": (remote2.INFO, "Build information", ""), "stateset": (remote2.STATESET, "Node state", ""),
    "summary": (remote2.SUMMARY, "Latency", "seconds"), "gauge histogram": (remote2.GAUGEHISTOGRAM, "Temperature", "celsius"), "a type to come": (99, "x", "y"),
    "none": None,
}


def test_metadata_of_every_type(server):
    t, c = now(), server.client()
    for i, metadata in enumerate(METADATA.values()):
        taken(write(c, [series(labels(f"m{i}"), [(t, bits(1.0))], metadata=metadata)]), 1)
    assert len(stored(server)) == len(METADATA)


def test_metadata_of_several_series(server):
    t = now()
    some = [labels("cpu_usage"), labels("memory_usage"), labels("disk_usage", device="sda1")]
    taken(write(server.client(), [series(s, [(t, bits(85.5))], metadata=(remote2.GAUGE, f"Help of {s[0]}", "percent")) for s in some]), 3)
    assert stored(server) == {s: [(t, bits(85.5))] for s in some}


def test_metadata_of_a_bad_series(server):
    t, metadata = now(), (remote2.COUNTER, "Test help", "unit")
    for pairs in (labels(job="test"), labels("")):
        refused(write(server.client(), [series(pairs, [(t, bits(1.0))], metadata=metadata)]), "no-metric-name")
    taken(write(server.client(), [series(labels("valid"), [(t, bits(1.0))], metadata=metadata)]), 1)


def test_metadata_without_data(server):
    refused(write(server.client(), [series(labels("orphan"), metadata=(remote2.COUNTER, "Orphaned", "count"))]), "no-samples")
    assert stored(server) == {}


# ---- start timestamps ----

def test_created_timestamps_are_taken(server):
    t, c = now(), server.client()
    taken(write(c, [series(labels("older_draft"), [(t, bits(100.0))], created=t - HOUR)]), 1)
    taken(write(c, [series(labels("current"), [(t, bits(100.0), t - HOUR)], metadata=(remote2.COUNTER, "x", ""))]), 1)
    assert stored(server) == {labels(n): [(t, bits(100.0))] for n in ("older_draft", "current")}


def test_zeros_where_series_began(varve):
    server = varve(ingest_created_timestamp_zero="true")
    c = server.client()
    t = now() // 7_200_000 * 7_200_000 - 3_600_000  # the middle of the window before, whose first half is the same window
    start = t - 1_800_000
    steps = [t, t + 1000, t + 2000]
    for at in steps:
        taken(write(c, [series(labels("sample_says"), [(at, bits(5.0), start)]), series(labels("series_says"), [(at, bits(6.0))], created=start),
                        series(labels("nobody_says"), [(at, bits(7.0))])]), 3)
    # Not in front of its sample, at it, before --ingest.oldest: left out without a word. A restart of the counter: one more.
    taken(write(c, [series(labels("ahead"), [(t, bits(1.0), t + 5)]), series(labels("same"), [(t, bits(1.0), t)]),
                    series(labels("ancient"), [(t, bits(1.0), t - 400 * 24 * HOUR)]), series(labels("sample_says"), [(t + 9000, bits(1.0), t + 8000)])]), 4)
    want = {labels("sample_says"): [(start, 0)] + [(at, bits(5.0)) for at in steps] + [(t + 8000, 0), (t + 9000, bits(1.0))],
            labels("series_says"): [(start, 0)] + [(at, bits(6.0)) for at in steps],
            labels("nobody_says"): [(at, bits(7.0)) for at in steps],
            labels("ahead"): [(t, bits(1.0))], labels("same"): [(t, bits(1.0))], labels("ancient"): [(t, bits(1.0))]}
    assert stored(server) == want
    assert server.metric("varve_ingest_created_zeros_total") == 3
    server.kill9()
    server.start()
    assert stored(server) == want
    # Refused samples bring no zeros with them.
    refused(write(server.client(), [series(labels(job="x"), [(t, bits(1.0), start)])]), "no-metric-name")
    assert stored(server) == want


# ---- one series, whichever version ----

def test_old_and_new_senders_write_one_series(server):
    t, pairs = now(), labels("up", job="x", instance="h")
    new_first, old_first = labels("new_first", job="x"), labels("old_first", job="x")
    c = server.client()
    taken(write(c, [series(shuffled(new_first), [(t, bits(1.0))])]), 1)
    assert c.write([(old_first, [(t, bits(1.0))])]).status == 204
    for restart in range(2):
        at = t + 1000 * (2 * restart + 1)
        c = server.client()
        a = c.write([(new_first, [(at, bits(2.0))])])
        assert a.status == 204 and written(a) is None
        taken(write(c, [series(old_first, [(at, bits(2.0))])]), 1)
        taken(write(c, [series(shuffled(old_first, 3) + (("gone", ""),), [(at, bits(2.0))])]), 1)
        refused(write(c, [series(new_first, [(at, bits(3.0))])]), "duplicate-timestamp")
        server.kill9()
        server.start()
    want = [(t, bits(1.0)), (t + 1000, bits(2.0)), (t + 3000, bits(2.0))]
    assert stored(server) == {new_first: want, old_first: want}
    assert server.metric("varve_head_series") == 2


# ---- requests ----

@pytest.mark.parametrize("headers", [{"Content-Type": "application/json"}, {"Content-Type": "image/png"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"},
                                     {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v3.Request"}], ids=lambda h: next(iter(h.values())))
@pytest.mark.parametrize("corrupt", [True, False], ids=["corrupt", "whole"])
def test_bad_headers_are_415_before_the_body(server, headers, corrupt):
    body = wire.snappy(remote2.encode_request([series(labels("up"), [(now(), bits(1.0))])]))
    a = write_body(server.client(), b"0" + body[1:] if corrupt else body, headers)
    assert a.status == 415 and a.id in ("err-varve-content-type", "err-varve-content-encoding") and written(a) is None
    assert stored(server) == {}


@pytest.mark.parametrize("content_type", [f"application/x-protobuf{sep}proto=io.prometheus.write.v2.Request" for sep in (";", "; ", " ;\t")])
def test_spaces_in_the_content_type_lose_nothing(server, content_type):
    t = now()
    taken(write(server.client(), [series(labels("up"), [(t, bits(1.0))])], {"Content-Type": content_type}), 1)
    assert stored(server) == {labels("up"): [(t, bits(1.0))]}


def test_content_encoding_may_be_missing(server):
    taken(write(server.client(), [series(labels("up"), [(now(), bits(1.0))])], {"Content-Encoding": None}), 1)


SYMBOLS = b"".join(pb_len(4, s) for s in (b"", b"__name__", b"up", b"a"))
GOOD_SERIES = pb_len(5, pb_len(1, bytes([1, 2])) + remote2.encode_sample((1, bits(1.0))))
MALFORMED = {
    "corrupt snappy": lambda: b"0" + wire.snappy(SYMBOLS + GOOD_SERIES)[1:],
    "not protobuf": lambda: wire.snappy(b"\xff\xfe\xfd no"),
    "a reference that points nowhere": lambda: wire.snappy(SYMBOLS + GOOD_SERIES + pb_len(5, pb_len(1, bytes([1, 4])) + remote2.encode_sample((1, 1)))),
    "an odd number of references": lambda: wire.snappy(SYMBOLS + GOOD_SERIES + pb_len(5, pb_len(1, bytes([1, 2, 3])) + remote2.encode_sample((1, 1)))),
    "a help text that points nowhere": lambda: wire.snappy(SYMBOLS + GOOD_SERIES + pb_len(5, pb_len(1, bytes([1, 2])) + pb_len(5, pb_int(3, 9)))),
    "an exemplar that points nowhere": lambda: wire.snappy(SYMBOLS + GOOD_SERIES + pb_len(5, pb_len(1, bytes([1, 2])) + pb_len(4, pb_len(1, bytes([2, 9]))))),
    "a first symbol that is not empty": lambda: wire.snappy(pb_len(4, b"x") + SYMBOLS + GOOD_SERIES),
    "no symbols": lambda: wire.snappy(pb_len(5, remote2.encode_sample((1, 1)))),
    "a name that is not UTF-8": lambda: wire.snappy(SYMBOLS + pb_len(4, b"\xff") + GOOD_SERIES + pb_len(5, pb_len(1, bytes([1, 2, 4, 3])) + remote2.encode_sample((1, 1)))),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_stores_nothing(varve, case):
    server = varve(ingest_oldest="0s")
    a = write_body(server.client(), MALFORMED[case]())
    assert a.status == 400 and a.id and written(a) == (0, 0, 0), a.text
    assert stored(server) == {}


def test_symbols_may_stand_behind_series_and_twice(varve):
    server = varve(ingest_oldest="0s")
    taken(write_body(server.client(), wire.snappy(GOOD_SERIES + SYMBOLS)), 1)
    twice = pb_len(5, pb_len(1, bytes([1, 2, 3, 4])) + remote2.encode_sample((2, bits(2.0))))
    taken(write_body(server.client(), wire.snappy(SYMBOLS + pb_len(4, b"a") + twice)), 1)
    assert stored(server) == {labels("up"): [(1, bits(1.0))], labels("up", a="a"): [(2, bits(2.0))]}


HOSTILE = {
    "10M_symbols": lambda: b"\x22\x00" * 10_000_000,
    "4M_series": lambda: SYMBOLS + b"\x2a\x00" * 4_000_000,
    "references_that_stand_for_much": lambda: b"".join(pb_len(4, s) for s in (b"", b"v" * 4096)) + pb_len(5, pb_len(1, b"\x01" * 120)) * 100_000,
    "one_histogram_of_60M_buckets": lambda: SYMBOLS + pb_len(5, pb_len(1, bytes([1, 2])) + pb_len(3, pb_len(12, b"\x00" * 60_000_000))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_body_of_many_tiny_things_costs_little(server, case):
    body = wire.snappy(HOSTILE[case]())
    taken(write(server.client(), [series(labels("warm"), [(now(), bits(1.0))])]), 1)
    server.rss_peak_reset()
    rss, cpu = server.rss(), server.cpu()
    a = write_body(server.client(), body)
    rss, cpu = server.rss_peak() - rss, server.cpu() - cpu
    assert a.status == 413 and a.id and written(a) == (0, 0, 0), a.text
    if "VARVE_SANITIZED" not in os.environ:
        assert rss <= 64 << 20 and cpu <= 0.12, f"{rss >> 20} MiB, {cpu} s"


def test_every_answer_to_a_2_0_message_has_the_counts(varve, spawn):
    server = varve(disk_reserve="1000000TiB", ingest_max_body="1MiB", ingest_max_series_per_request="2")
    a = write(server.client(), [series(labels("up"), [(now(), bits(1.0))])])
    assert a.status == 503 and a.id == "err-varve-disk-full" and written(a) == (0, 0, 0)
    a = server.client().write([(labels("up"), [(now(), bits(1.0))])])
    assert a.status == 503 and written(a) is None
    server.stop()
    del server.flags["disk.reserve"]
    server.start()
    t = now()
    a = write(server.client(), [series(labels("up", i=str(i)), [(t, bits(1.0))]) for i in range(3)])
    refused(a, "too-many-series", status=413)
    a = write(server.client("a/b"), [series(labels("up"), [(t, bits(1.0))])])
    refused(a, "tenant")
    a = write_body(server.client(), wire.uvarint(1 << 30) + b"\x00a" * 100)
    refused(a, "decoded-too-large", status=413)
    assert server.metrics()['varve_ingest_requests_total{version="2.0"}'] == 3


# ---- 1.0 beside it ----

def test_1_0_goes_on_and_has_no_counts(server):
    t = now()
    two = [(shuffled(labels("up", job="testjob", instance="localhost:9090")), [(t, bits(1.0))]), (labels("http_requests_total"), [(t, bits(100.0))])]
    a = server.client().write(two, {"User-Agent": None, "X-Prometheus-Remote-Write-Version": None})
    assert a.status == 204 and written(a) is None
    assert stored(server) == {tuple(sorted(p)): s for p, s in two}


def test_1_0_errors_have_no_counts(server):
    body = bytearray(wire.snappy(remote.encode_request([(labels("error_test"), [(now(), bits(1.0))])])))
    body[0] = 0xFF
    a = server.client().write_body(bytes(body))
    assert a.status == 400 and a.id == "err-varve-snappy" and written(a) is None
    a = server.client().write([(labels(job="x"), [(now(), bits(1.0))])])
    assert a.status == 400 and a.id == "err-varve-no-metric-name" and written(a) is None
