"""Bad days of the bucket, seen from the whole server: ingest and local reads go on, blocks wait and arrive by themselves, nothing half is ever visible.

The bytes of chunks/ and index are a function of the samples alone. So one reference, read once by a reader that shares no code with the server,
stands for all: whatever happened on the way, the objects in the bucket must be its bytes. A fake bucket looks at every meta.json that arrives,
and notes it when a file that it lists is not there whole.
"""
import datetime
import hashlib
import json
import os
import pathlib
import random
import shutil
import struct
import threading
import time

import pytest
from lib import faults, gen, ledger, procs, remote, tsdb
from lib.fake_s3 import Answer, Cut, Do, FakeS3, Hang, Headers, Lost, Reset, Status
from lib.remote import labels
from lib.wire import bits, pb_len, snappy, uvarint

FULL = bool(os.environ.get("VARVE_FULL"))
RANGE = 7_200_000
MIB = 1 << 20
QUIET = {"bucket.audit-interval": "0s", "wal.segment-size": "32MiB", "head.max-age": "24h", "head.cut-delay": "12h"}  # a block when a test says so
# Impatient, so that a hang is noticed in seconds; parts as small as the protocol has them.
IMPATIENT = "part_size: 5MiB\nmax_retries: 4\nhttp_config: {response_header_timeout: 2s}\n"


def now():
    return int(time.time() * 1000)


def inner(server, *matchers, **kw):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(matchers=list(matchers) or remote.ALL, **kw).items()}


class Shipment:
    """Two blocks to ship: one whose chunks take two parts of a multipart upload, and a small one."""

    def __init__(self):
        rng = random.Random(4711)
        self.window = now() // RANGE * RANGE - 2 * RANGE
        times = [self.window + i * 150 for i in range(40_000)]
        coded = [b"\x10" + uvarint(t) for t in times]
        self.want, parts = {}, []
        for i in range(16):
            name = labels("noise", i=f"{i:02d}")
            values = [rng.getrandbits(62) for _ in times]
            samples = b"".join(b"\x12" + bytes([9 + len(t)]) + b"\x09" + struct.pack("<Q", v) + t for v, t in zip(values, coded))
            parts.append(pb_len(1, remote.encode_labels(name) + samples))
            self.want[name] = list(zip(times, values))
        self.small = {labels("small", i=f"{i:02d}"): [(self.window + RANGE + k * 15_000, bits(float(i * k))) for k in range(30)] for i in range(40)}
        self.want.update(self.small)
        parts.append(remote.encode_request(self.small.items()))
        self.body = snappy(b"".join(parts))
        self.objects = None  # {(block's number, file): bytes}

    def send(self, server):
        a = server.client().write_body(self.body)
        assert a.status == 204, a.text

    def probe(self, server):
        """A few reads that touch both blocks."""
        assert inner(server, ("=", "__name__", "small")) == self.small
        name = labels("noise", i="07")
        some = self.want[name][30_000:30_300]
        assert inner(server, ("=", "i", "07"), ("=", "__name__", "noise"), start=some[0][0], end=some[-1][0]) == {name: some}

    def check(self, objects):
        """objects: {key: bytes} of a bucket. Exactly the two blocks, byte for byte, and nothing else."""
        assert by_time(objects) == self.objects


def by_time(objects):
    """{key: bytes} as {(order of the block in time, file): digest}, meta.json left out, which holds times and ULIDs; its files must all be there."""
    blocks = {}
    for key, data in objects.items():
        blocks.setdefault(key.split("/")[0], {})[key.split("/", 1)[1]] = data
    for ulid, files in blocks.items():
        assert "meta.json" in files, f"an orphan: {ulid} has {sorted(files)}"
        listed = json.loads(files["meta.json"])["thanos"]["files"]
        assert {f["rel_path"] for f in listed} == set(files), ulid
    ordered = sorted(blocks.values(), key=lambda f: json.loads(f["meta.json"])["minTime"])
    return {(n, name): hashlib.sha256(data).hexdigest() for n, files in enumerate(ordered) for name, data in files.items() if name != "meta.json"}


