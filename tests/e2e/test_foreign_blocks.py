"""Blocks that others made, put into the bucket: found, listed, and read exactly, deletions honoured."""
import collections
import json
import pathlib
import shutil
import time
import urllib.parse
import urllib.request

import pytest
from lib import gen, procs, remote, tsdb, wire
from lib.remote import labels


def put_thanos_section(block_dir, external):
    """What a sidecar adds to meta.json."""
    path = pathlib.Path(block_dir) / "meta.json"
    meta = json.loads(path.read_text())
    files = [{"rel_path": str(p.relative_to(block_dir)), "size_bytes": p.stat().st_size} for p in sorted(path.parent.rglob("*"))
             if p.is_file() and p.name not in ("meta.json", "tombstones")]
    meta["thanos"] = {"version": 1, "labels": external, "downsample": {"resolution": 0}, "source": "sidecar",
                      "segment_files": sorted(p.name for p in (path.parent / "chunks").iterdir()), "files": files + [{"rel_path": "meta.json"}], "index_stats": {}}
    path.write_text(json.dumps(meta))


def as_read(dump, external):
    """A block's series as a read shows them, as in Thanos: the block's external labels on each, and no others."""
    return {tsdb.with_external(k, external): v for k, v in dump.items()}


def same(got, want):
    """== with words that fit on a screen."""
    assert set(got) == set(want)
    for k in want:
        more, less = [s for s in got[k] if s not in want[k]], [s for s in want[k] if s not in got[k]]
        assert got[k] == want[k], f"{k}: {len(more)} samples too many {more[:2]}, {len(less)} missing {less[:2]}"


def put_block(server, block_dir):
    """meta.json last, as uploads go."""
    target = server.bucket_dir / pathlib.Path(block_dir).name
    shutil.copytree(block_dir, target, ignore=shutil.ignore_patterns("meta.json"))
    shutil.copy(pathlib.Path(block_dir) / "meta.json", target / "meta.json")


def wait_listed(server, ulids, timeout=30):
    def found():
        got = {b["ulid"]: b for b in server.bucket_ls()}
        return got if set(ulids) <= set(got) else None
    return procs.wait_for(found, timeout, f"the audit finds {len(ulids)} blocks", every=0.3)


def expected_of_bucket(directory):
    """What a read of the raw data must give: blocks that are marked and covered by another one are left out."""
    every = [tsdb.Block(p) for p in tsdb.blocks(directory)]
    raw = [b for b in every if not b.resolution]
    marked = {b.meta["ulid"] for b in raw if (pathlib.Path(b.path) / "deletion-mark.json").exists()}
    live_sources = {s for b in raw if b.meta["ulid"] not in marked for s in b.meta["compaction"]["sources"]}
    out = collections.defaultdict(dict)
    for b in raw:
        if b.meta["ulid"] in marked and set(b.meta["compaction"]["sources"]) <= live_sources:
            continue
        for k, v in b.dump().items():
            series = out[tsdb.with_external(k, b.external_labels)]
            for t, value in v:
                assert series.get(t, value) == value
                series[t] = value
    return {k: sorted(v.items()) for k, v in out.items()}, every, marked


@pytest.mark.parametrize("which", ["downsample", "dedup-one-to-one", "dedup-penalty"])
def test_a_bucket_of_thanos_opens_in_place(varve, golden, which):
    server = varve(start=False)
    shutil.copytree(golden / "blocks" / which, server.bucket_dir)
    server.start()
    want, every, marked = expected_of_bucket(server.bucket_dir)
    listed = wait_listed(server, [b.meta["ulid"] for b in every])
    assert set(listed) == {b.meta["ulid"] for b in every}
    for b in every:
        row = listed[b.meta["ulid"]]
        assert row["resolution"] == b.resolution and row["tenant"] == "default-tenant" and row["labels"] == b.external_labels
        assert (row["min_time"], row["max_time"]) == (b.meta["minTime"], b.meta["maxTime"])
        assert row["samples"] == b.meta["stats"]["numSamples"] and row["series"] == b.meta["stats"]["numSeries"]
        assert row["level"] == b.meta["compaction"]["level"]
    assert any(b.resolution for b in every) == (which == "downsample") and bool(marked) == (which != "downsample")
    assert want
    # Integer and gauge histograms too; SAMPLES has them as messages, STREAMED as chunks.
    for accept in ((remote.SAMPLES,), (remote.STREAMED,)):
        assert server.read(accept=accept) == want
    assert server.read("someone-else") == {}
    assert len(server.metrics()) > 0 and server.stop() == 0


