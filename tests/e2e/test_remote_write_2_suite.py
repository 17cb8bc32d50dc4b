"""The 39 cases of Prometheus' compliance suite for receivers of remote write 2.0, in words of our own. The suite asks for status and counts; here all that was sent is read back
too: samples and histograms in both ways of remote read, exemplars, metadata; after each request, and once more after a kill -9.

    suite's file    its cases -> test_<case> here
    metric          SingleMetric, CounterWithCreatedTimestamp, MultipleMetrics                       -> single_metric, counter_with_start, several_metrics
    metadata        Metadata, CounterMetadataWithCreatedTimestamp, MetadataWithSamples,              -> metadata_of_each_type, counter_metadata_with_start, metadata_with_samples,
                    MultipleMetadata, MetadataWithComplexLabels, MetadataValidation                     several_metadata, metadata_with_many_labels, metadata_validation
    exemplar        Exemplars, ExemplarWithCreatedTimestamp, MultipleExemplars,                      -> exemplars, exemplar_with_start, several_exemplars,
                    ExemplarTimestamps, ExemplarValidation, ExemplarSpecialValues                       exemplar_times, exemplar_validation, exemplar_special_values
    histograms      Histograms, HistogramWithCreatedTimestamp, MultipleHistograms, EmptyHistogram,   -> histograms, histogram_with_start, several_histograms, empty_histogram,
                    HistogramWithMetadata, HistogramWithExemplar, HistogramWithMetadataAndExemplar,     histogram_with_metadata, _with_exemplar, _with_metadata_and_exemplar,
                    MultipleHistogramsWithMetadata                                                      several_histograms_with_metadata
    combined        SamplesWithMetadataAndExemplars, HistogramsWithMetadataAndExemplars,             -> samples_with_all, histograms_with_all,
                    ComplexSamplesRequest, ComplexHistogramsRequest,                                    samples_of_several_kinds, histograms_of_several_kinds,
                    MultipleMetricFamiliesSamples, MultipleMetricFamiliesHistograms,                    families_of_samples, families_of_histograms,
                    EdgeCaseCombinations, ManySamples, ManyHistograms,                                  edge_cases, many_samples, many_histograms,
                    SpecialCharactersCombined, CustomBucketsHistogramWithExemplar                       special_characters, custom_buckets_with_exemplar
    request         BadContentTypes, BadContentEncodings, CorruptRequestBody                         -> bad_content_types, bad_content_encodings, corrupt_body
    rw1_compat      RW1BasicCompatibility, RW1ErrorHandling                                          -> 1_0_beside, 1_0_errors

What else a receiver has to do is in the other files test_remote_write_2*.py.
"""
import random
import time
import urllib.parse

import pytest
from lib import remote, remote2, wire
from lib.remote import labels
from lib.remote2 import histogram, series, write_body, written
from lib.wire import NORMAL_NAN, STALE_NAN, bits

MINUTE, HOUR = 60_000, 3_600_000
VALUES = {"1.0": bits(1.0), "StaleNaN": STALE_NAN, "NaN": NORMAL_NAN, "Inf": bits(float("inf")), "-Inf": bits(float("-inf"))}


