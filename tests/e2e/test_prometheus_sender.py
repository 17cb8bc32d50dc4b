"""A real Prometheus scrapes and remote-writes to varve: what it kept and what varve shipped are the same, sample for sample and bit for bit."""
import os
import shutil
import time
import urllib.request

import pytest
from lib import gen, procs, promdump, tsdb, wire

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
