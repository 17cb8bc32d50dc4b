#!/usr/bin/env python3
"""Power cuts for the real binary, SQLite's files included: nothing acknowledged may be lost, wrong or doubled, and no block half visible.

    make power STATES=2400 SEED=7

A real varve runs once with tests/crash/recorder.c preloaded: writes by both versions (floats, histograms, exemplars, metadata; some twice at once), rotations, cuts, shipments into a
directory, a kill -9 and a start, an end in order. Every change of its data directory is on record, with the length that the record had when each answer came. Then, for a prefix of the
record and a way of losing what was not synced by then, the directory that a power cut would leave is built, a real varve started on it and
everything read back; some go on to cut and ship, and the bucket is looked at with a reader of the tests' own.

What survives, as in tests/support/sim.h: a file's bytes and size by fsync or fdatasync of that file; a directory's entries by fsync of that directory; a
rename whole or not at all. The rest is kept, dropped, or torn by the seed.
"""
import argparse
import concurrent.futures
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from crash import read_annotations  # noqa: E402  (the path comes first)
from lib import faults, procs, remote, remote2  # noqa: E402
from lib.histograms import Maker  # noqa: E402
from lib.ledger import ACKED, UNKNOWN, Ledger  # noqa: E402
from lib.remote import labels  # noqa: E402
from lib.wire import bits  # noqa: E402
from writers import Annotations, Request  # noqa: E402

TENANTS = ("ant", "bee")
FLAGS = {"wal.segment-size": 16 << 10, "wal.max-size": "1MiB", "head.block-range": "1m", "head.cut-delay": "10h", "head.max-age": "10h", "ingest.oldest": "0s",
         "disk.reserve": 0, "bucket.audit-interval": "0s", "http.threads": 1, "shutdown.grace": "1s", "head.snapshot-tail": "1KiB"}
LOSSES = ("keep-all", "drop-all", "tear-sectors", "tear-pages", "drop-entries", "entries-first", "grow-zeros")
HEAD = struct.Struct("<IIQQQIIII")
MAGIC = 0x31524556
SECTOR, PAGE = 512, 4096


class Op:
    __slots__ = ("kind", "ino", "off", "len", "a", "b", "data", "end")

    def __str__(self):
        return f"{self.kind} {self.a}{' -> ' + self.b if self.b else ''}{f' {self.off}+{len(self.data)}' if self.kind == 'W' else ''}"


def read_record(path, root):
    """The operations, paths relative to root; end: the record's length behind each."""
    data, at, ops = pathlib.Path(path).read_bytes(), 0, []
    while at < len(data):
        magic, kind, ino, off, length, a, b, n, _ = HEAD.unpack_from(data, at)
        assert magic == MAGIC, f"the record is not one at {at}"
        at += HEAD.size
        op = Op()
        op.kind, op.ino, op.off, op.len = chr(kind), ino, off, length
        op.a = relative(data[at:at + a].decode(), root)
        op.b = relative(data[at + a:at + a + b].decode(), root)
        op.data = data[at + a + b:at + a + b + n]
        at += a + b + n
        op.end = at
        ops.append(op)
    return ops


def relative(path, root):
    return path[len(root):].strip("/") if path.startswith(root) else path


# ---- the disk: what programs see, and what a power cut leaves ----

