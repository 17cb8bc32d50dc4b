"""Calls that fail and kills at the worst moment, on the real binary: what was answered 2xx is there, once; the answers are those of the table in
docs/operations.md; the exit code says what happened. VARVE_FULL=1 takes every n, else a seeded sample."""
import http.client
import os
import pathlib
import re
import struct
import subprocess
import threading
import time

import pytest
from lib import procs, remote, remote2
from lib.faults import FULL, Ledger, Traced, check, check_bucket, killed_at, post, strace_binary, tell
from lib.ledger import seeded
from lib.remote import labels
from lib.wire import bits

pytestmark = pytest.mark.timeout(4 * 3600 if FULL else 300)
TENANTS = ("ant", "bee")
SEGMENT = 16 << 10
EXIT_STORAGE = 3
FLAGS = {"wal.segment-size": SEGMENT, "wal.max-size": "1MiB", "head.block-range": "1m", "head.cut-delay": "1h", "head.max-age": "1h", "disk.reserve": 0,
         "bucket.audit-interval": "0s", "http.threads": 1}


class Bodies:
    """Requests with random values: body k has its own time; series come and stay."""

    def __init__(self, rng, series=40, samples=1):
        self.rng, self.n, self.samples = rng, series, samples
        self.start = int(time.time() * 1000) // 60000 * 60000 - 5 * 60000

    def make(self, k):
        return [(labels("fault", idx=str(i), group=str(k // 4)), [(self.start + k * 7000 + j * 10, self.rng.getrandbits(52) | 0x3FF << 52)
                                                                  for j in range(self.samples)]) for i in range(self.n)]


def some(rng, n, most):
    """1 ... n: all in full, else at most so many, the first and the last among them."""
    every = list(range(1, n + 1))
    return every if FULL or n <= most else sorted({1, n, *rng.sample(every, most - 2)})


@pytest.fixture
def rng():
    return seeded("failing calls")


@pytest.fixture
def traced(spawn):
    def make(name, what, paths=None, **flags):
        server = spawn(Traced, name=name, flags={**FLAGS, **{k.replace("_", "."): v for k, v in flags.items()}})
        return server.inject(what, server.segments() if paths is None else paths)
    return make


def send_until_stored(server, ledger, tenant, series, seconds=20):
    """The same body again until it is 204; the statuses on the way."""
    seen = []
    end = time.monotonic() + seconds
    with_client = server.client(tenant)
    while time.monotonic() < end:
        status = post(with_client, series)
        tell(ledger, tenant, series, status)
        seen.append(status)
        if status == 204:
            return seen
        time.sleep(0.03)
    raise AssertionError(f"not stored within {seconds} s: {seen[-5:]}\n{server.log_tail(20)}")


# ---- final failures: EIO ----

def ends_with_storage_failed(server, rng, samples=1, bodies=16):
    """Sends until the log has failed; nothing is acknowledged afterwards; exit code 3; a clean start has it all, and what is sent again is stored."""
    ledger, b, tenant = Ledger(), Bodies(rng, samples=samples), TENANTS[0]
    server.start(wait=False)
    client, failed, sent = None, False, []
    for k in range(bodies):
        if client is None:
            try:
                server.wait_url(server.url + "/-/ready")
            except AssertionError:
                break  # it failed while it started
            client = server.client(tenant)
        series = b.make(k)
        status = post(client, series)
        tell(ledger, tenant, series, status)
        sent.append(series)
        if failed:
            assert status in (None, 503), f"acknowledged ({status}) after the log had failed"
        failed = failed or status != 204
    if not failed and client is not None:
        assert server.hits() == 0, "a call failed and nobody noticed"
        assert server.stop() == 0
        return False
    assert server.wait(30) == EXIT_STORAGE, server.log_tail(20)
    assert "failed" in server.log()
    acked = ledger.samples()
    server.plain()
    check(server, ledger, [tenant], "after the clean start")
    for series in sent:
        assert server.client(tenant).write(series).status == 204
        tell(ledger, tenant, series, 204)
    server.kill9()
    server.start()
    check(server, ledger, [tenant], f"sent again ({acked} acknowledged before)")
    server.stop()
    return True


def test_a_failed_fdatasync_ends_the_process_and_loses_nothing(traced, rng):
    most = 0
    for n in some(rng, 10, 3):
        most += ends_with_storage_failed(traced(f"sync{n}", f"fdatasync:error=EIO:when={n}"), rng)
    assert most > 0


def test_a_2_0_sender_is_told_that_nothing_was_written_when_the_log_fails(traced):
    """The head had taken it; it was not durable, so it does not count."""
    server = traced("counts", "fdatasync:error=EIO:when=4+").start()
    client, told = server.client(), []
    for k in range(12):
        try:
            a = remote2.write(client, [remote2.series(labels("up"), [(int(time.time() * 1000) - k, bits(1.0))])])
        except (OSError, http.client.HTTPException):
            break
        told.append((a.status, remote2.written(a)))
        if a.status != 204:
            break
    assert told[-1] == (503, (0, 0, 0)) and set(told[:-1]) <= {(204, (1, 0, 0))}, told
    assert server.wait(30) == EXIT_STORAGE


def test_a_failed_fsync_of_a_new_segment_ends_the_process_and_loses_nothing(traced, rng):
    """Names of segments: fsync of the log's directory; the first is at start."""
    hit = 0
    for n in some(rng, 6, 2):
        server = traced(f"dir{n}", f"fsync:error=EIO:when={n}", paths=())
        server.inject(f"fsync:error=EIO:when={n}", [server.data / "wal"])
        hit += ends_with_storage_failed(server, rng, samples=20)
    assert hit > 0


@pytest.mark.parametrize("error", ["EIO", "EROFS", "EDQUOT"])
def test_a_failed_write_of_the_log(traced, rng, error):
    """EIO and EROFS are final. EDQUOT is a full disk by another name: it passes."""
    for n in some(rng, 10, 2):
        if error == "EDQUOT":
            no_room_at(traced(f"w{n}", f"pwrite64:error={error}:when={n}..{n + 3}"), rng)
        else:
            ends_with_storage_failed(traced(f"w{n}", f"pwrite64:error={error}:when={n}"), rng)


# ---- no room: ENOSPC ----

def no_room_at(server, rng, bodies=10, samples=1):
    """503 while there is no room, then the same body is 204; after kill -9 everything is there."""
    ledger, b = Ledger(), Bodies(rng, samples=samples)
    server.start()
    refused = 0
    for k in range(bodies):
        tenant = TENANTS[k % 2]
        seen = send_until_stored(server, ledger, tenant, b.make(k))
        assert set(seen) <= {204, 503}, seen
        refused += len(seen) - 1
    check(server, ledger, TENANTS, "running")
    server.kill9()
    hits = server.hits()
    server.plain()
    check(server, ledger, TENANTS, f"after kill -9, {hits} calls had failed")
    assert server.metric("varve_wal_frames_lost_total") == 0
    server.stop()
    return hits, refused


def test_no_space_at_each_log_write_then_the_same_body_is_stored(traced, rng):
    refused = hits = 0
    for n in some(rng, 16, 4):
        h, r = no_room_at(traced(f"n{n}", f"pwrite64:error=ENOSPC:when={n}..{n + 4}"), rng)
        hits, refused = hits + h, refused + r
    assert hits > 0 and refused > 0


def test_no_space_for_segments(traced, rng):
    """The log can't be preallocated: at start, and when a segment is full."""
    refused = hits = 0
    for n in some(rng, 6, 3):
        h, r = no_room_at(traced(f"a{n}", f"fallocate:error=ENOSPC:when={n}..{n + 4}", paths=()), rng, samples=25)
        hits, refused = hits + h, refused + r
    assert hits > 0


def test_no_space_for_good_answers_503_and_reads_go_on(traced, rng):
    server = traced("full", "pwrite64:error=ENOSPC:when=6+")
    ledger, b = Ledger(), Bodies(rng)
    server.start()
    answers = []
    for k in range(12):
        series = b.make(k)
        a = server.client(TENANTS[0]).write(series)
        tell(ledger, TENANTS[0], series, a.status)
        answers.append(a)
    assert answers[0].status == 204 and answers[-1].status == 503, [a.status for a in answers]
    last = answers[-1]
    assert last.id == "err-varve-disk-full" and int(last.headers["Retry-After"]) >= 1, last.text
    check(server, ledger, TENANTS[:1], "on the full disk")  # reads go on
    assert server.metric("varve_wal_no_space") == 1
    server.kill9()
    server.plain()
    check(server, ledger, TENANTS[:1], "after kill -9")
    server.stop()


# ---- two connections, and a kill between append and fdatasync ----

def test_the_same_body_on_two_connections_killed_before_its_sync(traced, rng):
    """The second request finds only duplicates; it must not be answered before the first one's records are durable."""
    for n in some(rng, 8, 3):
        server = traced(f"two{n}", f"pwrite64:delay_exit=60000 fdatasync:signal=KILL:when={n}").start()
        ledger, b = Ledger(), Bodies(rng)
        statuses = []
        for k in range(10):
            if not server.running():
                break
            series, got = b.make(k), [None, None]

            def one(i, series=series, got=got):
                c = remote.Client(server.url, TENANTS[0], timeout=10)
                got[i] = post(c, series)
                c.close()

            threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for status in got:
                tell(ledger, TENANTS[0], series, status)
            statuses.append(got)
        server.wait()
        server.plain()
        check(server, ledger, TENANTS[:1], f"killed at fdatasync {n}, answers {statuses}")
        # The same bodies again are stored once.
        for key, values in list(ledger.tries.items())[:200]:
            series = [(key[1], [(key[2], v) for v in values])]
            assert server.client(TENANTS[0]).write(series).status == 204
            ledger.record(TENANTS[0], series, 2)
        check(server, ledger, TENANTS[:1], "the same again")
        server.stop()


def test_a_retry_beside_a_slow_sync_waits_for_it(traced, rng):
    """fdatasync takes 300 ms: the retry over another connection is answered behind it, not before."""
    server = traced("slow", "fdatasync:delay_enter=300000:when=2+").start()
    b = Bodies(rng)
    assert server.client(TENANTS[0]).write(b.make(0)).status == 204
    series, done = b.make(1), {}

    def one(i):
        c = remote.Client(server.url, TENANTS[0], timeout=10)
        began = time.monotonic()
        status = post(c, series)
        done[i] = (status, time.monotonic() - began)
        c.close()

    first, second = (threading.Thread(target=one, args=(i,)) for i in range(2))
    first.start()
    time.sleep(0.1)
    second.start()
    first.join()
    second.join()
    assert done[0][0] == done[1][0] == 204
    assert done[0][1] >= 0.28 and done[1][1] >= 0.15, f"answered before the sync: {done}"
    server.stop()


# ---- killed before the n-th change of a file: cut, cut record, shipment, removals ----

RECORD = struct.Struct("<IIQQQIIII")


def operations(log):
    """[(kind, path)] of a recorder's log."""
    data, at, out = log.read_bytes(), 0, []
    while at < len(data):
        _, kind, _, _, _, a, b, n, _ = RECORD.unpack_from(data, at)
        at += RECORD.size
        out.append((chr(kind), data[at:at + a].decode(), data[at + a:at + a + b].decode()))
        at += a + b + n
    return out


def cut_and_ship(server, ledger, b, first):
    """Two flushes with writes between: blocks are cut and shipped, cut records logged, a checkpoint made, segments and directories removed."""
    for k in range(first, first + 6):
        for tenant in TENANTS:
            if not server.running():
                return
            series = b.make(k)
            tell(ledger, tenant, series, post(server.client(tenant), series))
        if k % 3 == 2:
            c = remote.Client(server.url, timeout=30)
            try:
                c.request("POST", "/-/flush", b"")
            except (OSError, remote.http.client.HTTPException):
                pass
            finally:
                c.close()
    end = time.monotonic() + 1.2  # the cutter's tick makes a checkpoint
    while server.running() and time.monotonic() < end:
        time.sleep(0.02)


def killed_run(spawn, rng, name, n, log=None):
    server = killed_at(spawn(procs.Varve, name=name, flags=FLAGS), n, log)
    ledger, b = Ledger(), Bodies(rng, samples=25)
    server.start()
    for k in range(3):
        for tenant in TENANTS:
            series = b.make(k)
            status = post(server.client(tenant), series)
            assert status == 204
            tell(ledger, tenant, series, status)
    server.armed.touch()
    cut_and_ship(server, ledger, b, 3)
    return server, ledger


def test_killed_before_any_change_of_a_file_while_cutting_and_shipping(spawn, rng, tmp_path):
    log = tmp_path / "operations"
    server, ledger = killed_run(spawn, rng, "whole", 0, log)
    check(server, ledger, TENANTS, "nothing happened")
    server.stop()
    ops = operations(log)
    # The run has what it is for: a block gets its name, segments and directories go, checkpoints come.
    root = str(server.data)
    first = next(i for i, (k, a, b) in enumerate(ops) if k == "R" and b.startswith(root + "/blocks/"))
    unlinked = [a for k, a, _ in ops if k == "U"]
    assert any("/wal/" in a and a.endswith(".wal") for a in unlinked), "no segment was removed"
    assert any(k == "R" and ".checkpoint" in b for k, a, b in ops), "no checkpoint was made"
    assert any("/blocks/" in a for a in unlinked), "no directory of a shipped block was removed"
    total = len(ops) - first + 30
    killed = 0
    interesting = [i - first + 25 for i, (k, a, b) in enumerate(ops) if i >= first and (k in "RL" or (k == "U" and a.endswith((".wal", "meta.json"))))]
    picked = range(1, total) if FULL else sorted(set(rng.sample(range(1, total), 6) + rng.sample(interesting, 6)))
    for n in picked:
        server, ledger = killed_run(spawn, rng, f"k{n}", n)
        dead = not server.running()
        killed += dead
        if dead:
            assert server.wait() == -9
        else:
            server.kill9()
        server.env = {}
        server.start()
        check(server, ledger, TENANTS, f"killed before operation {n}")
        server.flush()
        check(server, ledger, TENANTS, f"killed before operation {n}, flushed")
        in_bucket = check_bucket(server.bucket_dir)
        assert in_bucket >= ledger.samples(), f"killed before operation {n}: {in_bucket} samples in the bucket, {ledger.samples()} acknowledged"
        assert server.metric("varve_wal_frames_lost_total") == 0
        server.stop()
        procs.shutil.rmtree(server.dir)
    print(f"{killed} kills among {total} operations")
    assert killed >= 6


# ---- a disk that is really full ----

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB in memory."""
    where = tmp_path / "disk"
    where.mkdir()
    r = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(where)], capture_output=True, text=True, check=False)
    if r.returncode != 0:
        pytest.fail(f"a small file system can't be mounted here (root, or a user namespace with mount: `unshare -Urm make e2e`): {r.stderr.strip()}")
    yield where
    procs.stop_all()
    subprocess.run(["umount", "-l", str(where)], check=False)


@pytest.mark.parametrize("reserve", ["0", "4MiB"])
def test_a_full_disk_is_503_reads_go_on_and_space_brings_writes_back(spawn, small_disk, rng, reserve):
    server = spawn(procs.Varve, flags={**FLAGS, "wal.segment-size": "64KiB", "wal.max-size": "16MiB", "disk.reserve": reserve, "head.block-range": "2h"})
    server.data = small_disk / "data"
    server.start()
    ledger, b = Ledger(), Bodies(rng, series=60, samples=20)
    assert send_until_stored(server, ledger, TENANTS[0], b.make(0)) == [204]
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with open(ballast, "wb") as f:
        f.write(b"\1" * (free - (512 << 10)))
    # The rest goes into the log until nothing fits; with a reserve the answer comes before that.
    end, k, full_at = time.monotonic() + 60, 1, None
    client = server.client(TENANTS[0])
    while time.monotonic() < end and full_at is None:
        series = b.make(k)
        k += 1
        try:
            a = client.write(series)
        except (OSError, remote.http.client.HTTPException) as e:
            raise AssertionError(f"no answer on a full disk: {e}\n{server.log_tail(20)}") from None
        tell(ledger, TENANTS[0], series, a.status)
        if a.status == 503:
            full_at = a
        else:
            assert a.status == 204, a.text
    assert full_at is not None and full_at.id == "err-varve-disk-full" and int(full_at.headers["Retry-After"]) >= 1, full_at and full_at.text
    for _ in range(3):  # it stays so, and it serves
        series = b.make(k)
        k += 1
        a = client.write(series)
        tell(ledger, TENANTS[0], series, a.status)
        assert a.status == 503, a.status
        check(server, ledger, TENANTS[:1], "on the full disk")
    assert procs.http_get(server.url + "/-/healthy")[0] == 200
    ballast.unlink()
    freed = time.monotonic()
    while True:
        series = b.make(k)
        status = client.write(series).status
        tell(ledger, TENANTS[0], series, status)
        if status == 204:
            break
        assert status == 503 and time.monotonic() - freed < 5, f"still {status} after {time.monotonic() - freed:.1f} s\n{server.log_tail(10)}"
        time.sleep(0.05)
    print(f"full after {k} requests; writes went on {time.monotonic() - freed:.2f} s after space came back")
    check(server, ledger, TENANTS[:1], "room again")
    server.kill9()
    server.start()
    check(server, ledger, TENANTS[:1], "after kill -9")
    server.flush()
    check(server, ledger, TENANTS[:1], "flushed")
    server.stop()


def test_killed_on_a_full_disk_it_starts_there_and_serves(spawn, small_disk, rng):
    server = spawn(procs.Varve, flags={**FLAGS, "wal.segment-size": "1MiB", "wal.max-size": "16MiB"})
    server.data = small_disk / "data"
    server.start()
    ledger, b = Ledger(), Bodies(rng, series=60, samples=4)
    for k in range(20):
        assert send_until_stored(server, ledger, TENANTS[0], b.make(k)) == [204]
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with open(small_disk / "ballast", "wb") as f:
        f.write(b"\1" * (free - (64 << 10)))
    server.kill9()
    with open(small_disk / "ballast2", "wb", buffering=0) as f:
        try:
            while f.write(b"\1" * 4096) == 4096:
                pass
        except OSError:
            pass
    server.start(wait=False)
    procs.wait_for(lambda: not server.running() or procs.http_get(server.url + "/-/healthy", 2)[0] == 200, 20, "an answer on the full disk")
    if server.running():
        check(server, ledger, TENANTS[:1], "started on the full disk")
        assert post(server.client(TENANTS[0]), b.make(30)) == 503
    else:
        # Not even the lock file or the catalog's log fits: it says so.
        assert "o space" in server.log_tail(5), server.log_tail(5)
    (small_disk / "ballast").unlink()
    (small_disk / "ballast2").unlink()
    if not server.running():
        server.wait()
        server.start()
    series = b.make(31)
    send_until_stored(server, ledger, TENANTS[0], series, 15)
    check(server, ledger, TENANTS[:1], "room again")
    server.stop()




def test_a_new_data_directory_survives_a_power_cut(spawn):
    """Each directory that is made for it is an entry of one that is synced afterwards, the one that was there before included."""
    server = spawn(Traced)
    server.data = server.dir / "new" / "data"
    config = server.dir / "bucket.yml"  # a directory as the bucket would sync what leads to it
    config.write_text("type: S3\nconfig: {bucket: b, endpoint: '127.0.0.1:1', region: r, access_key: a, secret_key: b, insecure: true}\n")
    server.flags["objstore.config-file"] = config
    log = server.dir / "strace.log"
    server.wrap = [strace_binary(), "-f", "-qq", "-y", "-o", log, "-e", "trace=mkdir,fsync"]
    server.start()
    server.stop()
    lines = log.read_text("utf-8").splitlines()
    made = [(i, pathlib.Path(re.search('"([^"]+)"', line)[1])) for i, line in enumerate(lines) if "mkdir(" in line and line.endswith(" = 0")]
    assert {server.data.parent, server.data, server.data / "wal"} <= {d for _, d in made}
    for i, d in made:
        assert any(f"<{d.parent}>)" in line and "fsync(" in line for line in lines[i:]), f"{d.parent} is not synced after {d} was made"
