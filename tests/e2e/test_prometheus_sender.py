"""A real Prometheus scrapes and remote-writes to varve: what it kept and what varve shipped are the same, sample for sample and bit for bit."""
import os
import shutil
import time
import urllib.request

import pytest
from lib import chunks, exposition, gen, procs, promdump, tsdb, wire
from test_annotations import both, metadata

SECONDS = 125

SCRAPE = """
scrape_configs:
  - job_name: prometheus
    static_configs: [{targets: ["127.0.0.1:@PORT@"]}]
  - job_name: generated
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""
WRITE = """
remote_write:
  - url: %s/api/v1/write
    queue_config: {capacity: 20000, max_samples_per_send: 2000, batch_send_deadline: 1s, min_backoff: 100ms}
"""


def page_value(prometheus, name):
    _, page = procs.http_get(prometheus.url + "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{") or line.startswith(name + " "))


def sent_all(prometheus):
    newest_in = page_value(prometheus, "prometheus_remote_storage_highest_timestamp_in_seconds")
    newest_sent = page_value(prometheus, "prometheus_remote_storage_queue_highest_sent_timestamp_seconds")
    return newest_in and newest_sent >= newest_in and page_value(prometheus, "prometheus_remote_storage_samples_pending") == 0


@pytest.mark.timeout(420)
@pytest.mark.parametrize("newest", [False, True], ids=["debian-2.42", "sid-3.5"])
def test_every_sample_of_a_real_prometheus_is_in_the_bucket(varve, spawn, tmp_path, newest):
    if newest and "VARVE_FULL" not in os.environ:
        pytest.skip("the second sender runs in make test-full")
    server = varve(head_block_range="1m")  # several blocks, cut while data arrives
    target = gen.Target(20260822, 600)
    write = WRITE % server.url
    prometheus = spawn(procs.Prometheus, SCRAPE % target.port + write, newest=newest)
    if newest:
        prometheus.config_path.write_text(prometheus.config_path.read_text().replace("global:\n", "global:\n  scrape_protocols: [PrometheusText0.0.4]\n"))
    prometheus.start()
    with_scrapes = prometheus.config_path.read_text()
    time.sleep(SECONDS)
    assert target.scrapes >= SECONDS * 0.8

    # Without targets nothing new is scraped; what is scraped goes out, staleness included.
    prometheus.config_path.write_text(with_scrapes[:with_scrapes.index("scrape_configs:")] + write)
    prometheus.signal(1)
    time.sleep(5)
    procs.wait_for(lambda: sent_all(prometheus), 60, "Prometheus has sent everything")
    time.sleep(1)
    target.stop()
    for failed in ("prometheus_remote_storage_samples_failed_total", "prometheus_remote_storage_samples_dropped_total"):
        assert page_value(prometheus, failed) == 0, failed
    blocks = server.flush()
    assert len(blocks) >= 3

    # Its own data as a block, for the bits.
    request = urllib.request.Request(prometheus.url + "/api/v1/admin/tsdb/snapshot", method="POST")
    with urllib.request.urlopen(request, timeout=60):
        pass
    prometheus.stop()
    (snapshot,) = (prometheus.data / "snapshots").iterdir()
    theirs = tsdb.dump_dir(snapshot)
    ours = tsdb.dump_dir(server.bucket_dir, external=False)
    assert len(theirs) >= 1000
    # Its sender leaves out a value that equals 0: a -0 travels as 0, and nobody behind it can know.
    zero = {wire.bits(-0.0): 0}
    assert ours == {k: [(t, zero.get(v, v)) for t, v in s] for k, s in theirs.items()}
    values = {v for s in ours.values() for _, v in s}
    assert {wire.STALE_NAN, wire.NORMAL_NAN, wire.bits(float("inf")), wire.bits(float("-inf"))} <= values
    assert sum(1 for s in ours.values() for _, v in s if v == wire.STALE_NAN) > 200

    # promtool's word, on both.
    copy = tmp_path / "ours"
    shutil.copytree(server.bucket_dir, copy, ignore=shutil.ignore_patterns("varve"))
    (copy / "wal").mkdir()
    minus = lambda lines: [line.replace("} -0 ", "} 0 ") for line in lines]
    a, b = promdump.lines(copy, newest), minus(promdump.lines(prometheus.data, newest))
    assert len(a) == sum(map(len, ours.values()))
    assert a == sorted(b)


NATIVE_SECONDS = 125 if "VARVE_FULL" in os.environ else 30
NATIVE = """
scrape_configs:
  - job_name: native
    always_scrape_classic_histograms: true
    static_configs: [{targets: ["127.0.0.1:%(port)d"]}]
  - job_name: converted
    convert_classic_histograms_to_nhcb: true
    metrics_path: /converted
    static_configs: [{targets: ["127.0.0.1:%(port)d"]}]
