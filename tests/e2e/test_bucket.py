"""The same life on each kind of bucket: a directory, MinIO, a second S3 server. Blocks arrive whole, are found again, and outages cost nothing."""
import json
import os
import pathlib
import shutil
import time

import pytest
from lib import gen, ledger, procs, tsdb
from lib.remote import labels
from lib.wire import bits

RANGE = 7_200_000


def now():
    return int(time.time() * 1000)


class Directory:
    """The interface of MinIO and Moto, on a directory."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)

    def objstore_yaml(self, prefix=""):
        return procs.filesystem_yaml(self.dir) + (f"prefix: {prefix}\n" if prefix else "")

    def list(self, prefix=""):
        return {p.relative_to(self.dir).as_posix(): p.stat().st_size for p in self.dir.rglob("*")
                if p.is_file() and p.relative_to(self.dir).as_posix().startswith(prefix)}

    def download(self, directory, prefix=""):
        shutil.copytree(self.dir, directory, dirs_exist_ok=True)

    def delete(self, key):
        (self.dir / key).unlink()

    def put(self, key, body):
        (self.dir / key).parent.mkdir(parents=True, exist_ok=True)
        (self.dir / key).write_bytes(body)


class OnS3:
    def __init__(self, server):
        self.server, self.s3 = server, server.s3

    def objstore_yaml(self, prefix=""):
        return self.server.objstore_yaml(prefix)

    def list(self, prefix=""):
        return self.s3.list(self.server.bucket, prefix)

    def download(self, directory, prefix=""):
        self.s3.download(self.server.bucket, pathlib.Path(directory), prefix)

    def delete(self, key):
        self.s3.delete(self.server.bucket, key)

    def put(self, key, body):
        self.s3.put(self.server.bucket, key, body)


@pytest.fixture(params=["directory", "minio", "moto"])
def bucket(request, spawn, tmp_path):
    if request.param == "directory":
        return Directory(tmp_path / "the-bucket")
    return OnS3(spawn(procs.MinIO if request.param == "minio" else procs.Moto).start())


@pytest.fixture
def minio(spawn):
    return spawn(procs.MinIO).start()


def on_bucket(spawn, yaml, name=None, **flags):
    server = spawn(procs.Varve, name=name, flags=flags)
    path = server.dir / "objstore.yml"
    path.write_text(yaml)
    server.flags["objstore.config-file"] = path
    return server


def filled(server, steps=500, n=60):
    """Writes two windows of samples; what a read must give."""
    samples = gen.Samples(21, n, now() // RANGE * RANGE - 2 * RANGE)
    c = server.client()
    for k in range(steps):
        a = c.write(samples.batch(k))
        assert a.status == 204, a.text
    return samples.all(steps)


def inner(server):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read().items()}


@pytest.mark.parametrize("prefix", ["", "some/where"])
def test_blocks_arrive_whole(bucket, spawn, tmp_path, prefix):
    server = on_bucket(spawn, bucket.objstore_yaml(prefix)).start()
    want = filled(server)
    blocks = server.flush()
    assert len(blocks) >= 2 and all(b["state"] == "live" for b in blocks)
    under = prefix + "/" if prefix else ""
    keys = bucket.list()
    for b in blocks:
        mine = {k[len(under) + 27:] for k in keys if k.startswith(f"{under}{b['ulid']}/")}
        assert mine == {"meta.json", "index", "chunks/000001"}, mine
    bucket.download(tmp_path / "copy", under)
    assert tsdb.dump_dir(tmp_path / "copy" / prefix, external=False) == want
    assert inner(server) == want
    assert server.stop() == 0


def test_reads_come_from_the_bucket_when_nothing_is_local(bucket, spawn):
    server = on_bucket(spawn, bucket.objstore_yaml()).start()
    want = filled(server)
    server.flush()
    server.stop()
    shutil.rmtree(server.data)  # a new node, the same bucket
    server.start()
    procs.wait_for(lambda: inner(server) == want, 30, "a new node finds every block")


@pytest.mark.parametrize("damage", ["deleted", "garbage", "truncated", "old"])
def test_the_catalog_is_rebuilt_from_the_bucket(bucket, spawn, damage):
    server = on_bucket(spawn, bucket.objstore_yaml()).start()
    want = filled(server, steps=250)
    server.flush()
    server.stop()
    old = server.dir / "old.sqlite"
    shutil.copy(server.data / "catalog.sqlite", old)
    server.start()
    t = now()
    assert server.client().write([(labels("newer"), [(t, bits(1.0))])]).status == 204
    want[labels("newer")] = [(t, bits(1.0))]
    before = server.flush()
    server.stop()
    for extra in server.data.glob("catalog.sqlite-*"):
        extra.unlink()
    catalog = server.data / "catalog.sqlite"
    if damage == "deleted":
        catalog.unlink()
    elif damage == "garbage":
        catalog.write_bytes(os.urandom(50_000))
    elif damage == "truncated":
        catalog.write_bytes(catalog.read_bytes()[:5000])
    else:
        shutil.copy(old, catalog)
    server.start()
    procs.wait_for(lambda: inner(server) == want, 30, "the same answers")
    key = lambda rows: sorted(json.dumps({k: b[k] for k in ("ulid", "tenant", "min_time", "max_time", "samples", "series", "labels", "state")}, sort_keys=True)
                              for b in rows)
    assert key(server.bucket_ls()) == key(before)


def test_verify_names_what_is_wrong(bucket, spawn):
    server = on_bucket(spawn, bucket.objstore_yaml()).start()
    filled(server, steps=100)
    blocks = server.flush()
    args = ("bucket", "verify", f"--data-dir={server.data}", f"--objstore.config-file={server.flags['objstore.config-file']}")
    assert server.run(*args).returncode == 0
    victim = blocks[0]["ulid"]
    bucket.put(f"{victim}/chunks/000001", b"\x85\xbd\x40\xdd\x01\0\0\0 not what was there")
    r = server.run(*args)
    assert r.returncode != 0 and victim in r.stdout + r.stderr and "chunks/000001" in r.stdout + r.stderr
    assert server.run(*args, blocks[-1]["ulid"]).returncode == (0 if len(blocks) > 1 else r.returncode)
    shown = server.run("bucket", "inspect", victim, *args[2:])
    assert shown.returncode == 0 and victim in shown.stdout
    # A mistyped path is no empty bucket, and nothing is made there.
    typo = server.data.with_name("dtaa")
    r = server.run("bucket", "ls", f"--data-dir={typo}")
    assert r.returncode == 1 and str(typo) in r.stderr and not typo.exists()


def test_a_bucket_that_is_away_costs_nothing(minio, spawn):
    server = on_bucket(spawn, minio.objstore_yaml(), **{"head.block-range": "1m", "head.cut-delay": "1s", "bucket.audit-interval": "0s"}).start()
    book, c = ledger.Ledger(), server.client()

    def write(n):
        series = [(labels("steady", i=str(i)), [(now() + n, bits(float(n)))]) for i in range(50)]
        a = c.write(series)
        book.record_answer("default-tenant", series, a.status)
        assert a.status == 204, a.text

    write(0)
    minio.kill9()
    end, n = time.monotonic() + 75, 0
    while time.monotonic() < end:
        n += 1
        write(n)
        time.sleep(0.25)
    procs.wait_for(lambda: server.metric("varve_ship_pending_blocks") >= 1, 90, "blocks wait on disk")
    assert inner(server)  # reads of local data go on
    assert "127.0.0.1" in server.log() and "level=" in server.log()
    minio.start()
    procs.wait_for(lambda: server.metric("varve_ship_pending_blocks") == 0, 90, "uploads resume by themselves")
    server.flush()
    report = book.compare({"default-tenant": inner(server)})
    assert report.clean, report
    assert not minio.s3.uploads(minio.bucket)


@pytest.mark.parametrize("wrong", ["secret", "bucket"])
def test_a_bucket_that_refuses_is_said_in_words(minio, spawn, wrong):
    yaml = minio.objstore_yaml()
    bad = yaml.replace(minio.secret_key, "not-the-secret") if wrong == "secret" else yaml.replace(f"bucket: {minio.bucket}", "bucket: nowhere")
    server = on_bucket(spawn, bad, **{"head.block-range": "1m", "flush.timeout": "5s"})
    server.start()
    t = now() - 300_000
    assert server.client().write([(labels("up"), [(t, bits(1.0))])]).status == 204
    a = server.client(timeout=60).request("POST", "/-/flush", b"")
    assert a.status >= 500 and a.id
    assert server.client().write([(labels("up"), [(t + 1, bits(2.0))])]).status == 204
    words = "SignatureDoesNotMatch" if wrong == "secret" else "nowhere"
    assert words.lower() in server.log().lower() or ("secret" in server.log() if wrong == "secret" else False), server.log_tail()
    assert inner(server) == {labels("up"): [(t, bits(1.0)), (t + 1, bits(2.0))]}
    server.stop()
    server.flags["objstore.config-file"].write_text(yaml)
    server.start()
    server.flush()
    assert inner(server) == {labels("up"): [(t, bits(1.0)), (t + 1, bits(2.0))]}


def test_killed_while_shipping_leaves_no_orphan(bucket, spawn, tmp_path):
    rng = ledger.seeded("shipping")
    server = on_bucket(spawn, bucket.objstore_yaml(), **{"head.block-range": "10m", "head.cut-delay": "1s"}).start()
    want = filled(server, steps=240)
    import threading

    for _ in range(4):
        t = threading.Thread(target=lambda: server.client().request("POST", "/-/flush", b""), daemon=True)
        threading.excepthook = lambda *a: None
        t.start()
        time.sleep(rng.random() * 0.4)
        server.kill9()
        t.join(10)
        server.start()
    blocks = server.flush()
    assert inner(server) == want
    listed = {b["ulid"] for b in blocks}
    keys = bucket.list()
    in_bucket = {k.split("/")[0] for k in keys if len(k.split("/")[0]) == 26}
    assert in_bucket == listed
    assert {k.split("/")[0] for k in keys if k.endswith("/meta.json")} >= in_bucket
    bucket.download(tmp_path / "copy")
    assert tsdb.dump_dir(tmp_path / "copy", external=False) == want  # no sample twice either
