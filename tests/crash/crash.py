#!/usr/bin/env python3
"""kill -9 under load, N times; then nothing acknowledged may be lost, wrong, doubled, or somebody else's.

    make crash N=200 SEED=7

A real varve with one-minute windows, small log segments and a real MinIO as its bucket. Writers of several tenants (writers.py) speak remote write 1.0 and 2.0: floats,
histograms of every kind, both in one series, staleness, exemplars, metadata, start timestamps (zeros for them are turned on and off), in order and late, retries of old
requests, parts that have to be refused; and keep a ledger of every answer and its counts. Meanwhile the server is killed at random moments: while it
acknowledges, cuts, ships, checkpoints, replays. After every few kills, and at the end, everything is read back through varve, in both ways of remote read, and asked for as
exemplars and metadata; at the end all blocks are also fetched from the bucket and read by a reader that shares no code with varve.

The seed fixes what is sent and when a kill is due; how far the server has come by then is the machine's. A failure prints seed and round.
"""
import argparse
import gc
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import writers as kinds  # noqa: E402  (the path comes first)
from lib import procs, remote, tsdb  # noqa: E402
from lib.ledger import Ledger  # noqa: E402
from lib.wire import bits  # noqa: E402

TENANTS = ("ant", "bee", "cat.1")


def read_back(server):
    found = {}
    for tenant in TENANTS:
        got = server.read(tenant, accept=(remote.STREAMED,))
        if server.read(tenant) != got:
            raise AssertionError(f"{tenant}: the two ways of remote read differ")
        found[tenant] = {tsdb.without(labels, ("tenant_id", "cluster")): samples for labels, samples in got.items()}
    return found


def read_annotations(server, tenant):
    """Exemplars and metadata as writers.Annotations has them."""
    def ask(path, **params):
        answer = client.get(f"/api/v1/{path}?" + urllib.parse.urlencode(params))
        if answer.status != 200:
            raise AssertionError(f"{path} of {tenant}: {answer.status} {answer.text[:300]}")
        return answer.json()["data"]

    client = remote.Client(server.url, tenant, timeout=60)
    try:
        exemplars = []
        for s in ask("query_exemplars", query='{__name__=~".+"}', start=0, end=1e11):
            pairs = tsdb.without(remote.labels(**s["seriesLabels"]), ("tenant_id", "cluster"))
            exemplars += [(pairs, remote.labels(**e["labels"]), bits(float(e["value"])), round(e["timestamp"] * 1000)) for e in s["exemplars"]]
        told = ask("metadata")
        return exemplars, [(family, remote.METRIC_TYPES.index(m["type"]), m["help"], m["unit"]) for family, all_of in told.items() for m in all_of]
    finally:
        client.close()


def check_bucket(minio, directory):
    """The blocks alone: all acknowledged samples are in them, none that was never sent, and no block is half there."""
    keys = minio.s3.list(minio.bucket)
    minio.s3.download(minio.bucket, directory)
    dirs = {k.split("/")[0] for k in keys if "/" in k and len(k.split("/")[0]) == 26}
    half = sorted(d for d in dirs if f"{d}/meta.json" not in keys)
    if half:
        raise AssertionError(f"half uploaded blocks are left in the bucket: {half}")
    found = {t: {} for t in TENANTS}
    samples = 0
    for d in sorted(dirs):
        for labels, points in block_series(directory / d):
            tenant = dict(labels)["tenant_id"]
            into = found[tenant].setdefault(tsdb.without(labels, ("tenant_id",)), {})
            for t, v in points:
                samples += 1
                # The same sample may stand in two blocks when a retry came after its window was cut; another value may not.
                if into.setdefault(t, v) != v:
                    raise AssertionError(f"{tenant} {labels} at {t}: two values in the bucket")
    return {t: {labels: sorted(points.items()) for labels, points in series.items()} for t, series in found.items()}, samples, len(dirs)