@pytest.fixture(scope="module")
def shipment(tmp_path_factory):
    s = Shipment()
    server = procs.Varve(tmp_path_factory.mktemp("reference"), flags=QUIET).start()
    s.send(server)
    assert len(server.flush()) == 2
    server.stop()
    assert tsdb.dump_dir(server.bucket_dir, external=False) == s.want
    s.objects = by_time({p.relative_to(server.bucket_dir).as_posix(): p.read_bytes() for p in server.bucket_dir.rglob("*") if p.is_file()})
    assert len(s.objects) == 4
    return s


class Watched(FakeS3):
    """Notes each moment at which a block is visible (its meta.json is there) and not whole."""

    def __init__(self, **kw):
        super().__init__(**kw)
        self.half = []

    def _look(self, ulid):
        meta = self.objects.get(f"{ulid}/meta.json")
        for f in json.loads(meta[0])["thanos"]["files"] if meta else ():
            there = self.objects.get(f"{ulid}/{f['rel_path']}")
            if f["rel_path"] == "meta.json":
                continue
            if there is None or len(there[0]) != f["size_bytes"] or hashlib.sha256(there[0]).hexdigest() != f["hash"]["value"]:
                self.half.append(f"{ulid}/{f['rel_path']}")

    def _PutObject(self, r, body):
        out = super()._PutObject(r, body)
        self._look(r.key.split("/")[0])
        return out

    def _DeleteObject(self, r, body):
        out = super()._DeleteObject(r, body)
        self._look(r.key.split("/")[0])
        return out

    def contents(self):
        with self.lock:
            return {k: v[0] for k, v in self.objects.items()}

    def settled(self, shipment):
        assert not self.half, self.half
        assert not self.uploads, f"unfinished multipart uploads: {[k for k, _ in self.uploads.values()]}"
        shipment.check(self.contents())


@pytest.fixture
def fake():
    made = []

    def make(**kw):
        made.append(Watched(**kw).start())
        return made[-1]

    yield make
    for f in made:
        f.stop()


@pytest.fixture
def on_bucket(spawn):
    def make(yaml, name=None, **flags):
        server = spawn(procs.Varve, name=name, flags={**QUIET, **{k.replace("_", "."): v for k, v in flags.items()}})
        path = server.dir / "objstore.yml"
        path.write_text(yaml)
        server.flags["objstore.config-file"] = path
        return server

    return make


@pytest.fixture
def new_node(on_bucket):
    """A server that has nothing but the bucket, and has read what is there."""
    def make(f, blocks, **flags):
        server = on_bucket(f.objstore_yaml(config=IMPATIENT), name="new-node", **flags).start()
        procs.wait_for(lambda: len(server.client().get("/api/v1/status/blocks").json()["blocks"]) == blocks, 30, "a new node knows the blocks")
        f.log.clear()
        return server

    return make


# ---- one request in trouble ----

ERROR_BODY = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>'
TROUBLE = {
    "500_to_a_put": [("PutObject", Status(500), 1, 2)],
    "503_and_retry_after_to_a_part": [("UploadPart", Status(503, "SlowDown", {"Retry-After": "1"}), 1, 2)],
    "connection_reset_in_a_part": [("UploadPart", Reset(n), 1, 1) for n in (0, 1, 65_537, 5 * MIB - 1)],
    "connection_reset_in_the_index": [("PutObject", Reset(n), 1, 1) for n in (0, 100)],
    "200_with_an_error_body_to_complete": [("CompleteMultipartUpload", Answer(200, ERROR_BODY), 1, 1)],
    "200_with_html_to_complete": [("CompleteMultipartUpload", Answer(200, "<html>welcome to the wifi</html>", done=True), 1, 1)],
    "wrong_etag_of_a_part": [("UploadPart", Headers({"ETag": '"00000000000000000000000000000000"'}), 1, 1)],
    "wrong_etag_of_a_put": [("PutObject", Headers({"ETag": '"00000000000000000000000000000000"', "x-amz-checksum-crc32c": "AAAAAA=="}), 1, 1)],
    "the_answer_of_complete_lost": [("CompleteMultipartUpload", Lost(), 1, 1)],
    "the_answer_of_the_last_put_lost": [("PutObject", Lost(30), 2, 1)],
    "a_part_hangs": [("UploadPart", Hang(8), 2, 1)],
    "complete_hangs_and_is_done": [("CompleteMultipartUpload", Hang(8, done=True), 1, 1)],
    "every_second_change_fails": [("change", Status(500), n, 1) for n in range(2, 9)],
    "403_for_a_while": [("change", Status(403, "AccessDenied"), 1, 3)],
}


