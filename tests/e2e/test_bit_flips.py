"""One flipped bit, anywhere in a data directory, and the real binary started on it: detected (a metric, a line of the log, a quarantine) or harmless.
Never a wrong sample; of the log at most the damaged frame's samples are missing, of a block its own, of the catalog nothing; all else is read as before.
Blocks in the bucket are tried with a catalog that is gone, too, all but meta.json's key "thanos": without that section a block is Prometheus' and nobody's.
VARVE_FULL=1 flips every byte in turn, else a seeded sample."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections import namedtuple

import pytest
from lib import procs, remote, tsdb
from lib.faults import FULL, Ledger, post
from lib.ledger import seeded
from lib.remote import labels

pytestmark = pytest.mark.timeout(6 * 3600 if FULL else 300)
TENANTS = ("ant", "bee")
SEGMENT = 16 << 10
FLAGS = {"wal.segment-size": SEGMENT, "head.block-range": "1m", "head.cut-delay": "1h", "head.max-age": "10h", "ingest.oldest": "0s", "disk.reserve": 0,
         "bucket.audit-interval": "0s", "http.threads": 1, "shutdown.grace": "1s", "label": "zone=z"}

Made = namedtuple("Made", "data truth frames local shipped")  # truth: {(tenant, labels, t): value}; local, shipped: {ulid: set of those keys}


def samples_of(found):
    return {(tenant, k, t): v for tenant, series in found.items() for k, points in series.items() for t, v in points}


def read(server):
    return samples_of({t: server.read(t) for t in TENANTS})


def block_samples(directory):
    b = tsdb.Block(directory)
    return samples_of({b.external_labels["tenant_id"]: {tsdb.with_external(k, b.external_labels): v for k, v in b.dump().items()}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log with definitions and samples of two tenants, one block in the bucket, one that is only here, a catalog that knows them; ended in order."""
    rng = seeded("bit flips: data")
    server = procs.Varve(tmp_path_factory.mktemp("made"), flags={**FLAGS, "flush.timeout": "2s"}).start()
    start = int(time.time() * 1000) // 60000 * 60000 - 30 * 60000
    ledger = Ledger()

    def send(tenant, window, series, n, late=0):
        body = [(labels("flip", idx=str(i), note="é" * (i % 3 + 1)),
                 [(start + window * 60000 + late + i * 7 + k * 1500, rng.getrandbits(64) & ~(0x7FF << 52) | 0x3FE << 52) for k in range(n)])
                for i in range(series)]
        assert post(server.client(tenant), body) == 204
        ledger.record(tenant, body, 2)

    send("ant", 0, 6, 20)
    send("bee", 0, 4, 10)
    shipped = {b["ulid"] for b in server.flush()}
    # The bucket refuses: what is cut now stays here.
    tmp = server.bucket_dir / ".varve-tmp"
    shutil.rmtree(tmp)
    tmp.write_bytes(b"")
    send("ant", 1, 6, 20)
    send("bee", 1, 5, 12)
    c = remote.Client(server.url, timeout=60)
    try:
        c.request("POST", "/-/flush", b"")
    except OSError:
        pass
    finally:
        c.close()
    for k in range(6):
        send(TENANTS[k % 2], 2 + k // 4, 5 + k, 3, late=k * 211)
    truth = read(server)
    assert len(truth) == ledger.samples()
    assert server.stop() == 0
    tmp.unlink()
    tmp.mkdir()
    for u in shipped:  # the bucket alone has them
        shutil.rmtree(server.data / "blocks" / u)
    local = {d.name: set(block_samples(d)) for d in (server.data / "blocks").iterdir() if len(d.name) == 26 and d.name not in shipped}
    in_bucket = {u: set(block_samples(server.bucket_dir / u)) for u in shipped}
    assert len(local) == 2 and len(in_bucket) == 2 and (server.data / "catalog.sqlite").stat().st_size > 0
    # With SQLite's log moved into the file: bytes that do not count any more are no damage.
    for side in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        assert not (server.data / side).exists() or (server.data / side).stat().st_size == 0
    r = server.run("wal", "inspect", server.data, "--frames", "--output=json", check=0)
    return Made(server.data, truth, frames_of(r.stdout), local, in_bucket)


def frames_of(text):
    """{file name: [(offset, end, samples)]}"""
    doc = json.loads(text)
    names = {f["number"]: pathlib.Path(f["file"]).name for f in doc["files"] if f["kind"] == "segment"}
    out = {name: [] for name in names.values()}
    for f in doc["frame_list"]:
        out[names[f["segment"]]].append((f["offset"], f["offset"] + 64 + (f["stored"] + 7) // 8 * 8, f["samples"]))
    assert sum(len(v) for v in out.values()) == doc["frames"] > 8
    return out


class Flip:
    """One state: a copy with a flipped byte, started, read, and its verdict."""

    def __init__(self, made, path, offset, mask, forget_catalog=False):
        self.made, self.path, self.offset, self.mask, self.forget = made, path, offset, mask, forget_catalog
        self.what = f"{path} byte {offset} ^ {mask:#04x}{', catalog gone' if forget_catalog else ''}"

    def run(self):
        base = pathlib.Path(tempfile.mkdtemp(prefix="varve-flip-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        server = procs.Varve(base, flags=FLAGS)
        try:
            shutil.copytree(self.made.data, server.data, symlinks=True)
            with open(server.data / self.path, "r+b") as f:
                f.seek(self.offset)
                old = f.read(1)[0]
                f.seek(self.offset)
                f.write(bytes([old ^ self.mask]))
            if self.forget:
                (server.data / "catalog.sqlite").unlink()
            return self.judge(server)
        except (AssertionError, OSError, remote.http.client.HTTPException, procs.subprocess.SubprocessError) as e:
            return f"{self.what}: {type(e).__name__} {e}\n{server.log_tail(12)}"
        finally:
            if server.proc is not None:
                server.kill9() if server.running() else server.wait()
            shutil.rmtree(base, ignore_errors=True)

    def may_be_missing(self):
        """The samples of which any may be missing, and of the log how many."""
        parts = pathlib.PurePath(self.path).parts
        if parts[0] == "blocks":
            return self.made.local.get(parts[1], set()), None
        if parts[0] == "bucket":
            return self.made.shipped.get(parts[1], set()), None
        if parts[0] == "wal":
            for begin, end, n in self.made.frames.get(parts[1], ()):
                if begin <= self.offset < end:
                    return set(self.made.truth), n
            return set(), 0
        return set(), 0

    def judge(self, server):
        server.start(wait=False)
        try:
            server.wait_url(server.url + "/-/ready", 30)
        except AssertionError:
            if not server.running() and self.path == "format":
                code = server.wait()
                assert code in (1, 2) and "varve: " in server.log(), f"exit {code}"
                return None
            raise
        allowed, most = self.may_be_missing()
        self.compare(server, read(server), allowed, most, "read")
        # Cut, shipped, and read again.
        c = remote.Client(server.url, timeout=30)
        c.request("POST", "/-/flush", b"")
        c.close()
        self.compare(server, read(server), allowed, most, "read after a flush")
        assert server.running()
        return None

    def compare(self, server, found, allowed, most, when):
        truth = self.made.truth
        wrong = [(k, v) for k, v in found.items() if truth.get(k) != v]
        assert not wrong, f"{when}: {len(wrong)} wrong or never sent, the first {wrong[0]}, truth {truth.get(wrong[0][0])}"
        missing = set(truth) - set(found)
        if not missing:
            return
        assert missing <= allowed, f"{when}: {len(missing - allowed)} samples are missing that the damage does not touch, the first {min(missing - allowed)}"
        m = server.metrics()
        if most is not None:
            assert len(missing) <= most, f"{when}: {len(missing)} missing, the frame has {most}"
            assert m["varve_wal_samples_lost_total"] == len(missing) and m["varve_wal_frames_lost_total"] >= 1, f"{when}: lost and not counted"
        else:
            told = ("varve_query_blocks_quarantined_total", "varve_ship_quarantined_total", "varve_local_blocks_damaged")
            assert sum(m.get(name, 0) for name in told) > 0 or "level=error" in server.log(), f"{when}: {len(missing)} missing without a word"


def places(made, rng, most, *files):
    """(path, offset, mask) over these files: all in full; else a sample that takes every file at least once."""
    files = [f.relative_to(made.data) for f in files]
    data = {f: (made.data / f).read_bytes() for f in files}
    sizes = {}
    for f, d in data.items():
        sizes[f] = len(d.rstrip(b"\0")) + 64 if f.parts[0] == "wal" else len(d)  # a segment's rest was never written
        sizes[f] = min(sizes[f], len(d))
    everything = [(f, i) for f in files for i in range(sizes[f])]
    if not FULL:
        everything = [(f, rng.randrange(sizes[f])) for f in files] + rng.sample(everything, min(len(everything), max(0, most - len(files))))
    return [(str(f), i, 1 << rng.randrange(8) if rng.random() < 0.8 else rng.randrange(1, 256)) for f, i in everything]


def run_all(flips, rng):
    assert flips
    bad = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for one in pool.map(Flip.run, flips):
            if one:
                bad.append(one)
                if len(bad) >= 20:
                    break
        pool.shutdown(cancel_futures=True)
    print(f"{len(flips)} flips, {len(bad)} not harmless and not detected")
    assert not bad, f"{len(bad)} of {len(flips)} flips:\n" + "\n".join(bad[:5])


@pytest.fixture
def rng():
    return seeded("bit flips")


def test_a_flipped_byte_of_the_log_costs_one_frame(made, rng):
    files = sorted((made.data / "wal").iterdir())
    run_all([Flip(made, *p) for p in places(made, rng, 60, *files)], rng)


def test_a_flipped_byte_of_a_local_block_costs_that_block_at_most(made, rng):
    files = [f for u in made.local for f in sorted((made.data / "blocks" / u).rglob("*")) if f.is_file()]
    run_all([Flip(made, *p) for p in places(made, rng, 50, *files)], rng)


def test_a_flipped_byte_of_a_block_in_the_bucket_costs_that_block_at_most(made, rng):
    files = [f for u in made.shipped for f in sorted((made.data / "bucket" / u).rglob("*")) if f.is_file()]

    def nobodys(path, offset):
        at = (made.data / path).read_bytes().find(b'"thanos"')
        return path.endswith("meta.json") and at <= offset < at + 8

    run_all([Flip(made, *p, forget_catalog=i % 2 == 0 and not nobodys(p[0], p[1])) for i, p in enumerate(places(made, rng, 40, *files))], rng)


def test_a_flipped_byte_of_the_catalog_costs_nothing(made, rng):
    run_all([Flip(made, *p) for p in places(made, rng, 40, made.data / "catalog.sqlite")], rng)


def test_a_flipped_byte_of_the_format_file_is_said_in_words(made, rng):
    run_all([Flip(made, *p) for p in places(made, rng, 10, made.data / "format")], rng)
