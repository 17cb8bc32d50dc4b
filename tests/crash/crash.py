#!/usr/bin/env python3
"""kill -9 under load, N times; then nothing acknowledged may be lost, wrong, doubled, or somebody else's.

    make crash N=200 SEED=7

A real varve with one-minute windows, small log segments and a real MinIO as its bucket. Writers of several tenants send in-order and late samples,
retries of old requests and conflicting values, and keep a ledger of every answer. Meanwhile the server is killed at random moments: while it
acknowledges, cuts, ships, checkpoints, replays. After every few kills, and at the end, everything is read back through varve; at the end all blocks
are also fetched from the bucket and read by a reader that shares no code with varve.

The seed fixes what is sent and when a kill is due; how far the server has come by then is the machine's. A failure prints seed and round.
"""
import argparse
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from lib import procs, remote, tsdb  # noqa: E402  (the path comes first)
from lib.ledger import ACKED, UNKNOWN, Ledger  # noqa: E402
from lib.wire import bits  # noqa: E402

TENANTS = ("ant", "bee", "cat.1")
SERIES = 40
LATE_MS = 100_000


class Writer(threading.Thread):
    """One connection of one tenant. Its series are its own, so its ledger needs no lock."""

    def __init__(self, url, tenant, number, seed):
        super().__init__(daemon=True)
        self.url, self.tenant, self.number = url, tenant, number
        self.rng = random.Random(f"{seed}/{tenant}/{number}")
        self.ledger = Ledger()
        self.stop = threading.Event()
        self.sent = self.retried = 0
        self.last_t = {}
        self.old = []
        self.error = None

    def labels(self, i):
        return remote.labels(f"crash_{i % 5}", writer=str(self.number), idx=str(i), zone="å" if i % 7 == 0 else "z")

    def make(self):
        now = int(time.time() * 1000)
        kind = self.rng.random()
        if kind < 0.15 and self.old:
            return self.rng.choice(self.old), None  # a retry of something long answered
        series = []
        for i in self.rng.sample(range(SERIES), self.rng.randrange(1, SERIES)):
            samples = []
            t = max(now - self.rng.randrange(3000), self.last_t.get(i, 0) + 1)
            for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
                samples.append((t, bits(self.rng.choice((float(t % 1000), self.rng.random(), 0.0, float("inf"))))))
                t += self.rng.randrange(1, 40)
            self.last_t[i] = samples[-1][0]
            series.append((self.labels(i), samples))
        if kind > 0.8:  # late samples, some into windows that are blocks already
            i = self.rng.randrange(SERIES)
            t = now - self.rng.randrange(1000, LATE_MS)
            key = (self.tenant, tuple(sorted(self.labels(i))), t)
            if key not in self.ledger.tries:
                series.append((self.labels(i), [(t, bits(self.rng.random()))]))
        # A series stands once in a request, with its samples in order: as senders send.
        merged = {}
        for labels, samples in series:
            merged.setdefault(labels, {}).update(samples)
        return [(labels, sorted(samples.items())) for labels, samples in merged.items()], series

    def post(self, client, series):
        try:
            return client.write(series).status
        except (OSError, remote.http.client.HTTPException):
            return None

    def run(self):
        client = remote.Client(self.url, self.tenant, timeout=20)
        try:
            while not self.stop.is_set():
                series, fresh = self.make()
                # Before the first byte leaves: a kill may come between the server's log and our knowing.
                if fresh is not None:
                    self.ledger.record(self.tenant, series, UNKNOWN)
                for attempt in range(200):
                    status = self.post(client, series)
                    if status is not None and 200 <= status < 300:
                        self.ledger.record(self.tenant, series, ACKED)
                        break
                    if status is not None and 400 <= status < 500:
                        raise AssertionError(f"{self.tenant}: a good request was answered {status}")
                    self.retried += 1
                    if self.stop.is_set() or (fresh is None and attempt > 2):
                        break
                    time.sleep(0.02)
                self.sent += 1
                if fresh is not None and self.rng.random() < 0.1:
                    self.old.append(series)
                    self.old = self.old[-20:]
                time.sleep(self.rng.random() * 0.01)
        except AssertionError as e:
            self.error = str(e)
        finally:
            client.close()


def read_back(server):
    found = {}
    for tenant in TENANTS:
        got = server.read(tenant, accept=(remote.STREAMED,))
        found[tenant] = {tsdb.without(labels, ("tenant_id", "cluster")): samples for labels, samples in got.items()}
    return found


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
    total = Ledger()
    for w in writers:
        for key, values in w.ledger.tries.items():
            total.tries[key] = dict(values)
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
        return report

    def start_writers(self):
        self.writers_running = [Writer(self.server.url, t, n + 10 * len(self.writers), self.seed) for n, t in enumerate(TENANTS)]
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

    def flush_quietly(self):
        c = remote.Client(self.server.url, timeout=30)
        try:
            c.request("POST", "/-/flush", b"")
        except (OSError, remote.http.client.HTTPException):
            pass
        finally:
            c.close()

    def go(self):
        minio = procs.MinIO(self.dir / "minio").start()
        config = self.dir / "bucket.yaml"
        config.write_text(minio.objstore_yaml())
        self.server = procs.Varve(self.dir / "varve", flags={
            "objstore.config-file": config, "head.block-range": "1m", "head.cut-delay": "2s", "head.max-age": "2m", "ingest.oldest": "1h", "wal.segment-size": "1MiB",
            "wal.max-size": "8MiB", "label": "cluster=crash", "bucket.audit-interval": "30s", "disk.reserve": "1MiB",
            "head.snapshot-tail": "1KiB" if self.snapshots else "8MiB"}).start()
        self.writers, self.ready = [], []
        begin = time.monotonic()
        self.start_writers()
        for n in range(self.kills):
            self.kill_once(n)
            if (n + 1) % 10 == 0 or n + 1 == self.kills:
                self.stop_writers()
                report = self.check(f"after kill {n + 1}")
                self.say(f"  {n + 1:4d} kills: {report.acked} acknowledged, {report.read} read, 0 lost, 0 wrong, 0 phantoms, 0 duplicates; ready after "
                         f"{sorted(self.ready)[len(self.ready) // 2]:.2f} s (median), {max(self.ready):.2f} s (most)")
                if n + 1 < self.kills:
                    self.start_writers()
        blocks = self.server.flush()
        report = self.check("after the flush")
        in_bucket, samples, n_blocks = check_bucket(minio, self.dir / "bucket")
        strip = {t: {tsdb.without(labels, ("cluster",)): p for labels, p in series.items()} for t, series in in_bucket.items()}
        direct = merge_ledgers(self.writers).compare(strip)
        if not direct.clean:
            raise AssertionError(f"blocks in the bucket: {direct}  (seed {self.seed})")
        if self.server.metric("varve_wal_frames_lost_total"):
            raise AssertionError("the log lost frames")
        self.server.stop()
        minio.stop()
        self.say(f"{self.kills} kills in {time.monotonic() - begin:.0f} s: {report.acked} samples acknowledged in {sum(w.sent for w in self.writers)} requests "
                 f"({sum(w.retried for w in self.writers)} attempts failed and were made again), {len(blocks)} blocks; 0 lost, 0 wrong, 0 phantoms, 0 duplicates, read through varve and from "
                 f"{n_blocks} blocks in the bucket by an independent reader. {self.from_snapshot} starts began with a snapshot. Seed {self.seed}.")
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