@pytest.mark.parametrize("case", TROUBLE)
def test_a_request_in_trouble_is_made_again(fake, on_bucket, shipment, case):
    f = fake()
    for op, action, nth, times in TROUBLE[case]:
        f.plan(op, action, nth, times)
    server = on_bucket(f.objstore_yaml(config=IMPATIENT)).start()
    shipment.send(server)
    blocks = server.flush()
    assert len(blocks) == 2 and all(b["state"] == "live" for b in blocks)
    assert all(times == 0 for _, _, _, times, _ in f.plans), "the trouble took place"
    f.settled(shipment)
    shipment.probe(server)
    assert server.stop() == 0


GETS = {"cut": Cut(1000), "shorter_than_asked": Cut(1000, lie=True), "500": Status(500), "reset": Reset(), "lost": Lost(200), "hang": Hang(8),
        "503_and_retry_after": Status(503, "SlowDown", {"Retry-After": "1"})}


def test_a_get_in_trouble_never_gives_a_short_answer(fake, on_bucket, new_node, shipment):
    f = fake()
    server = on_bucket(f.objstore_yaml()).start()
    shipment.send(server)
    server.flush()
    assert server.stop() == 0
    server = new_node(f, 2)
    for action in GETS.values():
        for n in (1, 2, 4) if FULL else (1, 4):
            f.plan("GetObject", action, nth=n)
            shipment.probe(server)
            f.plans = []
            server.stop()
            shutil.rmtree(server.data / "cache")  # the next one fetches again
            server.start()
    shipment.probe(server)
    assert server.metric("varve_query_blocks_quarantined_total") == 0, server.log_tail()


# ---- the bucket away for longer ----

