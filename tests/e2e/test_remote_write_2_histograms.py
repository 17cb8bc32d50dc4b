"""Remote write 2.0: native histograms of every kind, counted exactly and read back as they were sent."""
import math
import time

import pytest
from lib import chunks, remote, remote2
from lib.remote2 import histogram, series, write, written
from lib.wire import STALE_NAN, bits

labels = remote.labels
HOUR = 3_600_000


def now():
    return int(time.time() * 1000)


@pytest.fixture
def server(varve):
    return varve()


def stored(server):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read().items()}


def taken(answer, samples=0, histograms=0, exemplars=0):
    assert answer.status == 204, f"{answer.status} {answer.text[:300]}"
    assert written(answer) == (samples, histograms, exemplars)


def meant(content):
    """(time, Histogram) of a message that histogram() made."""
    return remote._histogram(content)


KINDS = {
    "all sides": dict(count=21, total=1.5, zero=3, pos=[1, 2, 4], neg=[5, 6]),
    "positive": dict(count=10, total=18.4, zero=1, pos=[1, 0, 8], pos_spans=[(-3, 1), (4, 2)]),
    "negative": dict(count=3, total=-2.5, neg=[1, 2]),
    "zero bucket alone": dict(count=1, zero=1),
    "empty": dict(),
    "custom buckets": dict(schema=-53, threshold=0, count=6, total=0.75, pos=[1, 2, 3], pos_spans=[(0, 2), (1, 1)], custom=[0.1, 0.5, 1.0]),
    "custom buckets, none of them used": dict(schema=-53, threshold=0, custom=[0.05, 0.1]),
    "gauge": dict(count=3, total=1.0, zero=1, pos=[2], hint=3),
    "schema -4": dict(schema=-4, count=1, pos=[1]), "schema 8": dict(schema=8, count=1, pos=[1], pos_spans=[(-200_000, 1)]),
    "sum NaN": dict(count=9, sum_bits=bits(math.nan), pos=[1, 2]),
    "sum -Inf": dict(count=1, sum_bits=bits(-math.inf), neg=[1]),
    "large": dict(count=(1 << 62) + 1, total=1e300, zero=1, pos=[1 << 62]),
    "stale": dict(threshold=0, sum_bits=STALE_NAN),
}
for name in ("all sides", "custom buckets", "gauge", "empty", "stale"):
    KINDS["float, " + name] = {**KINDS[name], "is_float": True}
KINDS["float, fractions"] = dict(is_float=True, count=0.3, total=1e-9, zero=0.1, pos=[0.05, 0.15])


@pytest.mark.parametrize("kind", KINDS)
def test_a_histogram_is_read_back(server, kind):
    t, c = now(), server.client()
    sent = [histogram(t + 15_000 * i - 60_000, **KINDS[kind]) for i in range(3)]
    pairs = labels("request_duration_seconds", job="api")
    for h in sent:
        taken(write(c, [series(reversed(pairs), histograms=[h])]), 0, 1)
    taken(write(c, [series(pairs, histograms=sent)]), 0, 3)  # again: duplicates are written
    want = {pairs: [meant(h) for h in sent]}
    assert stored(server) == want
    server.kill9()
    server.start()
    assert stored(server) == want
    server.flush()
    assert stored(server) == want


def test_a_finer_schema_is_reduced(server):
    t = now()
    h = histogram(t, schema=10, count=15, total=3.0, pos=[1, 2, 4, 8], pos_spans=[(1, 2), (2, 2)])  # 1, 2, 5, 6 of which four make one: 1 and 2
    taken(write(server.client(), [series(labels("fine"), histograms=[h])]), 0, 1)
    assert stored(server) == {labels("fine"): [(t, chunks.histogram("int", 8, 0.001, 0, 15, bits(3.0), {1: 3, 2: 12}, {}))]}


