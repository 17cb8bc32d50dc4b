"""Random native histograms go to varve and to a real Prometheus by the same requests: the blocks of both hold the same chunks.

Counters that are reset and gain buckets, gauges, custom bounds, changes of schema and threshold, staleness, gaps, floats in between. What is compared: every sample's value
(after its empty buckets), every chunk's borders (so every reset hint inside a chunk), and its bytes but for the headers of which the file block_hist_append.c says that they
differ. VARVE_FULL: 10,000 series.
"""
import os
from collections import Counter

import pytest
from lib import chunks, procs, remote, remote2, tsdb
from lib.histograms import GAUGE, Maker
from lib.wire import STALE_NAN, bits

RANGE = 7_200_000
SERIES = 10_000 if "VARVE_FULL" in os.environ else 600
SAMPLES = 60 if "VARVE_FULL" in os.environ else 120


def chunks_of(block, drop=()):
    """{labels: [(mint, maxt, encoding, payload)]}"""
    out = {}
    for labels, refs in block.index.series.values():
        out[tsdb.without(labels, drop)] = [(a, b, *block.chunk(ref)) for a, b, ref in refs]
    return out


def kind_of(chunk):
    """How the chunk before another one ends."""
    if chunk is None or chunk[2] == chunks.XOR:
        return "nothing"
    samples = chunks.decode(chunk[2], chunk[3])
    return "gauge" if chunk[3][2] >> 6 == GAUGE else "stale" if samples[-1][1].sum == STALE_NAN else "long" if len(samples) >= 10 else "counter"


@pytest.mark.timeout(1800)
def test_blocks_are_those_of_a_prometheus(varve, spawn):
    if not procs.prometheus_binary(newest=True):
        pytest.skip("no Prometheus of Debian sid")
    server = varve()
    prometheus = spawn(procs.Prometheus, newest=True, scrape_interval="1h",
                       flags=["--web.enable-remote-write-receiver", "--enable-feature=native-histograms"]).start()
    start = procs.time.time_ns() // 1_000_000 // RANGE * RANGE - RANGE
    makers = [Maker(k) for k in range(SERIES)]
    at = [start + m.r.randint(0, 1000) for m in makers]
    clients = [server.client(), remote.Client(prometheus.url, timeout=120)]
    sent = []
    for k, m in enumerate(makers):
        for i in range(SAMPLES):
            at[k] += m.step * (20 if m.r.random() < 0.01 else 1) + m.r.choice((0, 0, 0, 7))
            if at[k] < start + RANGE:
                sent.append((at[k], k, i, m.next()))
    # In the order of time: a Prometheus refuses what is an hour behind its newest sample.
    sent.sort(key=lambda s: s[:2])
    # A series once a request: a Prometheus takes a request's floats first, then its integer histograms, then the others, and loses what is out of order then.
    first = 0
    while first < len(sent):
        batch = {}
        while first < len(sent) and sent[first][1] not in batch:
            t, k, i, h = sent[first]
            pairs = remote.labels(f"h{k % 7}", series=f"{k:05d}")
            batch[k] = remote2.series(pairs, [(t, bits(float(i)))]) if h is None else remote2.series(pairs, histograms=[remote2.histogram(t, **h)])
            first += 1
        for c in clients:
            a = remote2.write(c, batch.values())
            assert a.status == 204, a.text[:500]
    n_floats = sum(h is None for *_, h in sent)
    n_hists = len(sent) - n_floats
    # Both ways to read, from memory; without their hints the samples are the same.
    held = server.read()
    assert server.read(accept=(remote.STREAMED,)) == held and sum(map(len, held.values())) == len(sent)
    ours = server.flush()
    assert len(ours) == 1, ours
    assert server.read(accept=(remote.STREAMED,)) == server.read() == held
    a = clients[1].request("POST", "/api/v1/admin/tsdb/snapshot")
    assert a.status == 200, a.text
    prometheus.stop()
    (snapshot,) = (prometheus.data / "snapshots").iterdir()
    (theirs,) = tsdb.blocks(snapshot)
    theirs, (ours,) = tsdb.Block(theirs), tsdb.blocks(server.bucket_dir)
    ours = tsdb.Block(ours)
    assert ours.dump() == theirs.dump()
    want, got = chunks_of(theirs), chunks_of(ours, ("tenant_id",))
    other_borders = sum(1 for k in want if [c[:3] for c in want[k]] != [c[:3] for c in got[k]])
    other_bytes = sum(1 for k in want for a, b in zip(want[k], got[k]) if a != b and (a[3][:2], a[3][3:]) != (b[3][:2], b[3][3:]))
    # A series' last chunk was open, and the snapshot wrote it again, which loses its header.
    other_headers = Counter()
    for k in want:
        for before, a, b in zip([None, *want[k]], want[k][:-1], got[k][:-1]):
            if a[2] > 1 and a[3][2] != b[3][2]:
                other_headers[a[3][2] >> 6, b[3][2] >> 6, kind_of(before)] += 1
    n = sum(map(len, want.values()))
    print(f"{n_hists} histograms and {n_floats} floats in {n} chunks; other borders: {other_borders} series; other bytes: {other_bytes}, other headers: {dict(other_headers)}")
    assert n_hists > SERIES * SAMPLES / 2 and n_floats > 0
    assert (other_borders, other_bytes) == (0, 0)
    # Theirs, ours, and what is before. Behind a gauge theirs does not know that the sender says "reset", or says of integers "no reset"; so it does of floats behind a stale
    # one, and where a chunk was as long as it gets and the layout changed. Where a schema changed and the count fell, ours says "reset", as later ones do.
    assert set(other_headers) <= {(1, 0, "gauge"), (1, 2, "gauge"), (0, 2, "gauge"), (1, 0, "stale"), (1, 0, "long"), (0, 2, "long"), (0, 2, "counter")}
    # Debian's promtool reads what is in it.
    answer = procs.promtool("tsdb", "analyze", "--extended", os.path.dirname(ours.path), os.path.basename(ours.path), newest=True)
    assert answer.returncode == 0, answer.stderr


def test_debians_promtool_reads_histograms(varve):
    """2.42 knows schemas -4 to 8; it decodes every chunk."""
    server = varve()
    c, t = server.client(), procs.time.time_ns() // 1_000_000 - 100_000
    for i in range(50):
        batch = []
        for schema in range(-4, 9):
            for is_float in (False, True):
                h = remote2.histogram(t + 1000 * i, schema=schema, count=6 + 4 * i, total=i * 1.5, zero=1, pos=[1 + i, 2], neg=[2 + 3 * i] if i > 9 else [2, 3 * i],
                                      is_float=is_float, hint=GAUGE if schema == 3 else 0)
                batch.append(remote2.series(remote.labels("h", schema=str(schema), float=str(is_float)), histograms=[h]))
        a = remote2.write(c, batch)
        assert a.status == 204, a.text
    (block,) = server.flush()
    answer = procs.promtool("tsdb", "analyze", "--extended", server.bucket_dir, os.path.basename(tsdb.blocks(server.bucket_dir)[0]))
    assert answer.returncode == 0 and "\nSeries: 26\n" in answer.stdout, f"{block}: {answer.stdout[:300]} {answer.stderr[:300]}"
