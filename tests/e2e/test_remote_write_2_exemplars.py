"""Exemplars and metadata by remote write 2.0: the counts of the answer are exact, what is counted can be asked for, and it is the same series as in 1.0."""
import http.server
import threading
import time

import pytest
from lib import procs, remote2, wire
from lib.remote import labels
from lib.remote2 import series, write, written
from lib.wire import bits
from test_annotations import Page, ask, both, metadata, send, series as series_1, traces


def now():
    return int(time.time() * 1000)


@pytest.fixture
def server(varve):
    return varve()


def exemplar(t, trace, value=1.0, **more):
    return labels(trace_id=trace, **more), bits(value), t


def test_exemplars_with_their_samples(server):
    t = now()
    a = write(server.client(), [series(labels("calls_total", i=str(i)), [(t, bits(1.0))], exemplars=[exemplar(t, f"t{i}", 0.5, span="x")]) for i in range(10)])
    assert (a.status, written(a)) == (204, (10, 0, 10)), a.text
    got = ask(server, "calls_total")
    assert traces(got) == [f"t{i}" for i in range(10)]
    assert got[0] == {"seriesLabels": {"__name__": "calls_total", "i": "0", "tenant_id": "default-tenant"},
                      "exemplars": [{"labels": {"span": "x", "trace_id": "t0"}, "value": "0.5", "timestamp": t / 1000}]}
    server.kill9()
    server.start()
    assert ask(server, "calls_total") == got


def test_several_exemplars_of_a_series_and_the_same_again(server):
    t, c = now(), server.client()
    some = [series(labels("h_bucket", le="1"), [(t, bits(1.0))], exemplars=[exemplar(t + i, f"t{i}") for i in range(5)])]
    for _ in range(3):  # a repetition counts as written
        a = write(c, some)
        assert (a.status, written(a)) == (204, (1, 0, 5)), a.text
    assert traces(ask(server, "h_bucket")) == [f"t{i}" for i in range(5)]


def test_exemplars_alone_as_prometheus_sends_them(server):
    t, c, up = now(), server.client(), labels("up", job="x")
    a = write(c, [series(up, [(t, bits(1.0))]), series(up, exemplars=[exemplar(t, "a")])])
    assert (a.status, written(a)) == (204, (1, 0, 1)), a.text
    a = write(c, [series(up[::-1], exemplars=[exemplar(t + 1, "b")])])  # in another order of labels
    assert (a.status, written(a)) == (204, (0, 0, 1)), a.text
    send(server, series_1(up, [], [(labels(trace_id="c"), t + 2, 1.0)]))  # by 1.0
    assert traces(ask(server, "up")) == ["a", "b", "c"]


def test_one_without_its_series_is_refused_the_rest_is_stored(server):
    t = now()
    a = write(server.client(), [series(labels("up"), [(t, bits(1.0))]), series(labels("nobody"), exemplars=[exemplar(t, "a")])])
    assert (a.status, a.id, written(a)) == (400, "err-varve-exemplar-no-series", (1, 0, 0)), a.text
    assert ask(server, '{__name__=~".+"}') == []


def test_too_long_ones_are_left_out_and_not_counted(server):
    t = now()
    a = write(server.client(), [series(labels("up"), [(t, bits(1.0))], exemplars=[exemplar(t, "x" * 121), exemplar(t, "x" * 120)])])
    assert (a.status, written(a)) == (204, (1, 0, 1)), a.text
    assert traces(ask(server, "up")) == ["x" * 120]


def test_one_out_of_order_is_refused_the_rest_is_stored(server):
    t, c = now(), server.client()
    write(c, [series(labels("up"), [(t, bits(1.0))], exemplars=[exemplar(t, "new")])])
    a = write(c, [series(labels("up"), [(t + 1, bits(1.0))], exemplars=[exemplar(t - 1, "old"), exemplar(t + 1, "newer")])])
    assert (a.status, a.id, written(a)) == (400, "err-varve-exemplar-out-of-order", (1, 0, 1)), a.text
    assert traces(ask(server, "up")) == ["new", "newer"]


def test_a_bad_series_does_not_take_the_exemplars_of_others_along(server):
    t = now()
    a = write(server.client(), [series(labels(job="x"), [(t, bits(1.0))], exemplars=[exemplar(t, "a")]),
                                series(labels("up"), [(t, bits(1.0))], exemplars=[exemplar(t, "b")])])
    assert (a.status, a.id, written(a)) == (400, "err-varve-no-metric-name", (1, 0, 1)), a.text
    assert traces(ask(server, '{__name__=~".+"}')) == ["b"]


def test_metadata_of_every_series(server):
    t = now()
    some = [series(labels(f"m{i % 7}", i=str(i)), [(t, bits(1.0))], metadata=(1 + i % 7, f"Help of {i % 7}", "s")) for i in range(100)]
    for _ in range(2):
        a = write(server.client(), some)
        assert (a.status, written(a)) == (204, (100, 0, 0)), a.text
    kinds = ("counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")
    want = {f"m{i}": [{"type": kinds[i], "help": f"Help of {i}", "unit": "s"}] for i in range(7)}
    assert metadata(server) == want
    assert server.metrics()['varve_ingest_metadata_total{result="new"}'] == 7
    server.kill9()
    server.start()
    assert metadata(server) == want
    # What says nothing is nothing.
    write(server.client(), [series(labels("silent"), [(t, bits(1.0))], metadata=(0, "", ""))])
    assert metadata(server) == want


@pytest.mark.timeout(180)
def test_a_real_prometheus_sends_them_by_2_0(server, spawn):
    """Debian sid's: exemplars and metadata with the samples, 2.0 on the wire."""
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    prometheus = spawn(procs.Prometheus, """
scrape_configs:
  - job_name: page
    static_configs: [{targets: ["127.0.0.1:%d"]}]
remote_write:
  - url: %s/api/v1/write
    protobuf_message: io.prometheus.write.v2.Request
    send_exemplars: true
    queue_config: {batch_send_deadline: 500ms}
""" % (page.server_port, server.url), newest=True, flags=["--enable-feature=exemplar-storage,metadata-wal-records"])
    try:
        prometheus.start()
        procs.wait_for(lambda: len(traces(ask(server, "{job=\"page\"}"))) > 25, 60, "exemplars have come")
        page.shutdown()
        page.server_close()
        time.sleep(3)
        ours, theirs = both(server, prometheus, {"query": "rate(rpc_bucket[1m]) or calls_total", "start": 0, "end": 1e11})
        assert ours == theirs and len(ours[1]["data"]) == 3
        told = metadata(server)
        assert told["rpc_bucket"] == [{"type": "histogram", "help": "A call's duration", "unit": ""}], told
        assert told["calls_total"] == [{"type": "counter", "help": "Calls", "unit": ""}]
        got = server.metrics()
        assert got['varve_ingest_requests_total{version="2.0"}'] > 3 and got['varve_ingest_requests_total{version="1.0"}'] == 0
        assert server.metric("varve_ingest_requests_refused_in_part_total") == 0
        assert got['varve_ingest_exemplars_total{result="no-series"}'] == got['varve_ingest_exemplars_total{result="out-of-order"}'] == 0
        _, text = procs.http_get(prometheus.url + "/metrics")
        for line in text.splitlines():
            if line.startswith(("prometheus_remote_storage_exemplars_failed_total{", "prometheus_remote_storage_exemplars_dropped_total{")):
                assert line.endswith(" 0"), line
    finally:
        page.server_close()