class Receiver:
    """A server, and what it must have by all that was sent to it."""

    def __init__(self, server):
        self.server, self.now = server, int(time.time() * 1000)
        self.samples, self.exemplars, self.metadata = {}, {}, {}
        self.rng = random.Random(self.now)

    def send(self, *good, bad=(), error="no-metric-name"):
        """good ones are stored and counted, bad ones are not: then it is a 400. Labels go in any order, as those of the suite, which come out of a map."""
        everything = [*good, *bad]
        self.rng.shuffle(everything)
        body = remote2.encode_request([s._replace(labels=tuple(self.rng.sample(s.labels, len(s.labels)))) for s in everything])
        a = write_body(self.server.client(), wire.snappy(body))
        for s in good:
            self.keep(s)
        assert a.status == (400 if bad else 204), f"{a.status} {a.text[:300]}"
        assert a.id == ("err-varve-" + error if bad else "") and bool(a.body) == bool(bad)
        assert written(a) == tuple(sum(len(getattr(s, part)) for s in good) for part in ("samples", "histograms", "exemplars")), a.text
        self.check()

    def keep(self, s):
        name = tuple(sorted(s.labels, key=lambda p: wire.raw(p[0])))
        held = self.samples.setdefault(name, {})
        held.update({x[0]: x[1] for x in s.samples})
        held.update(remote._histogram(h) for h in s.histograms)
        for pairs, value, t in s.exemplars:
            self.exemplars.setdefault(name, {})[(t, value, tuple(sorted(pairs)))] = None
        if s.metadata and s.metadata != (0, "", ""):
            kind, text, unit = s.metadata
            self.metadata.setdefault(dict(name)["__name__"], set()).add((remote.METRIC_TYPES[kind], text, unit))

    def ask(self, path, **params):
        a = self.server.client().get(f"/api/v1/{path}?" + urllib.parse.urlencode(params))
        assert a.status == 200, a.text
        return a.json()["data"]

    def check(self):
        for accept in (remote.SAMPLES, remote.STREAMED):
            got = {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in self.server.read(accept=(accept,)).items()}
            assert got == {k: sorted(v.items()) for k, v in self.samples.items()}
        got = {}
        for s in self.ask("query_exemplars", query='{__name__=~".+"}', start=0, end=1e11):
            name = tuple(p for p in labels(**s["seriesLabels"]) if p[0] != "tenant_id")
            got[name] = [(round(e["timestamp"] * 1000), NORMAL_NAN if e["value"] == "NaN" else bits(float(e["value"])), tuple(sorted(e["labels"].items())))
                         for e in s["exemplars"]]
        assert got == {k: sorted(v) for k, v in self.exemplars.items()}
        assert {k: {(m["type"], m["help"], m["unit"]) for m in v} for k, v in self.ask("metadata").items()} == self.metadata


@pytest.fixture
def receiver(varve):
    r = Receiver(varve())
    yield r
    r.server.kill9()
    r.server.start()
    r.check()


def exemplar(t, value, **pairs):
    return tuple(pairs.items()), bits(value), t


HOST = labels("up", job="testjob", instance="localhost:9090")


# ---- metric ----

@pytest.mark.parametrize("value", VALUES)
def test_single_metric(receiver, value):
    point = [(receiver.now, VALUES[value])]
    for pairs in (labels("up"), HOST, labels("up", job="line\nby\nline\n", instance="localhost:9090"),
                  labels("resource.cpu.usage", **{"job.name": "testjob", "instance.name": "a:1"}), labels("resource cpu usage", **{"job name": "x y", "instance name": "b:2"})):
        receiver.send(series(pairs, point))
    receiver.send(bad=[series(HOST[1:], point)])
    receiver.send(bad=[series((), point)])


def test_counter_with_start(receiver):
    receiver.send(series(labels("http_requests_total", job="api"), [(receiver.now, bits(100.0))], created=receiver.now - HOUR))
    receiver.send(series(labels("http_requests_total", job="new"), [(receiver.now, bits(100.0), receiver.now - HOUR)]))


@pytest.mark.parametrize("value", VALUES)
def test_several_metrics(receiver, value):
    point = [(receiver.now, VALUES[value])]
    hosts = [labels("up", job="testjob", instance=f"localhost:909{i}") for i in range(4)]
    nameless = [series(h[1:], point) for h in hosts]
    receiver.send(bad=nameless)
    receiver.send(*[series(h, point) for h in hosts[1:]], bad=nameless[:1])
    receiver.send(*[series(h, point) for h in hosts])


# ---- metadata ----