def test_a_bad_count_is_refused_alone(server):
    t, c = now(), server.client()
    good, bad = histogram(t, count=3, pos=[1, 2]), histogram(t, count=4, pos=[1, 2])
    a = write(c, [series(labels("bad"), histograms=[bad]), series(labels("good"), histograms=[good])])
    assert a.status == 400 and a.id == "err-varve-histogram-invalid" and written(a) == (0, 1, 0), a.text
    assert stored(server) == {labels("good"): [meant(good)]}


def test_created_timestamps(server):
    t, c = now(), server.client()
    h = histogram(t, count=3, pos=[1, 2], start=t - HOUR // 2)
    taken(write(c, [series(labels("request_duration_seconds", job="api"), histograms=[h], created=t - HOUR // 2)]), 0, 1)
    assert stored(server) == {labels("request_duration_seconds", job="api"): [meant(h)]}


def test_several_in_one_request_with_metadata(server):
    t = now()
    all_series, want = [], {}
    for i in range(50):
        pairs = labels(f"histogram_metric_{i}", bucket=f"bucket_{i}")
        h = histogram(t, count=4 + (i % 2), total=i / 10, zero=1, pos=[1, 2], neg=[1] if i % 2 else [])
        all_series.append(series(pairs, histograms=[h], metadata=(remote2.HISTOGRAM, f"Histogram number {i}", "seconds")))
        want[pairs] = [meant(h)]
    taken(write(server.client(), all_series), 0, 50)
    assert stored(server) == want


def test_floats_and_histograms_in_one_series(server):
    """Not a sender's way, and the specification's choice is the receiver's: both are stored."""
    t, pairs = now(), labels("mixed", job="x")
    h = histogram(t - 1000, count=3, pos=[1, 2])
    taken(write(server.client(), [series(pairs, [(t, bits(1.0))], [h])]), 1, 1)
    taken(write(server.client(), [series(pairs, [(t + 1000, bits(2.0))])]), 1)
    want = {pairs: [meant(h), (t, bits(1.0)), (t + 1000, bits(2.0))]}
    assert stored(server) == want
    server.flush()
    assert stored(server) == want


def test_bad_labels(server):
    for pairs in (labels(job="x"), ()):
        a = write(server.client(), [series(pairs, histograms=[histogram(now(), count=3, pos=[1, 2])])])
        assert a.status == 400 and a.id == "err-varve-no-metric-name" and written(a) == (0, 0, 0), a.text
    assert stored(server) == {}


def test_times_and_other_values(server):
    t, c, pairs = now(), server.client(), labels("h")
    first = histogram(t, count=3, pos=[1, 2])
    taken(write(c, [series(pairs, histograms=[first])]), 0, 1)
    for bad, reason in ((histogram(t, count=4, pos=[2, 2]), "duplicate-timestamp"), (histogram(t - 31 * 24 * HOUR, count=3, pos=[1, 2]), "too-old"),
                        (histogram(t + HOUR, count=3, pos=[1, 2]), "too-far-ahead")):
        a = write(c, [series(pairs, histograms=[bad])])
        assert a.status == 400 and a.id == "err-varve-" + reason and written(a) == (0, 0, 0), a.text
    assert stored(server) == {pairs: [meant(first)]}


def test_1_0_and_2_0_write_one_series(server):
    t, pairs = now(), labels("latency", job="x")
    old = remote.encode_int_histogram(t, 0, 0.001, 1, 4, 2.5, [(0, 2)], [1, 1])
    body = remote.pb_len(1, remote.encode_labels(pairs) + old)
    assert server.client().write_body(remote.snappy(body)).status == 204
    new = histogram(t + 1000, count=5, total=3.5, zero=1, pos=[2, 2])
    taken(write(server.client(), [series(pairs, histograms=[new])]), 0, 1)
    same = histogram(t, count=4, total=2.5, zero=1, pos=[1, 2])
    taken(write(server.client(), [series(pairs, histograms=[same])]), 0, 1)
    assert stored(server) == {pairs: [meant(same), meant(new)]}