class Load(threading.Thread):
    """Steady remote write; each second's samples lie in a minute of their own, long over, so that blocks are cut all the time. Every answer is judged."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.book, self.stop, self.bad, self.slowest, self.sent = server, ledger.Ledger(), threading.Event(), [], 0.0, 0
        self.begin = now() // 60_000 * 60_000

    def run(self):
        c = remote.Client(self.server.url, timeout=20)
        start = time.monotonic()
        while not self.stop.is_set():
            second = int(time.monotonic() - start)
            t = self.begin - (second + 3) * 60_000 + self.sent % 50_000
            series = [(labels("steady", i=str(i)), [(t, bits(float(self.sent + i)))]) for i in range(50)]
            self.sent += 1
            before = time.monotonic()
            try:
                status = c.write(series).status
            except OSError as e:
                status = repr(e)
            self.slowest = max(self.slowest, time.monotonic() - before)
            if status != 204:
                self.bad.append(status)
            self.book.record_answer("default-tenant", series, status if isinstance(status, int) else None)
            time.sleep(0.02)
        c.close()

    def end(self):
        self.stop.set()
        self.join()
        assert not self.bad, f"{len(self.bad)} of {self.sent} requests: {self.bad[:5]}"
        assert self.slowest < 5, f"an answer took {self.slowest:.1f} s"
        return self.book


FAST_CUTS = {"head_block-range": "1m", "head_cut-delay": "1s", "wal_segment-size": "4MiB", "ingest_oldest": "3d"}


def waits(server, n):
    return procs.wait_for(lambda: server.metric("varve_ship_pending_blocks") >= n, 60, f"{n} blocks wait on disk", 0.2)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_minio_away_under_load_costs_nothing(spawn, on_bucket, tmp_path, how):
    import signal

    minio = spawn(procs.MinIO).start()
    server = on_bucket(minio.objstore_yaml().replace("  insecure: true\n", "  insecure: true\n  max_retries: 2\n  http_config: {response_header_timeout: 2s}\n"), **FAST_CUTS).start()
    load = Load(server)
    load.start()
    procs.wait_for(lambda: server.metric("varve_ship_blocks_total") >= 1, 60, "a block is live", 0.2)
    seconds = 60 if FULL else 30 if how == "killed" else 12
    begin = time.monotonic()
    if how == "killed":
        minio.kill9()
    else:
        minio.signal(signal.SIGSTOP)
    waits(server, 3)
    before = inner(server)
    assert before, "reads of local data go on"
    time.sleep(max(0, begin + seconds - time.monotonic()))
    procs.wait_for(lambda: server.metric("varve_ship_failures_total") >= 1, 60, "a pass of the shipper has failed")
    failed = [line for line in server.log().splitlines() if "blocks wait on disk" in line]
    assert failed and f"127.0.0.1:{minio.port}" in failed[0], server.log_tail()
    assert len(failed) <= 20, "the same words again and again"
    m = server.metrics()
    assert m["varve_ship_oldest_pending_seconds"] >= 2 and m["varve_ship_pending_bytes"] > 0
    assert any(k.startswith("varve_bucket_s3_requests_total") and 'code="2' not in k for k in m), "metrics say why"
    if how == "killed":
        minio.start()
    else:
        minio.signal(signal.SIGCONT)
    back = server.metric("varve_ship_blocks_total")
    # The shipper's pause is at most a minute; the load goes on meanwhile.
    procs.wait_for(lambda: server.metric("varve_ship_blocks_total") > back, 90, "uploads resume by themselves", 0.2)
    book = load.end()
    blocks = server.flush()
    assert "shipping works again" in server.log()
    report = book.compare({"default-tenant": inner(server)})
    assert report.clean, report
    assert not minio.s3.uploads(minio.bucket)
    keys = minio.s3.list(minio.bucket)
    assert {k.split("/")[0] for k in keys} == {b["ulid"] for b in blocks}
    minio.s3.download(minio.bucket, tmp_path / "copy")
    report = book.compare({"default-tenant": tsdb.dump_dir(tmp_path / "copy", external=False)})
    assert report.clean, report


@pytest.mark.parametrize("why, words", [("keys", "InvalidAccessKeyId"), ("bucket", "NoSuchBucket"), ("503", "SlowDown"), ("clock", None)])
def test_a_bucket_that_refuses_is_named_and_used_again_once_it_does_not(fake, on_bucket, why, words):
    f = fake(clock_ahead=7200 if why == "clock" else 0)
    server = on_bucket(f.objstore_yaml(config="max_retries: 2\n"), **FAST_CUTS)
    if why == "keys":
        f.keys = {"somebody-else": "x"}
    elif why == "bucket":
        f.bucket = "another"
    elif why == "503":
        f.plan("*", Status(503, "SlowDown"), times=10**9)
    server.start()
    t = now() // 60_000 * 60_000 - 600_000
    want = {}
    for n in range(4):
        series = [(labels("m", n=str(n)), [(t + n * 60_000, bits(1.0))])]
        assert server.client().write(series).status == 204
        want.update(series)
    if words:
        waits(server, 4)
        procs.wait_for(lambda: words in server.log(), 30, f"the log says {words}")
        assert inner(server) == want and not f.objects
        assert server.client().write([(labels("m", n="0"), [(t, bits(1.0))])]).status == 204
    f.keys, f.bucket, f.plans = dict(FakeS3(host=None).keys), FakeS3.bucket, []
    procs.wait_for(lambda: server.metric("varve_ship_pending_blocks") == 0 and server.metric("varve_ship_blocks_total") >= 4, 90, "blocks arrive by themselves", 0.2)
    assert inner(server) == want and not f.half and not f.uploads
    if why == "clock":
        assert abs(server.metric("varve_bucket_clock_skew_seconds") - 7200) < 60


# ---- killed at each object operation of a shipment ----

@pytest.fixture(scope="module")
def template(tmp_path_factory, shipment):
    """A data directory whose log holds the shipment and whose catalog knows the empty bucket."""
    f = Watched().start()
    server = procs.Varve(tmp_path_factory.mktemp("template"), flags=QUIET)
    path = server.dir / "objstore.yml"
    path.write_text(f.objstore_yaml())
    server.flags["objstore.config-file"] = path
    server.start()
    procs.wait_for(lambda: f.count("ListObjectsV2"), 30, "the first listing")
    time.sleep(0.5)
    shipment.send(server)
    assert server.stop() == 0
    f.stop()
    return server.data


def shipped(f):
    return [r for r in f.log if r.op != "ListObjectsV2"]


def kill_points():
    """Requests of this shipment as they are counted below: at least 11; what is beyond the last one passes without a kill."""
    every = [(n, done) for n in range(1, 25) for done in (False, True)]
    return every if FULL else sorted(ledger.seeded("kill at").sample(every[:24], 6))


@pytest.mark.timeout(3600 if FULL else 300)
def test_killed_at_each_object_operation_of_a_shipment(fake, on_bucket, shipment, template):
    """Killed before the n-th request takes place, or after it has and before its answer; then once more a few requests into the second try."""
    killed = 0
    for n, done in kill_points():
        f = fake()
        server = on_bucket(f.objstore_yaml(config=IMPATIENT), name=f"killed-{n}-{done}")
        shutil.copytree(template, server.data)
        f.plan("*", Do(server.kill9, done=done), nth=n)
        f.plan("*", Do(server.kill9, done=not done), nth=n + 3 + n % 4)
        blocks = None
        for _ in range(4):
            try:
                server.start()
                blocks = server.flush()
                break
            except (AssertionError, OSError, remote.http.client.HTTPException):
                assert server.kill9() == -9 and not f.half, server.log_tail()
                killed += 1
        assert blocks is not None
        f.plans.clear()  # what was due beyond the last request of the shipment must not hit the reads below
        assert len(blocks) == 2 and all(b["state"] == "live" for b in blocks), (n, done, blocks)
        f.settled(shipment)
        shipment.probe(server)
        assert server.stop() == 0
        f.stop()
        shutil.rmtree(server.data)
    assert killed >= 3, f"{killed} kills took place"


def test_a_catalog_lost_in_the_middle_of_a_shipment(fake, on_bucket, shipment, template):
    """Killed with a part uploaded, and the catalog that knew of it is gone: nothing is left over all the same."""
    f = fake()
    server = on_bucket(f.objstore_yaml(config=IMPATIENT))
    shutil.copytree(template, server.data)
    f.plan("UploadPart", Do(server.kill9, done=True), nth=2)
    server.start()
    with pytest.raises((OSError, remote.http.client.HTTPException)):
        server.client(timeout=60).request("POST", "/-/flush", b"")
    server.kill9()
    assert len(f.uploads) == 1
    for p in server.data.glob("catalog.sqlite*"):
        p.unlink()
    server.start()
    server.flush()
    f.settled(shipment)
    shipment.probe(server)


def test_a_shipment_that_is_ended_by_sigterm_goes_on_later(fake, on_bucket, shipment):
    f = fake()
    f.plan("UploadPart", Hang(30), nth=2)
    server = on_bucket(f.objstore_yaml(config="part_size: 5MiB\n")).start()
    shipment.send(server)
    flush = threading.Thread(target=lambda: server.client(timeout=60).request("POST", "/-/flush", b""), daemon=True)
    flush.start()
    procs.wait_for(lambda: f.count("UploadPart") == 2, 30, "an upload is under way")
    begin = time.monotonic()
    assert server.stop(20) == 0
    assert time.monotonic() - begin < 12, "the default grace is 10 s"
    flush.join(10)
    assert not f.half and not any(k.endswith("meta.json") for k in f.objects)
    server.start()
    assert len(server.flush()) == 2
    f.settled(shipment)


# ---- requests that nobody asked for ----

def test_queries_and_idleness_ask_the_bucket_for_nothing(fake, on_bucket, new_node, shipment):
    f = fake()
    server = on_bucket(f.objstore_yaml()).start()
    shipment.send(server)
    server.flush()
    server.stop()
    assert "HeadObject" not in f.ops() or f.count("HeadObject") <= len(f.objects), "a look at what was put, at most"
    server = new_node(f, 2)
    for _ in range(3):
        shipment.probe(server)
        for path in ("/api/v1/labels", "/api/v1/label/i/values", "/api/v1/series?match[]=small", "/api/v1/status/blocks", "/metrics"):
            assert server.client().get(path).status == 200
    assert set(f.ops()) == {"GetObject"}, f.ops()
    assert all("range" in r.headers for r in f.log), "only ranges are fetched"
    asked = len(f.log)
    time.sleep(130 if FULL else 4)  # in full: longer than every period of the background, but the audit's
    assert len(f.log) == asked, f.ops()


def test_an_idle_server_lists_at_its_audits_and_nothing_else(fake, on_bucket, shipment):
    f = fake(page=3)
    server = on_bucket(f.objstore_yaml(), **{"bucket_audit-interval": "2s"}).start()
    shipment.send(server)
    server.flush()
    pages = -(-len(f.objects) // 3)
    time.sleep(1)
    f.log.clear()
    begin = time.monotonic()
    time.sleep(70 if FULL else 7)
    audits = (time.monotonic() - begin) / 2 + 1
    assert set(f.ops()) == {"ListObjectsV2"}, f.ops()
    assert 2 * pages <= f.count("ListObjectsV2") <= audits * pages, f"{f.count('ListObjectsV2')} pages in {audits} audits of {pages}"


def test_an_idle_hour(fake, on_bucket, shipment):
    """By a clock that runs 360 times as fast: an hour is 10 s, and the audits are those of the default 15 minutes."""
    f = fake(page=3)
    server = on_bucket(f.objstore_yaml()).start()
    shipment.send(server)
    server.flush()
    server.stop()
    pages, speed = -(-len(f.objects) // 3), 360
    for name, flags, audits in (("audited", {"bucket_audit-interval": "15m"}, 4), ("alone", {"bucket_audit-interval": "0"}, 0)):
        node = on_bucket(f.objstore_yaml(), name=name, **flags)
        node.env = {"LD_PRELOAD": str(faults.preloaded("fast_clock")), "VARVE_CLOCK_SPEED": str(speed)}
        node.start()
        procs.wait_for(lambda n=node: len(n.client().get("/api/v1/status/blocks").json()["blocks"]) == 2, 30, "a new node knows the blocks")
        f.log.clear()
        time.sleep(3600 / speed)
        assert set(f.ops()) == ({"ListObjectsV2"} if audits else set()), f.ops()
        assert abs(f.count("ListObjectsV2") - audits * pages) <= pages, f"{f.count('ListObjectsV2')} pages in an hour, {pages} an audit"
        node.stop()
        stamps = [datetime.datetime.fromisoformat(line[3:26]) for line in node.log_tail(1000).splitlines() if line.startswith("ts=")]
        assert stamps[-1] - stamps[0] >= datetime.timedelta(hours=1), "by the node's own log"


# ---- the catalog ----

@pytest.mark.parametrize("damage", ["deleted", "garbage", "truncated"])
def test_the_catalog_goes_while_the_server_runs(fake, on_bucket, damage):
    f = fake()
    server = on_bucket(f.objstore_yaml(), **{"head_block-range": "10m"}).start()
    samples = gen.Samples(31, 40, now() // RANGE * RANGE - RANGE)
    for k in range(120):
        assert server.client().write(samples.batch(k)).status == 204
    server.flush()
    want = samples.all(120)
    assert inner(server) == want
    catalog = server.data / "catalog.sqlite"
    if damage == "deleted":
        for p in server.data.glob("catalog.sqlite*"):
            p.unlink()
    elif damage == "garbage":
        with open(catalog, "r+b") as file:
            file.write(os.urandom(catalog.stat().st_size))
    else:
        os.truncate(catalog, 4096)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        c = server.client()
        a = c.read_raw([(*remote.EVER, remote.ALL)])
        if a.status == 200:
            got = {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in remote.parse_read(a)[0].items()}
            assert got == want, "an answer without a word that something is missing"
        else:
            assert a.status == 503 and a.id, a.text
        t = now()
        assert c.write([(labels("newer"), [(t, bits(1.0))])]).status == 204
        want.setdefault(labels("newer"), []).append((t, bits(1.0)))
        time.sleep(0.1)
    procs.wait_for(lambda: inner(server) == want, 30, "the same answers")
    # What is written from now on must outlive the process: in a file that has a name.
    procs.wait_for(catalog.exists, 10, "a new catalog")
    server.flush()
    assert inner(server) == want
    server.kill9()
    server.start()
    procs.wait_for(lambda: inner(server) == want, 30, "the same answers after a restart")


# ---- damage in the bucket ----

DAMAGE = ["flipped_chunk_byte", "flipped_index_byte", "truncated_chunks", "missing_chunks", "missing_index", "garbage_meta"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_stands_alone(fake, on_bucket, new_node, damage):
    f = fake()
    server = on_bucket(f.objstore_yaml(config=IMPATIENT), **{"head_block-range": "10m", "bucket_audit-interval": "1s"}).start()
    start = now() // 600_000 * 600_000 - 6 * 600_000
    want, windows = {}, []
    for w in range(4):
        part = gen.Samples(50 + w, 30, start + w * 600_000, prefix=f"w{w}")
        for k in range(20):
            assert server.client().write(part.batch(k)).status == 204
        windows.append(part.all(20))
        want.update(windows[-1])
    blocks = sorted(server.flush(), key=lambda b: b["min_time"])
    assert len(blocks) == 4
    assert server.stop() == 0
    server = new_node(f, 4, **{"bucket_audit-interval": "1s"})
    victim, rest = blocks[1]["ulid"], {k: v for w in (0, 2, 3) for k, v in windows[w].items()}
    file = {"chunk": "chunks/000001", "index": "index", "meta": "meta.json"}[damage.split("_")[1].removesuffix("s") if damage != "missing_chunks" else "chunk"]
    key = f"{victim}/{file}"
    whole = f.objects[key]
    data = bytearray(whole[0])
    if damage.startswith("flipped"):
        at = len(data) // 2 if file != "index" else 40  # in the symbols, which every read needs
        data[at] ^= 0x10
        f.objects[key] = (bytes(data), whole[1], whole[2])
    elif damage.startswith("truncated"):
        f.objects[key] = (bytes(data[:-100]), whole[1], whole[2] + 5)
    elif damage == "garbage_meta":
        f.objects[key] = (b"{ this is not json", "0" * 32, whole[2] + 5)
    else:
        del f.objects[key]
    if damage == "garbage_meta":
        procs.wait_for(lambda: victim in server.log(), 20, "the audit names it")
    # Reads ask for all of it; whatever a first answer is, the rest is served from then on.
    def served():
        a = server.client().read_raw([(*remote.EVER, remote.ALL)])
        if a.status != 200:
            assert a.status in (500, 503) and a.id, a.text
            return None
        return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in remote.parse_read(a)[0].items()}
    got = procs.wait_for(served, 20, "the rest is served")
    if damage != "garbage_meta" or got != want:  # what the catalog remembers may serve as well
        assert got == rest, (len(got), len(rest))
        assert server.metric("varve_query_blocks_quarantined_total") + server.metric("varve_bucket_audit_bad_blocks_total") >= 1
        named = [line for line in server.log().splitlines() if victim in line and "level=error" in line]
        assert named and (file in named[0] or "meta.json" in named[0]), server.log_tail()
        row = next(b for b in server.bucket_ls() if b["ulid"] == victim)
        assert row["state"] == "quarantined" and row.get("reason"), row
        # Who asks for its time hears that something is missing.
        if damage != "garbage_meta":
            assert victim in server.client().read_raw([(*remote.EVER, remote.ALL)]).headers["X-Varve-Warning"]
            assert victim in server.client().get("/api/v1/labels").json()["warnings"][0]
            late = server.client().get(f"/api/v1/labels?start={row['max_time'] / 1000 + 1}").json()
            assert late["data"] and "warnings" not in late
        table = server.run("bucket", "ls", f"--data-dir={server.data}", f"--objstore.config-file={server.flags['objstore.config-file']}", check=0).stdout
        assert any(victim in line and "quarantined" in line and row["reason"][:20] in line for line in table.splitlines()), table
    args = ("bucket", "verify", f"--data-dir={server.data}", f"--objstore.config-file={server.flags['objstore.config-file']}")
    r = server.run(*args)
    assert r.returncode == 2 and victim in r.stdout and file in r.stdout, (r.returncode, r.stdout, r.stderr)
    assert server.run(*args, blocks[0]["ulid"]).returncode == 0
    assert server.run(*args, victim).returncode == 2
    # New data flows on.
    assert server.client().write([(labels("newer"), [(now(), bits(1.0))])]).status == 204
    # Mended, it is served again.
    f.objects[key] = (whole[0], whole[1], whole[2] + 60)
    server.run("bucket", "rebuild", *args[2:], check=0)
    procs.wait_for(lambda: {k: v for k, v in (served() or {}).items() if dict(k)["__name__"] != "newer"} == want, 30, "mended and rebuilt, it is read again")
    assert server.stop() == 0
