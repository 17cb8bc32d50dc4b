"""The object stores behind bucket.h: the same promises on a directory, MinIO, moto and a scripted S3, and the bad days of the scripted one."""
import hashlib
import os
import pathlib
import random
import ssl
import subprocess
import threading
import time
import urllib.parse

import pytest

from lib import ledger, procs
from lib.fake_s3 import Answer, Cut, FakeS3, Hang, Headers, Lost, Reset, Status

MIB = 1 << 20


class Refused(Exception):
    def __init__(self, cls, message):
        super().__init__(f"{cls}: {message}")
        self.cls, self.message = cls, message


def word(s):
    return "%2D" if s == "-" else urllib.parse.quote(str(s), safe="/-_.~") or "-"


class Tool:
    """One bucket_tool process: one operation at a time."""

    def __init__(self, directory, yaml, env=None):
        directory.mkdir(parents=True, exist_ok=True)
        self.dir = directory
        (directory / "bucket.yml").write_text(yaml)
        binary = procs.find("bucket_tool", pathlib.Path(os.environ.get("VARVE_TOOLS") or procs.ROOT / "build" / "tool") / "bucket_tool")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.log = open(directory / "tool.log", "ab")
        self.p = subprocess.Popen([binary, str(directory / "bucket.yml")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                  env={**clean, "HOME": str(directory), **(env or {})})
        self.listed = []
        self._answer()

    def _answer(self):
        self.listed = []
        while True:
            line = self.p.stdout.readline()
            assert line, f"bucket_tool ended: {self.log_text()[-2000:]}"
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "object":
                key, size, mtime = rest.split(" ")
                self.listed.append((urllib.parse.unquote(key), int(size), int(mtime)))
            elif kind == "ok":
                return rest
            else:
                cls, _, message = rest.partition(" ")
                raise Refused(cls, message)

    def __call__(self, *words):
        self.p.stdin.write(" ".join([words[0], *map(word, words[1:])]) + "\n")
        self.p.stdin.flush()
        return self._answer()

    def log_text(self):
        return (self.dir / "tool.log").read_text()

    def list(self, prefix=""):
        self("list", prefix)
        return [(k, n) for k, n, _ in self.listed]

    def get(self, key):
        self("get", key, self.dir / "out")
        return (self.dir / "out").read_bytes()

    def range(self, key, off, n):
        self("range", key, off, n, self.dir / "out")
        return (self.dir / "out").read_bytes()

    def file(self, data, name="in"):
        (self.dir / name).write_bytes(data)
        return self.dir / name

    def refused(self, *words):
        with pytest.raises(Refused) as e:
            self(*words)
        return e.value

    def close(self):
        self.p.stdin.close()
        self.p.wait(timeout=60)
        assert self.p.returncode == 0, self.log_text()[-2000:]
        self.log.close()


@pytest.fixture
def tool(tmp_path):
    made = []

    def make(yaml, env=None):
        made.append(Tool(tmp_path / f"tool-{len(made)}", yaml, env))
        return made[-1]

    yield make
    for t in made:
        if t.p.poll() is None:
            t.close()


@pytest.fixture
def fake():
    made = []

    def make(**kw):
        made.append(FakeS3(**kw).start())
        return made[-1]

    yield make
    for f in made:
        f.stop()


STORES = ("directory", "minio", "moto", "fake", "fake-v1")


@pytest.fixture(params=STORES)
def store(request, tmp_path, spawn, fake):
    """(name, yaml of a prefix)"""
    if request.param == "directory":
        return request.param, lambda prefix, config="": procs.filesystem_yaml(tmp_path / "store") + (f"prefix: {prefix}\n" if prefix else "")
    if request.param.startswith("fake"):
        f = fake(page=7)
        version = "list_objects_version: v1\n" if request.param == "fake-v1" else ""
        return request.param, lambda prefix, config="": f.objstore_yaml(prefix, config + version)
    server = spawn(procs.MinIO if request.param == "minio" else procs.Moto).start()

    def yaml(prefix, config=""):
        text = server.objstore_yaml(prefix)
        return text.replace("  insecure: true\n", "  insecure: true\n" + "".join(f"  {line}\n" for line in config.splitlines()))

    return request.param, yaml


# ---- the same promises everywhere ----

def test_objects_come_back_as_they_went(store, tool):
    name, yaml = store
    t = tool(yaml("a/b"))
    rng = ledger.seeded("objects")
    for n in (0, 1, 4096, 300_001):
        data = rng.randbytes(n)
        size, crc, sha = t("put", f"U/chunks/{n:06}", t.file(data)).split(" ")
        assert (int(size), sha) == (n, hashlib.sha256(data).hexdigest())
        assert t.get(f"U/chunks/{n:06}") == data
        assert t("size", f"U/chunks/{n:06}") == str(n)
        for off, length in ((0, n), (n // 3, n // 3), (max(0, n - 1), min(1, n))):
            assert t.range(f"U/chunks/{n:06}", off, length) == data[off: off + length]
        assert t.refused("range", f"U/chunks/{n:06}", n // 2, n, t.dir / "x" if n else "/dev/null").cls == "corrupt" if n > 1 else True
    t("write", "U/meta.json", "{}")
    t("write", "U/meta.json", '{"a":1}')
    assert t.get("U/meta.json") == b'{"a":1}'
    assert t.refused("get", "U/none", "/dev/null").cls == "not-found"
    assert t.refused("size", "U/none").cls == "not-found"
    assert t.refused("range", "U/none", 0, 1, "/dev/null").cls == "not-found"
    t("delete", "U/meta.json")
    t("delete", "U/meta.json")
    assert t.refused("get", "U/meta.json", "/dev/null").cls == "not-found"
    t("check")
    assert [k for k, _ in t.list()] == ["U/chunks/000000", "U/chunks/000001", "U/chunks/004096", "U/chunks/300001"]
    # the same objects without the prefix, under their whole names
    whole = tool(yaml(""))
    assert [k for k, _ in whole.list("a/")][0] == "a/b/U/chunks/000000"


AWKWARD = ["a b", "a+b", "a%2Fb", "a&b=c", "a?b", "a#b", "é/ü", "日本/語", "a'b\"c", "<x>&amp;", "~t", "=", ";", "a\\b", "a:b", "*", "a,b"]


def test_awkward_names(store, tool):
    name, yaml = store
    t = tool(yaml("p"))
    for k in AWKWARD:
        t("write", k, k)
    want = sorted(AWKWARD, key=lambda k: k.encode())
    assert [k for k, _ in t.list()] == want
    for k in AWKWARD:
        assert t.get(k) == k.encode(), k
        assert t("size", k) == str(len(k.encode()))
        t("delete", k)
    assert t.list() == []


def test_listing_is_ascending_by_bytes_and_paged(store, tool):
    name, yaml = store
    t = tool(yaml("p"))
    rng = ledger.seeded("listing")
    files, dirs = set(), set()
    while len(files) < 40:
        k = "".join(rng.choice("a-.0/!z~") for _ in range(rng.randint(1, 7)))
        parts = k.split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        if any(p in ("", ".", "..") for p in parts) or k in dirs or above & files:
            continue
        files.add(k)
        dirs |= above
        t("write", k, "x")
    want = sorted(files, key=str.encode)
    assert [k for k, _ in t.list()] == want
    for prefix in sorted({k[:i] for k in want for i in range(len(k) + 1)}):
        if any(p in (".", "..") or (p == "" and i < prefix.count("/")) for i, p in enumerate(prefix.split("/"))):
            continue
        assert [k for k, _ in t.list(prefix)] == [k for k in want if k.startswith(prefix)], prefix


def test_only_one_creates(store, tool):
    """Eight processes at once; the loser is told that it is there; an object that is there stays as it was."""
    name, yaml = store
    tools = [tool(yaml("p")) for _ in range(8 if name == "fake" else 4)]
    wins = []
    for round_ in range(4):
        barrier = threading.Barrier(len(tools))
        results = {}

        def create(i):
            barrier.wait()
            try:
                tools[i]("absent", f"lease/{round_}", f"writer {i}")
                results[i] = "won"
            except Refused as e:
                results[i] = e.cls

        threads = [threading.Thread(target=create, args=(i,)) for i in range(len(tools))]
        for th in threads:
            th.start()
        for th in threads:
            th.join()
        winners = [i for i, r in results.items() if r == "won"]
        assert len(winners) == 1 and set(results.values()) == {"won", "exists"}, results
        assert tools[0].get(f"lease/{round_}") == f"writer {winners[0]}".encode()
        wins += winners
    assert [k for k, _ in tools[0].list() if k.startswith("varve/probe/")] == []


def test_large_files_go_in_parts(store, tool):
    name, yaml = store
    if name == "directory":
        t = tool(yaml("p"))
    else:
        t = tool(yaml("p", "part_size: 5MiB\n"))
    data = random.Random(1).randbytes(12 * MIB + 12345)
    size, _, sha = t("put", "U/chunks/000001", t.file(data)).split(" ")
    assert (int(size), sha) == (len(data), hashlib.sha256(data).hexdigest())
    assert t("size", "U/chunks/000001") == str(len(data))
    assert t.get("U/chunks/000001") == data
    assert t.range("U/chunks/000001", 5 * MIB - 3, 7) == data[5 * MIB - 3: 5 * MIB + 4]
    t("abort", "U/")
    t("abort", "")


def test_upload_memory_is_bounded_by_a_buffer(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="part_size: 16MiB\n"))
    path = t.dir / "big"
    with open(path, "wb") as out:
        for i in range(10):
            out.write(bytes([i]) * (10 * MIB))
    t("put", "big", path)
    peak = int(next(line for line in open(f"/proc/{t.p.pid}/status") if line.startswith("VmHWM")).split()[1])
    assert f.count("UploadPart") == 7
    assert peak < 40 * 1024, f"{peak} KiB resident for a file of 100 MiB"


# ---- bad days: the plan, what comes out, and what the store was asked ----

TROUBLE = {
    "500": Status(500),
    "500 after it took place": Status(500, done=True),
    "503 SlowDown": Status(503, "SlowDown"),
    "502 of a proxy": Answer(502, "<html>bad gateway</html>"),
    "404 of a proxy": Answer(404, "<html>not found</html>"),
    "429": Status(429, "RequestLimitExceeded"),
    "reset at once": Reset(0),
    "answer lost": Lost(0),
    "answer lost within its head": Lost(20),
    "closed without an answer": Hang(0),
    "RequestTimeout": Status(400, "RequestTimeout"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE.keys())
@pytest.mark.parametrize("times", [1, 3])
def test_trouble_is_passed_over(tool, fake, trouble, times):
    """Every kind of operation meets it, once or three times running, and comes through."""
    f = fake(page=2)
    t = tool(f.objstore_yaml("p", "part_size: 5MiB\n"))
    big = random.Random(2).randbytes(11 * MIB)
    small = t.file(b"small", "small")
    head404 = isinstance(trouble, Answer) and trouble.status == 404

    for op in ("PutObject", "GetObject", "ListObjectsV2", "DeleteObject", "HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload",
               "ListMultipartUploads"):
        if op == "HeadObject" and head404:
            continue  # HEAD has no body that could tell the one 404 from the other
        if times == 3 and op in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "ListMultipartUploads") and trouble is not TROUBLE["500"]:
            continue
        f.plan(op, trouble, times=times)
        if op in ("PutObject", "GetObject", "HeadObject", "DeleteObject"):
            t("put", "k", small)
            assert t.get("k") == b"small"
            assert t.range("k", 1, 3) == b"mal"
            assert t("size", "k") == "5"
            t("delete", "k")
            assert f.objects == {}
        elif op == "ListObjectsV2":
            for i in range(5):
                t("write", f"l/{i}", "x")
            assert t.list("l/") == [(f"l/{i}", 1) for i in range(5)]
            for i in range(5):
                t("delete", f"l/{i}")
        else:
            t("put", "big", t.file(big))
            assert f.objects["p/big"][0] == big
            t("abort", "")
            assert f.uploads == {}, "an unfinished upload stays"
            t("delete", "big")
        assert all(p[3] == 0 for p in f.plans), f"{op}: the plan was not met"


def test_uploads_are_reset_at_any_byte(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="part_size: 5MiB\n"))
    data = random.Random(3).randbytes(5 * MIB + 77777)
    path = t.file(data)
    for at in (0, 1, 1000, 65536, 5 * MIB - 1, 5 * MIB):
        f.plan("UploadPart", Reset(at))
        t("put", f"big/{at}", path)
        assert f.objects[f"big/{at}"][0] == data
        f.plan("PutObject", Reset(min(at, 70000)))
        t("put", "small", t.file(data[:77777], "small"))
        assert f.objects["small"][0] == data[:77777]
    assert f.uploads == {}


def test_cut_downloads_are_noticed(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    data = random.Random(4).randbytes(100_000)
    t("put", "k", t.file(data))
    for at in (0, 1, 50_000, 99_999):
        f.plan("GetObject", Cut(at))
        assert t.get("k") == data
        f.plan("GetObject", Cut(at))
        assert t.range("k", 0, 100_000) == data
        f.plan("GetObject", Cut(at, lie=True))  # Content-Length is right for what comes, Content-Range is not
        assert t.range("k", 0, 100_000) == data
    f.plan("GetObject", Headers({"Content-Range": "bytes 5-100004/200000"}))
    assert t.range("k", 0, 100_000) == data
    f.plan("GetObject", Cut(10, lie=True), times=100)
    assert t.refused("range", "k", 0, 100_000, "/dev/null").cls == "corrupt"


def test_object_shorter_than_asked_for_is_damage_at_once(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    t("write", "k", "0123456789")
    before = len(f.log)
    e = t.refused("range", "k", 5, 6, "/dev/null")
    assert e.cls == "corrupt" and "10" in e.message
    assert t.refused("range", "k", 10, 1, "/dev/null").cls == "corrupt"
    assert len(f.log) == before + 2


def test_retry_after_is_obeyed(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    for value in ("2", "date"):
        import email.utils
        header = value if value != "date" else email.utils.formatdate(time.time() + 3, usegmt=True)
        f.plan("PutObject", Status(503, "SlowDown", {"Retry-After": header}))
        t("write", "k", "x")
        a, b = f.log[-2:]
        assert 1.5 <= b.at - a.at <= 4, f"waited {b.at - a.at} s"
    f.plan("PutObject", Status(503, "SlowDown", {"Retry-After": "3000"}))
    began = time.time()
    e = t.refused("write", "k", "x")
    assert e.cls == "net" and "SlowDown" in e.message and time.time() - began < 1


def test_attempts_end(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="max_retries: 3\n"))
    f.plan("PutObject", Status(500), times=100)
    e = t.refused("write", "k", "x")
    assert e.cls == "net" and "InternalError" in e.message and "after 3 attempts" in e.message and "s3://metrics/k" in e.message
    assert f.count("PutObject") == 3


def test_hanging_server_is_given_up(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="http_config: {response_header_timeout: 1s}\nmax_retries: 2\n"))
    f.plan("GetObject", Hang(5))
    t("write", "k", "x")
    began = time.time()
    assert t.get("k") == b"x"
    assert 0.9 < time.time() - began < 4
    f.plan("PutObject", Hang(5), times=2)
    assert t.refused("write", "k", "x").cls == "net"


def test_server_gone_and_back(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    t("write", "k", "x")
    f.stop()
    threading.Timer(1.5, f.start).start()
    assert t.get("k") == b"x"
    f.stop()
    quick = tool(f.objstore_yaml(config="max_retries: 2\n"))
    e = quick.refused("check")
    assert e.cls == "net" and str(f.port) in e.message
    f.start()
    quick("check")


def test_complete_that_fails_within_a_200(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="part_size: 5MiB\n"))
    data = random.Random(5).randbytes(6 * MIB)
    path = t.file(data)
    error = "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
    f.plan("CompleteMultipartUpload", Answer(200, error))
    t("put", "a", path)
    assert f.objects["a"][0] == data and f.count("CompleteMultipartUpload") == 2
    f.plan("CompleteMultipartUpload", Answer(200, "  \n" + error, done=True))  # and yet it took place
    t("put", "b", path)
    assert f.objects["b"][0] == data
    f.plan("CompleteMultipartUpload", Answer(200, error), times=100)
    e = tool(f.objstore_yaml(config="part_size: 5MiB\nmax_retries: 3\n")).refused("put", "c", path)
    assert e.cls == "net" and "InternalError" in e.message
    assert "c" not in f.objects and f.uploads == {}, "what failed is aborted"
    f.plans.clear()
    f.plan("CompleteMultipartUpload", Answer(200, "<Error><Code>EntityTooLarge</Code></Error>"))
    assert t.refused("put", "c", path).cls == "limit"
    f.plan("CompleteMultipartUpload", Answer(200, "<html/>"))
    t("put", "c", path)
    f.plan("CompleteMultipartUpload", Answer(200, ""))
    t("put", "c", path)


def test_a_lost_upload_is_an_error_not_a_success(tool, fake):
    """NoSuchUpload after trouble, and another object stands under the key: not ours."""
    f = fake()
    t = tool(f.objstore_yaml(config="part_size: 5MiB\n"))
    data = random.Random(6).randbytes(6 * MIB)
    f.objects["k"] = (b"older", hashlib.md5(b"older").hexdigest(), 0)
    f.plan("CompleteMultipartUpload", Status(500))
    f.plan("CompleteMultipartUpload", Status(404, "NoSuchUpload"))
    e = t.refused("put", "k", t.file(data))
    assert e.cls == "net"
    assert f.objects["k"][0] == b"older"


def test_wrong_checksums_are_not_believed(tool, fake):
    f = fake(crc32c=False)
    t = tool(f.objstore_yaml(config="part_size: 5MiB\nmax_retries: 3\n"))
    wrong = Headers({"ETag": '"' + "0" * 32 + '"'})
    f.plan("PutObject", wrong)
    t("write", "k", "x")
    assert f.count("PutObject") == 2
    f.plan("PutObject", wrong, times=3)
    e = t.refused("write", "k", "x")
    assert e.cls == "corrupt" and "0" * 32 in e.message
    path = t.file(random.Random(7).randbytes(6 * MIB))
    f.plan("UploadPart", wrong, times=3)
    assert t.refused("put", "big", path).cls == "corrupt"
    assert f.uploads == {} and "big" not in f.objects
    f.crc32c = True
    f.plan("PutObject", Headers({"x-amz-checksum-crc32c": "AAAAAA=="}), times=3)
    assert t.refused("write", "k", "x").cls == "corrupt"
    f.plan("HeadObject", Headers({"Content-Length": "5"}))
    assert t.refused("put", "big", path).cls == "corrupt"


def test_etags_that_are_no_md5_lead_to_a_look_at_the_size(tool, fake):
    f = fake(crc32c=False)
    t = tool(f.objstore_yaml(config="part_size: 5MiB\n"))
    for etag in ('"d41d8cd98f00b204e9800998ecf8427e-1"', '"something-else"', None):
        before = f.count("HeadObject")
        f.plan("PutObject", Headers({"ETag": etag}))
        t("write", "k", "x")
        assert f.count("HeadObject") == before + 1
    f.plan("PutObject", Headers({"x-amz-server-side-encryption": "aws:kms", "ETag": '"' + "0" * 32 + '"'}))
    t("write", "k", "x")
    before = f.count("HeadObject")
    t("write", "k", "x")
    assert f.count("HeadObject") == before, "an MD5 that fits needs no HEAD"


def test_conditions_that_are_ignored_are_found_out(tool, fake):
    f = fake(conditional=False)
    t = tool(f.objstore_yaml())
    e = t.refused("absent", "lease", "me")
    assert e.cls == "unsupported" and "If-None-Match" in e.message
    assert f.objects == {}
    before = len(f.log)
    assert t.refused("absent", "lease", "me").cls == "unsupported"
    assert len(f.log) == before, "found out once a process"
    g = fake()
    g.plan("PutObject", Status(501, "NotImplemented", {}))
    assert tool(g.objstore_yaml()).refused("absent", "lease", "me").cls == "unsupported"


def test_create_if_absent_with_lost_answers(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    t("absent", "warm", "up")
    for trouble in (Lost(0), Status(500, done=True), Lost(30)):
        f.plan("PutObject", trouble)
        t("absent", f"lease/{trouble}"[:20], "me")  # it is there, and it is ours
        f.objects.clear()
    f.plan("PutObject", Status(500))
    f.objects["lease"] = (b"someone else", "x", 0)
    assert t.refused("absent", "lease", "me").cls == "exists"
    f.plan("PutObject", Status(409, "ConditionalRequestConflict"))
    t("absent", "conflict", "me")
    # the probe itself in trouble: nothing is concluded from it
    g = fake()
    g.plan("PutObject", Lost(0), nth=1)
    g.plan("PutObject", Status(500), nth=2)
    u = tool(g.objstore_yaml())
    u("absent", "lease", "me")
    assert u.refused("absent", "lease", "you").cls == "exists"


# ---- refusals in words ----

def test_errors_say_what_to_do(tool, fake):
    f = fake()
    f.bucket = "other"
    e = tool(f.objstore_yaml().replace("bucket: other", "bucket: metrics")).refused("check")
    assert e.cls == "net" and "NoSuchBucket" in e.message and 'create the bucket "metrics"' in e.message
    f.bucket = "metrics"
    for op in (("get", "k", "/dev/null"), ("write", "k", "x"), ("list", "")):
        f.plan("*", Status(404, "NoSuchBucket"))
        assert tool(f.objstore_yaml()).refused(*op).cls == "net", "a missing bucket is not a missing object"

    wrong = f.objstore_yaml().replace("fake-secret", "not-the-secret")
    e = tool(wrong).refused("check")
    assert e.cls == "denied" and "SignatureDoesNotMatch" in e.message and "the configuration" in e.message and "not-the-secret" not in e.message
    e = tool(f.objstore_yaml().replace("fake-access", "nobody")).refused("check")
    assert e.cls == "denied" and "InvalidAccessKeyId" in e.message

    f.region = "eu-west-3"
    e = tool(f.objstore_yaml(config="region: us-west-2\n")).refused("check")
    assert e.cls == "invalid" and "eu-west-3" in e.message and "us-west-2" in e.message
    t = tool(f.objstore_yaml())  # no region configured: found out
    t("write", "k", "x")
    f.region = "us-east-1"
    f.plan("PutObject", Status(301, "PermanentRedirect", {"x-amz-bucket-region": "ap-south-1", "Location": "http://127.0.0.1:1/"}), times=9)
    e = tool(f.objstore_yaml(config="region: us-east-1\n")).refused("write", "k", "x")
    assert e.cls == "invalid" and "ap-south-1" in e.message
    f.plans.clear()
    f.plan("PutObject", Status(307, "", {"Location": "http://127.0.0.1:1/"}))
    assert "redirects are not followed" in tool(f.objstore_yaml()).refused("write", "k", "x").message


def test_clock_that_is_wrong_is_corrected_for(tool, fake):
    for ahead in (3600 * 24 * 400, -7200):
        f = fake(clock_ahead=ahead)
        t = tool(f.objstore_yaml())
        t("write", "k", "x")
        assert t.get("k") == b"x"
        assert f.count("PutObject") == 2 and f.count("GetObject") == 1, "found out once"
        assert "clock differs" in t.log_text()


def test_credentials_that_expire_are_read_again(tool, fake, tmp_path):
    f = fake()
    aws = tmp_path / "aws-credentials"

    def write(access, secret, token):
        aws.write_text(f"[varve]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\naws_session_token = {token}\n")

    f.keys = {"A1": "S1"}
    f.tokens = {"A1": "T1"}
    write("A1", "S1", "T1")
    t = tool(f.objstore_yaml(config="region: us-east-1\n# AWS\n".replace("# AWS\n", "")).replace("  access_key: fake-access\n  secret_key: fake-secret\n", ""),
             env={"AWS_PROFILE": "varve", "AWS_SHARED_CREDENTIALS_FILE": str(aws)})
    t("write", "k", "x")
    f.tokens = {"A1": "T2"}  # ExpiredToken, with status 400
    write("A1", "S1", "T2")
    assert t.get("k") == b"x"
    f.keys = {"A2": "S2"}
    write("A2", "S2", "T3")
    assert t.get("k") == b"x"
    f.keys = {"A3": "S3"}
    assert t.refused("get", "k", "/dev/null").cls == "denied"  # nobody wrote the new ones yet
    write("A3", "S3", "T4")
    assert t.get("k") == b"x"


def test_listing_refuses_what_can_not_be(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml("p", "max_retries: 2\n"))

    def result(inner):
        return Answer(200, f"<ListBucketResult>{inner}</ListBucketResult>")

    one = "<Contents><Key>{}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    for bad in (result(one.format("q/outside")), result(one.format("p/b") + one.format("p/a")), result(one.format("p/a") * 2),
                result("<IsTruncated>true</IsTruncated>"), result(one.format("")), result(one.format("p/a").replace("<Size>1", "<Size>-1")),
                result(one.format("p/a").replace("2026", "year")), result("<EncodingType>url</EncodingType>" + one.format("p/%zz")),
                Answer(200, "<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult>&a;</ListBucketResult>"), Answer(200, "<html>"), Answer(200, ""),
                Answer(200, "<ListBucketResult>" + "<a>" * 100), result("<Name>" + "x" * 100_000 + "</Name>")):
        f.plan("ListObjectsV2", bad, times=2)
        e = t.refused("list", "")
        assert e.cls == "corrupt", bad
        f.plans.clear()
    loop = result("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>")
    f.plan("ListObjectsV2", loop, times=10)
    assert t.refused("list", "").cls == "corrupt"


def test_abort_uploads_takes_what_is_below_the_prefix(tool, fake):
    f = fake(page=3)
    t = tool(f.objstore_yaml("p"))
    for i, key in enumerate(["p/U/chunks/000001", "p/U/chunks/000002", "p/U/index", "p/V/index", "U/index"] * 3):
        f.uploads[f"id{i}"] = (key, {})
    t("abort", "U/")
    assert sorted(k for k, _ in f.uploads.values()) == ["U/index"] * 3 + ["p/V/index"] * 3
    t("put", "V/index", t.file(b"small"))
    assert len(f.uploads) == 6
    big = tool(f.objstore_yaml("p", "part_size: 5MiB\n"))
    big("put", "V/index", big.file(bytes(6 * MIB)))
    assert sorted(k for k, _ in f.uploads.values()) == ["U/index"] * 3, "what an earlier process left of the same key"
    f.plan("ListMultipartUploads", Status(403, "AccessDenied"), times=9)
    big("put", "V/index", big.file(bytes(6 * MIB)))


def test_connections_are_kept(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml())
    for i in range(20):
        t("write", f"k{i}", "x")
        t.get(f"k{i}")
    t.list()
    assert len(f.open) <= 1


def test_object_headers(tool, fake):
    f = fake()
    t = tool(f.objstore_yaml(config="put_user_metadata: {X-Amz-Storage-Class: STANDARD_IA, team: \"a  b\"}\nsse_config: {type: SSE-S3}\npart_size: 5MiB\n"))
    t("write", "k", "x")
    t("put", "big", t.file(bytes(6 * MIB)))
    for r in f.log:
        if r.op in ("PutObject", "CreateMultipartUpload"):
            assert r.headers["x-amz-storage-class"] == "STANDARD_IA" and r.headers["x-amz-server-side-encryption"] == "AES256"
            assert r.headers["content-type"] == "application/octet-stream"
        assert "expect" not in r.headers


def test_bucket_as_host_name(tool, fake):
    f = fake(host="localhost")
    t = tool(f.objstore_yaml("p", "bucket_lookup_type: virtual-hosted\npart_size: 5MiB\n"))
    data = random.Random(8).randbytes(6 * MIB)
    t("put", "a b/big", t.file(data))
    t("write", "k", "x")
    assert t.get("a b/big") == data and t.list() == [("a b/big", len(data)), ("k", 1)]
    assert {r.headers["host"] for r in f.log} == {f"metrics.localhost:{f.port}"}


def test_tls_is_verified(tool, fake, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=store",
                    "-addext", "subjectAltName=DNS:store.test,IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    f = fake(tls=context)
    e = tool(f.objstore_yaml(config="max_retries: 2\n")).refused("check")
    assert e.cls == "net" and "certificate" in e.message
    tool(f.objstore_yaml(config=f"http_config: {{tls_config: {{ca_file: {cert}}}}}\n"))("check")
    tool(f.objstore_yaml(config=f"http_config: {{tls_config: {{ca_file: {cert}, server_name: store.test}}}}\n"))("check")
    wrong = f.objstore_yaml(config=f"max_retries: 2\nhttp_config: {{tls_config: {{ca_file: {cert}, server_name: other.test}}}}\n")
    assert tool(wrong).refused("check").cls == "net"
    tool(f.objstore_yaml(config="http_config: {insecure_skip_verify: true}\n"))("check")
    missing = f.objstore_yaml(config="max_retries: 2\nhttp_config: {tls_config: {ca_file: /nonexistent.pem}}\n")
    try:
        assert tool(missing).refused("check").cls in ("net", "invalid")
    except Refused as e:  # said at start
        assert "/nonexistent.pem" in e.message