"""
WRITE_2 = """
remote_write:
  - url: %s/api/v1/write
    protobuf_message: io.prometheus.write.v2.Request
    send_exemplars: true
    send_native_histograms: true
    queue_config: {capacity: 20000, max_samples_per_send: 2000, batch_send_deadline: 500ms, min_backoff: 100ms}
"""


@pytest.mark.timeout(420)
def test_histograms_exemplars_and_metadata_of_a_real_prometheus(varve, spawn):
    """Debian sid's, by 2.0, for two minutes in make test-full: its own blocks and varve's are the same, and so are its exemplars and metadata."""
    server = varve(head_block_range="1m")
    page = exposition.Page(20261123, 300, 200)
    prometheus = spawn(procs.Prometheus, NATIVE % {"port": page.port} + WRITE_2 % server.url, newest=True,
                       flags=["--enable-feature=native-histograms,exemplar-storage,metadata-wal-records"])
    prometheus.start()
    with_scrapes = prometheus.config_path.read_text()
    time.sleep(NATIVE_SECONDS)
    told = prometheus.api("metadata")
    prometheus.config_path.write_text(with_scrapes[:with_scrapes.index("scrape_configs:")] + WRITE_2 % server.url)
    prometheus.signal(1)
    time.sleep(5)
    procs.wait_for(lambda: sent_all(prometheus), 60, "Prometheus has sent everything")
    time.sleep(2)
    page.stop()
    assert page.scrapes >= NATIVE_SECONDS * 1.2
    for what in ("samples", "histograms", "exemplars"):
        for failed in ("failed_total", "dropped_total", "pending"):
            assert page_value(prometheus, f"prometheus_remote_storage_{what}_{failed}") == 0, (what, failed)
    got = server.metrics()
    assert got['varve_ingest_requests_total{version="2.0"}'] > NATIVE_SECONDS / 2 and got['varve_ingest_requests_total{version="1.0"}'] == 0
    assert server.metric("varve_ingest_requests_refused_in_part_total") == 0

    # What was asked for beside samples.
    exemplars = 0
    for query in ('{__name__=~"page_native_.*"}', '{__name__=~"page_classic_.*"}', '{__name__=~"page_counter_.*"}'):
        ours, theirs = both(server, prometheus, {"query": query, "start": 0, "end": 1e11})
        assert ours == theirs, query
        exemplars += sum(len(s["exemplars"]) for s in ours[1]["data"])
    assert exemplars > NATIVE_SECONDS * 5
    mine, same = metadata(server), 0
    for name, entries in told.items():
        if name in mine:
            assert sorted(sorted(e.items()) for e in mine[name]) == sorted(sorted(e.items()) for e in entries), name
            same += 1
    assert same > 30 and {"page_native_0_4_seconds", "page_native_0_5_seconds", "page_classic_seconds"} <= set(mine)

    # Its own data as a block, for the bits.
    with urllib.request.urlopen(urllib.request.Request(prometheus.url + "/api/v1/admin/tsdb/snapshot", method="POST"), timeout=60):
        pass
    held = server.read()
    assert len(server.flush()) >= 1
    prometheus.stop()
    (snapshot,) = (prometheus.data / "snapshots").iterdir()
    theirs, ours = tsdb.dump_dir(snapshot), tsdb.dump_dir(server.bucket_dir, external=False)
    zero = {wire.bits(-0.0): 0}  # its sender leaves out a value that equals 0
    assert ours == {k: [(t, zero.get(v, v)) for t, v in s] for k, s in theirs.items()}
    assert server.read() == held
    histograms = [v for s in ours.values() for _, v in s if isinstance(v, chunks.Histogram)]
    kinds = {(h.kind, -53 if h.schema == -53 else h.schema >= 0) for h in histograms}
    print(f"{page.scrapes} scrapes, {sum(map(len, ours.values()))} samples, {len(histograms)} histograms, {exemplars} exemplars, metadata of {len(mine)} families")
    assert len(histograms) > NATIVE_SECONDS * 200
    assert kinds >= {("stale", True), ("int", True), ("int", False), ("int", -53), ("float", True), ("float", False)}