TOLD = {
    "counter": (remote2.COUNTER, "All requests that came", "requests"), "gauge": (remote2.GAUGE, "How busy it is", "percent"),
    "histogram": (remote2.HISTOGRAM, "How long they took", "seconds"), "neither help nor unit": (remote2.COUNTER, "", ""),
    "special characters": (remote2.GAUGE, 'two\nlines, "quoted", äöü, \\', "bytes/sec"), "unspecified": (0, "Nobody knows", ""),
    "info": (remote2.INFO, "How it was built", ""), "stateset": (remote2.STATESET, "In which state", ""), "summary": (remote2.SUMMARY, "Latency", "seconds"),
    "gauge histogram": (remote2.GAUGEHISTOGRAM, "How warm", "celsius"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_metadata_of_each_type(receiver, kind):
    h = [histogram(receiver.now, count=13, total=1.0, zero=1, pos=[1, 2], neg=[4, 5])] if kind == "histogram" else ()
    receiver.send(series(labels("told", job="x"), () if h else [(receiver.now, bits(1.0))], h, metadata=TOLD[kind]))


def test_counter_metadata_with_start(receiver):
    receiver.send(series(labels("http_requests_total", job="api"), [(receiver.now, bits(150.0))], metadata=TOLD["counter"], created=receiver.now - HOUR))


def test_metadata_with_samples(receiver):
    receiver.send(series(labels("http_requests_total", job="test"), [(receiver.now, bits(42.0))], metadata=TOLD["counter"]))


def test_several_metadata(receiver):
    receiver.send(series(labels("cpu_usage"), [(receiver.now, bits(85.5))], metadata=(remote2.GAUGE, "Of the processor", "percent")),
                  series(labels("memory_usage"), [(receiver.now, bits(4.096e9))], metadata=(remote2.GAUGE, "Of the memory", "bytes")),
                  series(labels("disk_usage", device="sda1"), [(receiver.now, bits(75.2))], metadata=(remote2.GAUGE, "Of the disk", "percent")))


def test_metadata_with_many_labels(receiver):
    pairs = labels("http_request_duration_seconds", job="api-server", instance="localhost:8080", method="GET", status="200", endpoint="/api/v1/users")
    receiver.send(series(pairs, histograms=[histogram(receiver.now, count=15, total=0.25, zero=2, pos=[1, 3], neg=[4, 5])], metadata=TOLD["histogram"]))


def test_metadata_validation(receiver):
    point = [(receiver.now, bits(1.0))]
    receiver.send(bad=[series(labels(job="test"), point, metadata=TOLD["counter"])])
    receiver.send(bad=[series(labels(""), point, metadata=TOLD["gauge"])])
    receiver.send(series(labels("valid"), point, metadata=TOLD["counter"]))


# ---- exemplar ----

EXEMPLARS = {
    "trace": {"trace_id": "abc123def456"}, "trace and span": {"trace_id": "xyz789", "span_id": "span123"}, "no trace": {"user_id": "user123"},
    "several labels": {"trace_id": "trace456", "user": "admin", "endpoint": "/login"}, "no labels": {}, "special characters": {"trace_id": "with-dashes_and.dots:123"},
    "unicode": {"trace_id": "unicode_测试 🌍"},
}


@pytest.mark.parametrize("case", EXEMPLARS)
def test_exemplars(receiver, case):
    pairs = labels("request_latency", service="auth", region="🌍")
    receiver.send(series(pairs, [(receiver.now, bits(0.05))], exemplars=[exemplar(receiver.now, 0.05, **EXEMPLARS[case])]))


def test_exemplar_with_start(receiver):
    receiver.send(series(labels("http_requests_total", job="api"), [(receiver.now, bits(250.0))], exemplars=[exemplar(receiver.now, 250.0, trace_id="abc", span_id="s")],
                         created=receiver.now - 2 * HOUR))


def test_several_exemplars(receiver):
    receiver.send(*[series(pairs, [(receiver.now, bits(v))], exemplars=[exemplar(receiver.now, v, trace_id=f"trace{v}", user="u")]) for pairs, v in (
        (labels("request_duration", method="GET"), 0.1), (labels("request_duration", method="POST"), 0.25), (labels("error_count", service="payment"), 1.0))])


def test_exemplar_times(receiver):
    # Three series of the same labels in a request stay in their order: the suite's sender does not turn them round.
    receiver.rng.shuffle = lambda some: None
    receiver.send(*[series(labels("latency_hist"), [(t, bits(v))], exemplars=[exemplar(t, v, trace_id=trace)]) for t, v, trace in (
        (receiver.now - HOUR, 0.05, "old"), (receiver.now - MINUTE, 0.15, "recent"), (receiver.now, 0.08, "current"))])


def test_exemplar_validation(receiver):
    point, some = [(receiver.now, bits(1.0))], [exemplar(receiver.now, 1.0, trace_id="x")]
    receiver.send(bad=[series(labels(job="test"), point, exemplars=some)])
    receiver.send(bad=[series(labels(""), point, exemplars=some)])
    receiver.send(series(labels("valid"), point, exemplars=some))


def test_exemplar_special_values(receiver):
    for i, v in enumerate((0.0, -123.456, 1e10, 1e-10, None, float("inf"), float("-inf"))):
        b = NORMAL_NAN if v is None else bits(v)
        receiver.send(series(labels("test_metric", i=str(i)), [(receiver.now, b)], exemplars=[((("trace_id", "special"),), b, receiver.now)]))


# ---- histograms ----

HISTOGRAMS = {
    "all buckets": dict(count=21, total=1.0, zero=3, pos=[1, 2, 4], neg=[5, 6]), "custom buckets": dict(schema=-53, threshold=0, count=6, total=1.0, pos=[1, 2, 3], custom=[0.1, 0.5, 1.0]),
    "positive": dict(count=8, total=1.0, zero=1, pos=[3, 4]), "negative": dict(count=7, total=1.0, neg=[3, 4]), "zero bucket alone": dict(count=2, total=1.0, zero=2),
}


@pytest.mark.parametrize("kind", HISTOGRAMS)
def test_histograms(receiver, kind):
    receiver.send(series(labels("test_histogram", job="test"), histograms=[histogram(receiver.now, **HISTOGRAMS[kind])]))
    bad = histogram(receiver.now, count=99, total=1.0, pos=[3, 4])
    receiver.send(bad=[series(labels("minimal_hist"), histograms=[bad])], error="histogram-invalid")


def test_histogram_with_start(receiver):
    h = histogram(receiver.now, **HISTOGRAMS["all buckets"], start=receiver.now - HOUR // 2)
    receiver.send(series(labels("request_duration_seconds", job="api"), histograms=[h], created=receiver.now - HOUR // 2))


def test_several_histograms(receiver):
    receiver.send(series(labels("hist1", job="test"), histograms=[histogram(receiver.now, count=8, total=10.5, zero=1, pos=[3, 4])]),
                  series(labels("hist2", job="test"), histograms=[histogram(receiver.now, count=7, total=5.2, neg=[3, 4])]))


def test_empty_histogram(receiver):
    receiver.send(series(labels("empty_hist"), histograms=[histogram(receiver.now)]))


def with_all(receiver, name, value, told=None, trace=None, shape="all buckets", **more):
    h = histogram(receiver.now, **{**HISTOGRAMS[shape], "total": value})
    return series(labels(name, **more), histograms=[h], metadata=told, exemplars=[exemplar(receiver.now, value, **trace)] if trace else ())


def test_histogram_with_metadata(receiver):
    receiver.send(with_all(receiver, "request_duration_seconds", 2.5, TOLD["histogram"], job="api"))


def test_histogram_with_exemplar(receiver):
    receiver.send(with_all(receiver, "http_request_duration_seconds", 1.23, None, {"trace_id": "abc", "span_id": "span789"}, method="GET"))


def test_histogram_with_metadata_and_exemplar(receiver):
    receiver.send(with_all(receiver, "response_size_bytes", 10485760.0, (remote2.HISTOGRAM, "How large", "bytes"), {"trace_id": "upload", "user_id": "u"}, service="upload"))


def test_several_histograms_with_metadata(receiver):
    receiver.send(with_all(receiver, "request_duration", 0.5, TOLD["histogram"], shape="positive", method="GET"),
                  with_all(receiver, "response_size", 2048.0, (remote2.HISTOGRAM, "How large", "bytes"), shape="negative", method="GET"))


# ---- combined ----

def float_with_all(receiver, name, value, told=None, trace=None, **more):
    return series(labels(name, **more), [(receiver.now, bits(value))], metadata=told, exemplars=[exemplar(receiver.now, value, **trace)] if trace else ())


def test_samples_with_all(receiver):
    receiver.send(float_with_all(receiver, "http_requests_total", 1.0, TOLD["counter"], {"trace_id": "request_123", "user_id": "user789"}, job="api", method="POST"))


def test_histograms_with_all(receiver):
    receiver.send(with_all(receiver, "request_duration_seconds", 0.456, TOLD["histogram"], {"trace_id": "slow", "endpoint": "/login"}, service="auth"))


def test_samples_of_several_kinds(receiver):
    receiver.send(float_with_all(receiver, "cpu_usage", 0.85, (remote2.GAUGE, "Of the processor", "ratio"), {"trace_id": "high", "process": "worker"}, instance="server1"),
                  float_with_all(receiver, "memory_usage", 8589934592.0, (remote2.GAUGE, "Of the memory", "bytes"), instance="server1"))


def test_histograms_of_several_kinds(receiver):
    receiver.send(with_all(receiver, "response_time_hist", 0.125, TOLD["histogram"], {"trace_id": "fast", "user": "premium"}, "positive", endpoint="/api/v1/users"),
                  with_all(receiver, "request_size_hist", 1024.0, (remote2.HISTOGRAM, "How large", "bytes"), shape="negative", method="POST"))


def test_families_of_samples(receiver):
    receiver.send(float_with_all(receiver, "http_requests_total", 1000.0, TOLD["counter"], {"trace_id": "successful"}, status="200"),
                  float_with_all(receiver, "temperature_celsius", 23.5, (remote2.GAUGE, "How warm", "celsius"), location="datacenter1"))


def test_families_of_histograms(receiver):
    receiver.send(with_all(receiver, "request_duration_seconds", 0.003, TOLD["histogram"], {"trace_id": "scrape", "scraper": "prometheus"}, "positive", handler="/metrics"))


def test_edge_cases(receiver):
    # Either answer is right for what comes without data; ours is that no sample was stored. Metadata is its metric's, and is kept.
    receiver.metadata["orphan"] = {("counter", *TOLD["counter"][1:])}
    receiver.send(bad=[series(labels("orphan"), metadata=TOLD["counter"])], error="no-samples")
    receiver.send(bad=[series(labels("orphan"), exemplars=[exemplar(receiver.now, 42.0, trace_id="orphan")])], error="exemplar-no-series")
    receiver.send(series(labels("old_metric"), [(receiver.now - HOUR, bits(1.0))], exemplars=[exemplar(receiver.now - HOUR // 2, 1.0, trace_id="old")]),
                  series(labels("new_metric"), [(receiver.now, bits(2.0))]))


def test_many_samples(receiver):
    receiver.send(*[float_with_all(receiver, f"counter_metric_{i}", i * 100.0, (remote2.COUNTER, f"Counter {i}", "count"), {"trace_id": f"trace_{i}"}, series=f"series_{i}")
                    for i in range(50)])


def test_many_histograms(receiver):
    receiver.send(*[with_all(receiver, f"histogram_metric_{i}", i / 10, (remote2.HISTOGRAM, f"Histogram {i}", "seconds"), {"trace_id": f"trace_{i}"},
                             "positive" if i % 2 else "all buckets", bucket=f"bucket_{i}") for i in range(50)])


def test_special_characters(receiver):
    receiver.send(float_with_all(receiver, "test_metric", 42.0, (remote2.GAUGE, 'äöü, lines\nand "quotes"', "special/units"),
                                 {"trace_id": "special_äöü-123", "span_id": "with.dots-and_underscores"}, job="test-job_with.special@chars", environment="test🚀"))


def test_custom_buckets_with_exemplar(receiver):
    receiver.send(with_all(receiver, "custom_latency_hist", 0.05, None, {"trace_id": "custom", "bucket": "0.1"}, "custom buckets", version="v2"))


# ---- request ----

def spoiled(receiver, first=0x30, **headers):
    body = bytearray(wire.snappy(remote2.encode_request([series(labels("up"), [(receiver.now, bits(1.0))])])))
    body[0] = first
    a = write_body(receiver.server.client(), bytes(body), headers)
    receiver.check()
    return a


@pytest.mark.parametrize("kind", ["application/json", "image/png"])
def test_bad_content_types(receiver, kind):
    assert spoiled(receiver, **{"Content-Type": kind}).status == 415


@pytest.mark.parametrize("kind", ["gzip", "deflate"])
def test_bad_content_encodings(receiver, kind):
    assert spoiled(receiver, **{"Content-Encoding": kind}).status == 415


def test_corrupt_body(receiver):
    a = spoiled(receiver)
    assert a.status == 400 and written(a) == (0, 0, 0)


# ---- remote write 1.0 ----

BARE = {"User-Agent": None, "X-Prometheus-Remote-Write-Version": None}


def test_1_0_beside(receiver):
    two = [(HOST, [(receiver.now, bits(1.0))]), (labels("http_requests_total"), [(receiver.now, bits(100.0))])]
    a = receiver.server.client().write([(pairs[::-1], some) for pairs, some in two], BARE)
    assert a.status == 204 and written(a) is None
    for pairs, some in two:
        receiver.keep(series(pairs, some))
    receiver.check()


def test_1_0_errors(receiver):
    body = bytearray(wire.snappy(remote.encode_request([(labels("error_test"), [(receiver.now, bits(1.0))])])))
    body[0] = 0xFF
    a = receiver.server.client().write_body(bytes(body), BARE)
    assert a.status == 400 and written(a) is None
    receiver.check()