class File:
    def __init__(self):
        self.seen, self.durable = bytearray(), b""
        self.dirty = set()  # sectors of `seen` that no sync covers

    def write(self, off, data):
        if off > len(self.seen):
            self.seen.extend(bytes(off - len(self.seen)))
        self.seen[off:off + len(data)] = data
        self.dirty.update(range(off // SECTOR, (off + len(data) + SECTOR - 1) // SECTOR))

    def resize(self, n):
        if n < len(self.seen):
            del self.seen[n:]
            # What was cut off and grows again is zero, on the disk not yet.
            self.dirty.add(n // SECTOR)
        else:
            self.seen.extend(bytes(n - len(self.seen)))

    def sync(self):
        self.durable = bytes(self.seen)
        self.dirty.clear()

    def crashed(self, loss, rng):
        seen, old = self.seen, self.durable
        if not self.dirty and len(seen) == len(old):
            return old
        if loss in ("keep-all", "drop-entries"):
            return bytes(seen)
        if loss in ("drop-all", "entries-first"):
            return old
        if loss == "grow-zeros":
            return (old + bytes(max(0, len(seen) - len(old))))[:max(len(old), len(seen))] if len(seen) >= len(old) else old
        unit = (SECTOR if loss == "tear-sectors" else PAGE) // SECTOR
        out = bytearray(old)
        if rng.random() < 0.5:  # the size is its own piece of news
            del out[len(seen):]
            out.extend(bytes(len(seen) - len(out)))
        for first in sorted({s // unit for s in self.dirty}):
            if rng.random() < 0.5:
                a, b = first * unit * SECTOR, (first + 1) * unit * SECTOR
                part = seen[a:b]
                out[a:a + len(part)] = part[:max(0, len(out) - a)]
        return bytes(out)


class Dir:
    def __init__(self):
        self.now, self.synced = {}, {}


class Disk:
    def __init__(self):
        self.root = Dir()
        self.by_ino = {}
        self.pending = []  # (owner, [(directory, name, what or None), ...]), in order

    def at(self, path):
        d = self.root
        for part in pathlib.PurePosixPath(path).parts:
            d = d.now[part]
        return d

    def place(self, path):
        p = pathlib.PurePosixPath(path)
        return self.at(p.parent), p.name

    def change(self, owner, slots):
        for d, name, what in slots:
            if what is None:
                d.now.pop(name, None)
            else:
                d.now[name] = what
        self.pending.append((owner, slots))

    def sync_dir(self, d):
        """Its changes, and what they rest on: earlier ones of the same names."""
        keep = []
        wanted = [owner is d for owner, _ in self.pending]
        names = set()
        for i in range(len(self.pending) - 1, -1, -1):
            touched = {(id(x), n) for x, n, _ in self.pending[i][1]}
            if wanted[i] or touched & names:
                wanted[i] = True
                names |= touched
        for one, want in zip(self.pending, wanted):
            if want:
                apply(one, lambda x: x.synced)
            else:
                keep.append(one)
        self.pending = keep

    def do(self, op):
        k = op.kind
        if k == "C":
            if not op.a:
                return
            f = self.by_ino[op.ino] = File()
            d, name = self.place(op.a)
            self.change(d, [(d, name, f)])
        elif k == "W":
            self.by_ino[op.ino].write(op.off, op.data)
        elif k == "T":
            self.by_ino[op.ino].resize(op.len)
        elif k == "A":
            f = self.by_ino[op.ino]
            f.resize(max(len(f.seen), op.off + op.len))
        elif k == "S":
            self.by_ino[op.ino].sync()
        elif k == "D":
            self.sync_dir(self.at(op.a))
        elif k == "R":
            (d1, n1), (d2, n2) = self.place(op.a), self.place(op.b)
            self.change(d2, [(d1, n1, None), (d2, n2, d1.now[n1])])
        elif k == "L":
            d2, n2 = self.place(op.b)
            self.change(d2, [(d2, n2, self.at(op.a))])
        elif k in "UX":
            d, name = self.place(op.a)
            self.change(d, [(d, name, None)])
        elif k == "M" and op.a:
            d, name = self.place(op.a)
            self.change(d, [(d, name, Dir())])

    def crash(self, loss, rng, into):
        """Writes what is left below `into`."""
        entries = {}

        def of(d):
            if id(d) not in entries:
                entries[id(d)] = dict(d.synced)
            return entries[id(d)]

        dropped = set()
        for one in self.pending:
            touched = {(id(d), n) for d, n, _ in one[1]}
            keep = loss in ("keep-all", "entries-first", "grow-zeros") or (loss.startswith("tear") and rng.random() < 0.5)
            if not keep or touched & dropped:
                dropped |= touched
                continue
            apply(one, of)

        def write(d, where):
            where.mkdir()
            for name, what in sorted(of(d).items()):
                if isinstance(what, Dir):
                    write(what, where / name)
                else:
                    (where / name).write_bytes(what.crashed(loss, rng))

        write(self.root, into)


def apply(change, entries_of):
    for d, name, what in change[1]:
        if what is None:
            entries_of(d).pop(name, None)
        else:
            entries_of(d)[name] = what


# ---- the recorded run ----

class Run:
    """What was sent when, and how long the record was when it was answered."""

    def __init__(self, directory, seed):
        self.dir, self.rng = pathlib.Path(directory), random.Random(seed)
        self.log = self.dir / "record"
        self.sent = []  # (tenant, Request, record's length at the first 2xx or None)
        self.makers = [Maker(seed + i) for i in range(20)]
        self.start = int(time.time() * 1000) // 60000 * 60000 - 20 * 60000
        self.k = 0

    def body(self, series=24, samples=12):
        """Most of it floats; of every third series a histogram or two, exemplars and metadata beside some."""
        self.k += 1
        rng, k, out = self.rng, self.k, []
        for i in range(series):
            idx, first = (i * 7 + k) % 60, self.start + k * 4000
            if idx % 3:
                points = [(first + j * 10, rng.getrandbits(52) | 0x3FE << 52) for j in range(samples)]
                exemplars = [(labels(trace_id=f"{rng.getrandbits(64):016x}"), bits(0.5), t) for t, _ in points[:2]] if rng.random() < 0.3 else ()
                metadata = (1 + idx % 7, f"Help of {idx}", "s") if rng.random() < 0.2 else None
                out.append(remote2.series(labels(f"power_{idx}", idx=str(idx)), points, exemplars=exemplars, metadata=metadata))
            else:
                made = [(first + j * 10, self.makers[idx // 3].next()) for j in range(2)]
                out.append(remote2.series(labels("power_h", idx=str(idx)), [(t, bits(float(k))) for t, h in made if h is None],
                                          [remote2.histogram(t, **h) for t, h in made if h is not None]))
        return Request(out, version=rng.choice((1, 2)))

    def send(self, tenant, request, twice=False):
        answers, body = [], request.body()

        def one():
            c = remote.Client(self.server.url, tenant, timeout=20)
            try:
                a = remote2.write_body(c, body) if request.version == 2 else c.write_body(body)
                if a.status == 204 and remote2.written(a) == (request.written() if request.version == 2 else None):
                    answers.append(self.log.stat().st_size)
            except (OSError, remote.http.client.HTTPException):
                pass
            c.close()

        threads = [threading.Thread(target=one) for _ in range(2 if twice else 1)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(answers) == len(threads), "a good request was refused, or its counts are wrong"
        self.sent.append((tenant, request, min(answers)))

    def record(self):
        self.server = faults.killed_at(procs.Varve(self.dir / "recorded", flags=FLAGS), 0, self.log)
        self.server.data.mkdir(parents=True)  # the recorder compares paths
        self.server.start()
        for part in range(3):
            for i in range(6):
                self.send(TENANTS[i % 2], self.body(), twice=i % 3 == 2)
            self.server.flush()
            for i in range(3):
                self.send(TENANTS[i % 2], self.body(6, 3))
            time.sleep(0.7)  # the cutter's tick: checkpoints, and directories of shipped blocks go
            if part == 0:
                self.server.kill9()
                self.server.start()
        self.server.stop()
        self.ops = read_record(self.log, str(self.server.data))
        return self

    def ledger(self, end):
        """Of samples, and of each tenant's exemplars and metadata."""
        out, beside = Ledger(), {t: Annotations() for t in TENANTS}
        for tenant, request, mark in self.sent:
            state = ACKED if mark <= end else UNKNOWN
            out.record(tenant, request.values(), state)
            beside[tenant].record(request, state)
        return out, beside


# ---- one state ----

def check(server, ledgers, when):
    samples, beside = ledgers
    faults.check(server, samples, TENANTS, when)
    for tenant, ledger in beside.items():
        wrong, _, _ = ledger.compare(*read_annotations(server, tenant), share=1 << 30)
        assert not wrong, f"{when}, {tenant}: {len(wrong)} faults, {wrong[0]}"


def judge(where, ledgers, deep, what):
    """None, or what is wrong with a varve started on what the cut left."""
    server = procs.Varve(where, flags=FLAGS)
    try:
        server.start()
        check(server, ledgers, "after the cut")
        lost = server.metric("varve_wal_samples_lost_total")
        assert lost == 0, f"{lost:.0f} samples are called lost by damage: a power cut is none"
        if deep:
            server.flush()
            check(server, ledgers, "cut and shipped")
            faults.check_bucket(server.bucket_dir)
        return None
    except (AssertionError, OSError, remote.http.client.HTTPException) as e:
        return f"{what}: {type(e).__name__}: {e}\n{server.log_tail(12)}"
    finally:
        if server.proc is not None:
            server.kill9() if server.running() else server.wait()


def power_cuts(directory, states, seed, say=print, jobs=2):
    """Records a run and tries so many states of it; returns how many were tried. AssertionError with all that was found."""
    directory = pathlib.Path(directory)
    run = Run(directory, seed).record()
    ops, rng = run.ops, random.Random(f"{seed}/states")
    kinds = {k: sum(op.kind == k for op in ops) for k in sorted({op.kind for op in ops})}
    everything = [(k, loss) for k in range(len(ops) + 1) for loss in LOSSES]
    picked = everything if states >= len(everything) else sorted(rng.sample(everything, states), key=lambda s: s[0])
    say(f"seed {seed}: {len(ops)} operations ({', '.join(f'{k} {n}' for k, n in kinds.items())}), {len(run.sent)} requests; {len(picked)} of {len(everything)} states")
    base = pathlib.Path(tempfile.mkdtemp(prefix="varve-power-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    bad, began, disk, done = [], time.monotonic(), Disk(), 0
    slots = threading.Semaphore(jobs * 2)

    def one(n, k, loss, end, deep):
        where = base / f"state-{n}"
        try:
            what = f"seed {seed}, {loss} after operation {k} ({ops[k - 1] if k else 'nothing'})"
            return judge(where, run.ledger(end), deep, what)
        finally:
            shutil.rmtree(where, ignore_errors=True)
            slots.release()

    try:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            running = []
            for n, (k, loss) in enumerate(picked):
                while done < k:
                    disk.do(ops[done])
                    done += 1
                slots.acquire()
                (base / f"state-{n}").mkdir()
                disk.crash(loss, random.Random(f"{seed}/{k}/{loss}"), base / f"state-{n}" / "data")
                running.append(pool.submit(one, n, k, loss, ops[k - 1].end if k else 0, rng.random() < 0.25))
                if sum(1 for r in running if r.done() and r.result()) >= 5:
                    break
            bad = [r.result() for r in running if r.result()]
    finally:
        shutil.rmtree(base, ignore_errors=True)
    took = time.monotonic() - began
    say(f"{len(running)} power cuts in {took:.0f} s ({len(running) / took:.1f} a second): {len(bad)} with something wrong. Seed {seed}.")
    assert not bad, f"{len(bad)} of {len(running)} states:\n" + "\n".join(bad[:3])
    return len(running)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="varve-power-run-"))
    procs.raise_open_files()
    ok = False
    try:
        power_cuts(directory, args.states, seed, say=lambda text: print(text, flush=True))
        ok = True
    except AssertionError as e:
        print(f"FAILED: {e}\nthe recorded run is kept: {directory}", flush=True)
    finally:
        procs.stop_all()
        if ok:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