def test_a_marked_block_is_read_while_nothing_covers_it(varve, golden):
    server = varve(start=False)
    source = golden / "blocks" / "dedup-one-to-one"
    for p in tsdb.blocks(source):
        if (pathlib.Path(p) / "deletion-mark.json").exists():
            shutil.copytree(p, server.bucket_dir / pathlib.Path(p).name)
    server.start()
    want, every, marked = expected_of_bucket(server.bucket_dir)
    assert len(marked) == len(every) == 8
    wait_listed(server, marked)
    assert server.read() == want and want


def openmetrics_block(tmp_path, seed=9):
    samples = gen.Samples(seed, 30, 1_700_000_000_000 // 7_200_000 * 7_200_000)
    lines, want = [], {}
    for pairs, got in samples.all(400).items():
        d = dict(pairs)
        keep = [(t, v) for t, v in got if v != wire.STALE_NAN]
        want[pairs] = keep
        inner = ",".join(f'{k}="{gen._escape(v)}"' for k, v in pairs if k != "__name__")
        lines += [(d["__name__"], f"{d['__name__']}{{{inner}}} {gen._number(v)} {t / 1000}") for t, v in keep]
    lines.sort(key=lambda x: x[0])
    page, out = tmp_path / "page.txt", tmp_path / "made"
    page.write_text("\n".join(line for _, line in lines) + "\n# EOF\n", "utf-8")
    r = procs.promtool("tsdb", "create-blocks-from", "openmetrics", page, out)
    assert r.returncode == 0, r.stderr
    return tsdb.blocks(out), want


def test_blocks_of_promtool_are_found_by_the_audit(varve, tmp_path):
    server = varve(bucket_audit_interval="1s", ingest_oldest="0s")
    paths, want = openmetrics_block(tmp_path)
    for p in paths:
        put_thanos_section(p, {"cluster_of": "elsewhere", "tenant_id": "imported"})
        put_block(server, p)
    listed = wait_listed(server, [pathlib.Path(p).name for p in paths])
    assert {b["tenant"] for b in listed.values()} == {"imported"}
    expect = as_read(want, {"cluster_of": "elsewhere", "tenant_id": "imported"})
    for accept in ((remote.SAMPLES,), (remote.STREAMED,)):
        assert server.read("imported", accept=accept) == expect
    assert server.read() == {}


def test_a_block_without_a_tenant_belongs_to_the_default_one(varve, tmp_path):
    server = varve(bucket_audit_interval="1s")
    paths, want = openmetrics_block(tmp_path)
    for p in paths:
        put_thanos_section(p, {"replica": "0"})
        put_block(server, p)
    wait_listed(server, [pathlib.Path(p).name for p in paths])
    assert server.read() == as_read(want, {"replica": "0"})


def test_external_labels_win_over_a_series_own(varve, tmp_path):
    server = varve(bucket_audit_interval="1s")
    paths, want = openmetrics_block(tmp_path)
    for p in paths:
        put_thanos_section(p, {"cluster": "outer"})
        put_block(server, p)
    wait_listed(server, [pathlib.Path(p).name for p in paths])
    assert server.read() == as_read(want, {"cluster": "outer"})
    assert server.read(matchers=[("=", "cluster", "test")]) == {}
    assert len(server.read(matchers=[("=", "cluster", "outer")])) == len(want)


def histogram_series(t0, n):
    out = []
    for i in range(n):
        deltas = [1 + i, 2, -1]
        count = 2 + sum(remote.chunks.absolute(deltas))
        out.append(remote.encode_int_histogram(t0 + i * 15000, 1, 0.001, 2, count, 1.5 * i, [(0, 2), (1, 1)], deltas, [], []))
    return b"".join(out)


@pytest.mark.parametrize("newest", [False, True], ids=["2.42", "3.5"])
def test_blocks_of_a_real_prometheus_with_histograms_and_tombstones(varve, spawn, tmp_path, newest):
    t0 = 1_700_000_000_000 // 7_200_000 * 7_200_000
    source = spawn(procs.Prometheus, newest=newest, flags=["--web.enable-remote-write-receiver", "--enable-feature=native-histograms"]).start()
    samples = gen.Samples(13, 40, t0)
    c = remote.Client(source.url)
    for k in range(200):
        assert c.write(samples.batch(k)).status == 204
    h = remote.pb_len(1, remote.encode_labels(labels("latency_seconds", job="h")) + histogram_series(t0, 200))
    assert c.write_body(wire.snappy(h)).status == 204

    def post(p, path, **params):
        data = urllib.parse.urlencode(params, doseq=True).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{p.url}/api/v1/admin/tsdb/{path}", data=data, method="POST"), timeout=30) as r:
            assert r.status in (200, 204)

    post(source, "snapshot")
    source.stop()
    (snapshot,) = (source.data / "snapshots").iterdir()
    # Deletions reach blocks as tombstones: once more opened, deleted from, stopped.
    second = spawn(procs.Prometheus, newest=newest, name="deleting", data=snapshot).start()
    cut = (t0 + 50 * 15000, t0 + 90 * 15000)
    post(second, "delete_series", **{"match[]": ['{job="job-1"}', "latency_seconds"], "start": cut[0] / 1000, "end": cut[1] / 1000})
    post(second, "delete_series", **{"match[]": '{job="job-2"}', "start": t0 / 1000 - 10, "end": t0 / 1000 + 99999})
    time.sleep(0.5)
    second.stop()
    paths = [p for p in tsdb.blocks(snapshot)]
    whole = {}
    for p in paths:
        b = tsdb.Block(p)
        whole.update(b.dump())
    assert any(tsdb.Block(p).tombstones for p in paths), "no tombstones were made"
    assert not any(dict(k)["job"] == "job-2" for k in whole)
    assert any(not isinstance(v, int) for s in whole.values() for _, v in s)
    assert len(whole[labels("latency_seconds", job="h")]) == 200 - 41

    server = varve(bucket_audit_interval="1s")
    for p in paths:
        put_thanos_section(p, {"replica": "p"})
        put_block(server, p)
    wait_listed(server, [pathlib.Path(p).name for p in paths])
    want = as_read(whole, {"replica": "p"})
    for accept in ((remote.SAMPLES,), (remote.STREAMED,)):
        same(server.read(accept=accept), want)


def test_what_is_not_a_block_is_left_alone(varve, tmp_path):
    server = varve(bucket_audit_interval="1s")
    paths, want = openmetrics_block(tmp_path)
    for p in paths:
        put_thanos_section(p, {"replica": "0"})
        put_block(server, p)
    (server.bucket_dir / "debug").mkdir()
    (server.bucket_dir / "debug" / "note.txt").write_text("hello")
    half = server.bucket_dir / "01BX5ZZKBKACTAV9WEVGEMMVRZ"
    shutil.copytree(paths[0], half, ignore=shutil.ignore_patterns("meta.json"))  # a partial upload
    broken = server.bucket_dir / "01BX5ZZKBKACTAV9WEVGEMMVS0"
    shutil.copytree(paths[0], broken)
    (broken / "meta.json").write_text("{ this is not json")
    wait_listed(server, [pathlib.Path(p).name for p in paths])
    time.sleep(2.5)
    assert server.read() == as_read(want, {"replica": "0"})
    states = {b["ulid"]: b["state"] for b in server.bucket_ls()}
    assert "01BX5ZZKBKACTAV9WEVGEMMVRZ" not in states or states["01BX5ZZKBKACTAV9WEVGEMMVRZ"] != "live"
    assert states.get("01BX5ZZKBKACTAV9WEVGEMMVS0", "quarantined") == "quarantined"
    assert half.exists() and broken.exists() and (server.bucket_dir / "debug" / "note.txt").exists()