def block_series(block_dir):
    block = tsdb.Block(block_dir)
    for labels, samples in block.dump().items():
        yield tsdb.with_external(labels, block.external_labels), samples


def merge_ledgers(writers):
    """Their series are their own, so nothing is in two of them."""
    total = Ledger()
    for w in writers:
        total.tries.update(w.ledger.tries)
    return total


class Run:
    def __init__(self, directory, kills, seed, say=print, snapshots=None):
        """snapshots: written at every opportunity, so that nearly every start begins with one; None: as the seed says."""
        self.dir, self.kills, self.seed, self.say = pathlib.Path(directory), kills, seed, say
        self.rng = random.Random(seed)
        self.snapshots = seed % 2 == 0 if snapshots is None else snapshots
        self.from_snapshot = 0

    def check(self, when):
        for w in self.writers:
            if w.error:
                raise AssertionError(w.error)
        report = merge_ledgers(self.writers).compare(read_back(self.server))
        if not report.clean:
            raise AssertionError(f"{when}: {report}  (seed {self.seed})")
        report.exemplars = report.metadata = 0
        for tenant, ledger in self.annotations.items():
            exemplars, metadata = read_annotations(self.server, tenant)
            faults, n, told = ledger.compare(exemplars, metadata, kinds.EXEMPLARS_MAX // len(TENANTS))
            if faults:
                raise AssertionError(f"{when}, {tenant}: {len(faults)} faults, {faults[0]}  (seed {self.seed})")
            report.exemplars += n
            report.metadata += told
        if (held := self.server.metric("varve_head_exemplars")) > kinds.EXEMPLARS_MAX:
            raise AssertionError(f"{when}: {held} exemplars are held")
        return report

    def start_writers(self):
        """New ones, of every kind for every tenant."""
        number = len(self.writers)
        self.writers_running = []
        for t in TENANTS:
            for kind in (kinds.FloatWriter, kinds.Writer2, kinds.HistogramWriter, kinds.AnnotatedWriter):
                w = kind(self.server.url, t, number, self.seed, self.annotations[t] if kind is kinds.AnnotatedWriter else None)
                w.created_zero = self.created_zero
                self.writers_running.append(w)
                number += 1
        self.writers += self.writers_running
        for w in self.writers_running:
            w.start()

    def stop_writers(self):
        for w in self.writers_running:
            w.stop.set()
        for w in self.writers_running:
            w.join()

    def kill_once(self, n):
        time.sleep(self.rng.choice((0.02, 0.1, 0.3, 0.6, 1.2)) * (0.5 + self.rng.random()))
        flushing = None
        if self.rng.random() < 0.4:  # cuts, ships and checkpoints are under way when the kill comes
            flushing = threading.Thread(target=self.flush_quietly, daemon=True)
            flushing.start()
            time.sleep(self.rng.random() * 0.15)
        self.server.kill9()
        if flushing:
            flushing.join()
        if self.rng.random() < 0.25:  # killed again while it replays
            self.server.start(wait=False)
            time.sleep(self.rng.random() * 0.1)
            self.server.kill9()
        begin = time.monotonic()
        self.server.start()
        self.ready.append(time.monotonic() - begin)
        self.from_snapshot += self.server.metric("varve_snapshot_loaded") > 0

    def end(self):
        """By SIGTERM, among all those others; what a sanitizer says of it is in the exit code."""
        if (code := self.server.stop()) != 0:
            raise AssertionError(f"SIGTERM ended it with {code}:\n{self.server.log_tail(30)}")

    def turn_zeros(self, on):
        self.created_zero = on
        self.server.flags["ingest.created-timestamp-zero"] = "true" if on else "false"

    def flush_quietly(self):
        c = remote.Client(self.server.url, timeout=30)
        try:
            c.request("POST", "/-/flush", b"")
        except (OSError, remote.http.client.HTTPException):
            pass
        finally:
            c.close()

    def go(self):
        gc.disable()  # millions of samples are remembered, none of them in a circle: looking for circles would take most of the time
        try:
            self.kill_and_check()
        finally:
            gc.enable()

    def kill_and_check(self):
        minio = procs.MinIO(self.dir / "minio").start()
        config = self.dir / "bucket.yaml"
        config.write_text(minio.objstore_yaml())
        self.server = procs.Varve(self.dir / "varve", flags={
            "objstore.config-file": config, "head.block-range": "1m", "head.cut-delay": "2s", "head.max-age": "2m", "ingest.oldest": "1h", "wal.segment-size": "1MiB",
            "wal.max-size": "8MiB", "label": "cluster=crash", "bucket.audit-interval": "30s", "disk.reserve": "1MiB",
            "head.snapshot-tail": "1KiB" if self.snapshots else "8MiB"})
        self.server.flags["exemplars.max"] = kinds.EXEMPLARS_MAX
        self.turn_zeros(self.seed // 2 % 2 == 0)
        self.server.start()
        self.writers, self.ready = [], []
        self.annotations = {t: kinds.Annotations() for t in TENANTS}
        begin = time.monotonic()
        self.start_writers()
        for n in range(self.kills):
            self.kill_once(n)
            if (n + 1) % max(10, self.kills // 20) == 0 or n + 1 == self.kills:
                self.stop_writers()
                report = self.check(f"after kill {n + 1}")
                self.say(f"  {n + 1:4d} kills: {report.acked} acknowledged, {report.read} read, 0 lost, 0 wrong, 0 phantoms, 0 duplicates; {report.exemplars} exemplars that are due, "
                         f"{report.metadata} metadata; ready after "
                         f"{sorted(self.ready)[len(self.ready) // 2]:.2f} s (median), {max(self.ready):.2f} s (most)")
                if n + 1 < self.kills:
                    self.end()
                    self.turn_zeros(not self.created_zero)
                    self.server.start()
                    self.start_writers()
        blocks = self.server.flush()
        report = self.check("after the flush")
        in_bucket, samples, n_blocks = check_bucket(minio, self.dir / "bucket")
        strip = {t: {tsdb.without(labels, ("cluster",)): p for labels, p in series.items()} for t, series in in_bucket.items()}
        direct = merge_ledgers(self.writers).compare(strip)
        if not direct.clean:
            raise AssertionError(f"blocks in the bucket: {direct}  (seed {self.seed})")
        histograms = sum(1 for series in in_bucket.values() for points in series.values() for _, v in points if isinstance(v, tuple))
        if self.server.metric("varve_wal_frames_lost_total"):
            raise AssertionError("the log lost frames")
        self.end()
        minio.stop()
        self.say(f"{self.kills} kills in {time.monotonic() - begin:.0f} s: {report.acked} samples acknowledged in {sum(w.sent for w in self.writers)} requests "
                 f"({sum(w.retried for w in self.writers)} attempts failed and were made again), {len(blocks)} blocks; 0 lost, 0 wrong, 0 phantoms, 0 duplicates, read through varve and from "
                  f"{n_blocks} blocks in the bucket by an independent reader. Among them {histograms} histograms and {sum(w.zeros for w in self.writers)} zeros where series began; "
                  f"{sum(w.refused for w in self.writers)} series had to be refused, and all counts were exact. {self.from_snapshot} starts began with a snapshot. Seed {self.seed}.")
        if self.snapshots and self.from_snapshot < self.kills / 4:
            raise AssertionError(f"{self.from_snapshot} of {self.kills} starts had a snapshot")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--snapshots", choices=("yes", "no"), help="frequent snapshots of the head; else as the seed says")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="varve-crash-"))
    procs.raise_open_files()
    ok = False
    try:
        snapshots = None if args.snapshots is None else args.snapshots == "yes"
        Run(directory, args.kills, seed, say=lambda text: print(text, flush=True), snapshots=snapshots).go()
        ok = True
    except AssertionError as e:
        print(f"FAILED: {e}\nthe directory is kept: {directory}", flush=True)
    finally:
        procs.stop_all()
        if ok and not args.keep:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
