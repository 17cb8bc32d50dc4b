"""Remote write 2.0: exemplars, counted exactly. The cases of Prometheus' receiver compliance suite, and more; what becomes of them is another file's matter."""
import time

import pytest
from lib import remote, remote2
from lib.remote2 import series, write, written
from lib.wire import NORMAL_NAN, bits

labels = remote.labels
HOUR = 3_600_000


def now():
    return int(time.time() * 1000)


@pytest.fixture
def server(varve):
    return varve()


def stored(server):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read().items()}


def kept(server, query):
    a = server.client().get(f"/api/v1/query_exemplars?query={query}&start=0&end={now() / 1000 + 3600}")
    assert a.status == 200, a.text
    out = {}
    for s in a.json()["data"]:
        pairs = tuple(sorted(p for p in s["seriesLabels"].items() if p[0] != "tenant_id"))
        out[pairs] = [(e["labels"], e["value"], round(e["timestamp"] * 1000)) for e in s["exemplars"]]
    return out


def taken(answer, samples=0, histograms=0, exemplars=0):
    assert answer.status == 204, f"{answer.status} {answer.text[:300]}"
    assert written(answer) == (samples, histograms, exemplars)


LABELS = {
    "trace": {"trace_id": "abc123def456"}, "trace and span": {"trace_id": "xyz789", "span_id": "span123"}, "no trace": {"user_id": "user123"},
    "several": {"trace_id": "trace456", "user": "admin", "endpoint": "/login"}, "none": {}, "special characters": {"trace_id": "trace-with-dashes_and.123"},
    "unicode": {"trace_id": "unicode_trace_\u6d4b\u8bd5"},
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_an_exemplar(server, case):
    t, pairs = now(), labels("http_requests_total", job="api")
    for _ in range(2):  # a duplicate is written
        taken(write(server.client(), [series(pairs, [(t, bits(1.0))], exemplars=[(LABELS[case].items(), bits(1.0), t)])]), 1, 0, 1)
    assert stored(server) == {pairs: [(t, bits(1.0))]}
    assert kept(server, "http_requests_total") == {pairs: [(LABELS[case], "1", t)]}


@pytest.mark.parametrize("value", [0.0, -123.456, 1e10, 1e-10, float("inf"), float("-inf"), None])
def test_values_of_an_exemplar(server, value):
    t, v = now(), NORMAL_NAN if value is None else bits(value)
    taken(write(server.client(), [series(labels("test_metric"), [(t, v)], exemplars=[((("trace_id", "x"),), v, t)])]), 1, 0, 1)
    assert len(kept(server, "test_metric")[labels("test_metric")]) == 1


def test_several_with_metadata_and_start_timestamps(server):
    t, all_series, want = now(), [], {}
    for i in range(50):
        pairs = labels(f"counter_metric_{i}", series=f"series_{i}")
        all_series.append(series(pairs, [(t, bits(i * 100.0), t - HOUR)], exemplars=[((("trace_id", f"trace_{i}"),), bits(i * 100.0), t)],
                                 metadata=(remote2.COUNTER, f"Counter number {i}", "count"), created=t - HOUR))
        want[pairs] = [({"trace_id": f"trace_{i}"}, str(i * 100), t)]
    taken(write(server.client(), all_series), 50, 0, 50)
    assert kept(server, '{__name__=~"counter_metric_.*"}') == want


def test_several_of_one_series(server):
    t, pairs = now(), labels("latency_hist")
    some = [(t - HOUR, "old_trace"), (t - 60_000, "recent_trace"), (t, "current_trace")]
    taken(write(server.client(), [series(pairs, [(at, bits(0.5))], exemplars=[((("trace_id", trace),), bits(0.5), at)]) for at, trace in some]), 3, 0, 3)
    assert kept(server, "latency_hist") == {pairs: [({"trace_id": trace}, "0.5", at) for at, trace in some]}


def test_an_exemplar_older_than_its_sample(server):
    t = now()
    old = series(labels("old_metric"), [(t - HOUR, bits(1.0))], exemplars=[((("trace_id", "old_trace"),), bits(1.0), t - HOUR // 2)])
    taken(write(server.client(), [old, series(labels("new_metric"), [(t, bits(2.0))])]), 2, 0, 1)


def test_exemplars_of_refused_series_are_not_written(server):
    t = now()
    for pairs in (labels(job="test"), labels("")):
        a = write(server.client(), [series(pairs, [(t, bits(1.0))], exemplars=[((("trace_id", "x"),), bits(1.0), t)]), series(labels("up"), [(t, bits(1.0))])])
        assert a.status == 400 and written(a) == (1, 0, 0), a.text


def test_exemplars_without_data(server):
    a = write(server.client(), [series(labels("orphan"), exemplars=[((("trace_id", "x"),), bits(42.0), now())])])
    assert a.status == 400 and a.id in ("err-varve-no-samples", "err-varve-exemplar-no-series") and written(a) == (0, 0, 0), a.text
