"""Bad moments for a signal, a reload, a slow client; and limits of memory and log so small that they are met: each time the same answers afterwards."""
import os
import signal
import socket
import threading
import time

import pytest
from lib import ledger, procs, remote
from lib.fake_s3 import FakeS3, Hang
from lib.remote import labels
from lib.wire import bits, snappy

MIB = 1 << 20
QUIET = {"bucket_audit_interval": "0s", "head_cut_delay": "12h", "head_max_age": "24h"}


def now():
    return int(time.time() * 1000)


def inner(server, tenant=None):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(tenant, accept=(remote.STREAMED,)).items()}


class Bulk:
    """Rounds of n series of ten labels, one sample each, requests of 1,000 series; and what a read must give."""

    def __init__(self, n, rounds, name="bulk", start=None, step=15_000):
        self.n, self.rounds, self.step = n, rounds, step
        self.start = start if start is not None else now() // 7_200_000 * 7_200_000 - 7_200_000
        self.names = [labels(f"{name}_{i % 10}_total", cluster=f"eu-{i % 3}", container=f"worker-{i % 7}", instance=f"10.0.{i // 250 % 250}.{i % 250}:9100",
                             job=f"integrations/kubernetes/{i % 5}", namespace=f"team-{i % 20}", node=f"ip-10-{i // 500}.compute.internal",
                             pod=f"workload-{i // 50}-{i * 2654435761 % 2**32:08x}", prometheus="monitoring/k8s", series=f"{i:08d}") for i in range(n)]

    def time(self, r):
        return self.start + r * self.step

    @staticmethod
    def value(i, r):
        return bits(float(i * 31 + r * (i % 17)))

    def requests(self):
        for r in range(self.rounds):
            for at in range(0, self.n, 1000):
                yield [(self.names[i], [(self.time(r), self.value(i, r))]) for i in range(at, min(at + 1000, self.n))]

    def send(self, server, tenant=None):
        c = server.client(tenant)
        for series in self.requests():
            a = c.write(series)
            assert a.status == 204, a.text

    def want(self):
        return {n: [(self.time(r), self.value(i, r)) for r in range(self.rounds)] for i, n in enumerate(self.names)}


# ---- signals at bad moments ----

def test_sigterm_while_the_log_is_replayed(varve):
    server, bulk = varve(**QUIET), Bulk(40_000, 4)
    bulk.send(server)
    server.kill9()
    met = 0
    for pause in (0.0, 0.03, 0.1):
        mark = len(server.log())
        server.start(wait=False)
        procs.wait_for(lambda: "varve starts" in server.log()[mark:], 10, "it starts", 0.002)
        time.sleep(pause)
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 5
        text = server.log()[mark:]
        met += "stopping" in text and "log replayed" not in text
    assert met, "at least one signal came before the end of the replay"
    server.start()
    assert inner(server) == bulk.want()
    assert server.metric("varve_wal_frames_lost_total") == 0


def test_sigterm_during_a_flush(varve):
    """Blocks that were cut by then stay, the rest stays in the log; nothing twice."""
    server = varve(**QUIET, shutdown_grace="3s")
    t, tenants = now() - 600_000, [f"t{n:03d}" for n in range(400)]
    series = [(labels("m", i=str(i)), [(t + k * 1000, bits(float(i + k))) for k in range(5)]) for i in range(20)]
    for tenant in tenants:
        assert server.client(tenant).write(series).status == 204
    answers = []

    def flush():
        try:
            answers.append(server.client(timeout=60).request("POST", "/-/flush", b""))
        except (OSError, remote.http.client.HTTPException) as e:
            answers.append(e)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    procs.wait_for(lambda: server.log().count("window cut") >= 20, 30, "windows are being cut", 0.01)
    begin = time.monotonic()
    assert server.stop(30) == 0
    took = time.monotonic() - begin
    thread.join(10)
    cut = server.log().count("window cut")
    print(f"{cut} of {len(tenants)} windows were cut, the end took {took:.2f} s, the flush was answered {answers}")
    assert took < 3 and cut < len(tenants), "a flush is given up"
    assert isinstance(answers[0], Exception) or answers[0].id == "err-varve-shutting-down", answers
    server.start()
    for tenant in tenants[::20]:
        assert inner(server, tenant) == dict(series)
    blocks = server.flush()
    assert sorted(b["tenant"] for b in blocks) == tenants and all(b["samples"] == 100 for b in blocks)


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_sigterm_while_the_bucket_is_away(spawn, how):
    fake = FakeS3().start()
    try:
        server = spawn(procs.Varve, flags={"bucket.audit-interval": "1s", "head.block-range": "1m", "head.cut-delay": "1s", "shutdown.grace": "2s"})
        path = server.dir / "objstore.yml"
        path.write_text(fake.objstore_yaml())
        server.flags["objstore.config-file"] = path
        server.start()
        t = now() - 300_000
        assert server.client().write([(labels("m"), [(t, bits(1.0))])]).status == 204
        procs.wait_for(lambda: server.metric("varve_ship_blocks_total") == 1, 30, "a block is live")
        if how == "hangs":
            fake.plan("*", Hang(60), times=10**9)
        else:
            fake.stop()
        assert server.client().write([(labels("m"), [(t - 120_000, bits(2.0))])]).status == 204
        procs.wait_for(lambda: server.metric("varve_ship_pending_blocks") == 1, 30, "a block waits")
        time.sleep(0.5)
        read = threading.Thread(target=lambda: server.client().read_raw([(*remote.EVER, remote.ALL)]), daemon=True)
        read.start()
        time.sleep(0.3)
        begin = time.monotonic()
        assert server.stop(20) == 0
        assert time.monotonic() - begin < 4, "the grace is 2 s"
        read.join(5)
    finally:
        fake.stop()


def test_systemd_is_told(varve, tmp_path):
    def told(s):
        out = []
        s.settimeout(0.2)
        try:
            while True:
                out.append(s.recv(4096).decode())
        except socket.timeout:
            return out

    for address in (str(tmp_path / "n.sock"), "\0varve-test-" + str(os.getpid())):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(address)
            server = varve("notified-" + ("abstract" if address[0] == "\0" else "path"), env={"NOTIFY_SOCKET": address.replace("\0", "@")})
            Bulk(500, 2).send(server)
            first = told(s)
            assert sum("READY=1" in m.splitlines() for m in first) == 1, first
            assert server.stop() == 0
            assert "STOPPING=1" in told(s)
            server.start()
            again = told(s)
            replaying = [i for i, m in enumerate(again) if m.startswith("STATUS=replaying the log")]
            ready = [i for i, m in enumerate(again) if "READY=1" in m.splitlines()]
            assert len(ready) == 1 and replaying and max(replaying) < ready[0], again
            server.stop()


# ---- configuration ----

def bcrypt(password):
    import crypt

    return crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 4))


def test_a_bad_web_config_keeps_the_old_one(spawn):
    import base64

    def status(server, password):
        token = "Basic " + base64.b64encode(f"anna:{password}".encode()).decode()
        return remote.Client(server.url, headers={"Authorization": token}).get("/metrics")

    def reload(server, password):
        token = "Basic " + base64.b64encode(f"anna:{password}".encode()).decode()
        return remote.Client(server.url, headers={"Authorization": token}).request("POST", "/-/reload", b"")

    server = spawn(procs.Varve)
    path = server.dir / "web.yml"
    path.write_text(f"basic_auth_users:\n  anna: {bcrypt('old')}\n")
    server.flags["web.config.file"] = path
    server.start(wait=False)
    procs.wait_for(lambda: procs.http_get(server.url + "/-/ready")[0] == 200, 20, "ready")
    assert status(server, "old").status == 200
    for bad in (f"basic_auth_user:\n  anna: {bcrypt('new')}\n", "basic_auth_users: [", "basic_auth_users:\n  anna: not-a-hash\n", None):
        if bad is None:
            path.unlink()
        else:
            path.write_text(bad)
        a = reload(server, "old")
        assert a.status >= 500 or a.status == 400, a.text
        assert "web.yml" in a.text, a.text
        page = status(server, "old")
        assert page.status == 200 and "varve_config_last_reload_successful 0" in page.text
        assert status(server, "new").status == 401
    path.write_text(f"basic_auth_users:\n  anna: {bcrypt('new')}\n")
    server.signal(signal.SIGHUP)
    procs.wait_for(lambda: status(server, "new").status == 200, 10, "the new password")
    assert status(server, "old").status == 401
    assert "varve_config_last_reload_successful 1" in status(server, "new").text
    assert reload(server, "new").status == 200


@pytest.mark.parametrize("text, words", [("basic_auth_user:\n  a: b\n", ["basic_auth_users"]), ("tls_server_config:\n  cert_fiel: x\n", ["cert_fiel", "cert_file"]),
                                         ("tls_server_config:\n  cert_file: nowhere.pem\n  key_file: nowhere.key\n", ["nowhere.pem"]), (None, ["web.yml"])])
def test_a_wrong_web_config_is_refused_at_start(spawn, text, words):
    server = spawn(procs.Varve)
    path = server.dir / "web.yml"
    if text is None:
        path.mkdir()  # unreadable for everybody
    else:
        path.write_text(text)
    server.flags["web.config.file"] = path
    server.start(wait=False)
    assert server.wait(15) == 1, server.log_tail()
    said = [line for line in server.log().splitlines() if line.startswith("varve: ")]
    assert said and all(w in said[-1] for w in words), server.log_tail()


@pytest.mark.parametrize("key, meant", [("access_kye", "access_key"), ("part_sise", "part_size"), ("Bucket", "bucket"), ("http_confg", "http_config")])
def test_an_unknown_key_of_the_object_store_is_answered_with_the_one_that_was_meant(spawn, key, meant):
    server = spawn(procs.Varve)
    path = server.dir / "objstore.yml"
    path.write_text(f"type: S3\nconfig:\n  bucket: b\n  endpoint: 127.0.0.1:1\n  {key}: x\n")
    server.flags["objstore.config-file"] = path
    server.start(wait=False)
    assert server.wait(15) == 1, server.log_tail()
    said = [line for line in server.log().splitlines() if line.startswith("varve: ")]
    assert said and key in said[-1] and f"'{meant}'" in said[-1].replace('"', "'") and "did you mean" in said[-1].lower(), said


# ---- slow clients ----

def test_clients_that_drip_hold_nobody_up(varve):
    server = varve(http_idle_timeout="2s", http_request_timeout="4s", **QUIET)
    heads = [b"GET /metr", b"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
             b"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"POST /api/v1/read HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"]
    drips = [b"x", b"x", b"1\r\nx\r\n", b"x"]
    slow = []
    for i in range(120):
        s = socket.create_connection(("127.0.0.1", server.port))
        s.sendall(heads[i % 4])
        slow.append((s, drips[i % 4]))
    c, worst, ended, begin = server.client(), 0.0, set(), time.monotonic()
    n = 0
    while time.monotonic() - begin < 9 and len(ended) < len(slow):
        for i, (s, drop) in enumerate(slow):
            if i not in ended:
                try:
                    s.send(drop, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    ended.add(i)
        for _ in range(5):
            before = time.monotonic()
            assert c.write([(labels("m", i=str(n)), [(now(), bits(1.0))])]).status == 204
            worst, n = max(worst, time.monotonic() - before), n + 1
        assert c.get("/-/healthy").status == 200
        time.sleep(0.2)
    for s, _ in slow:
        s.close()
    print(f"{n} writes beside {len(slow)} dripping clients, the slowest {worst * 1000:.0f} ms; {len(ended)} were broken off after {time.monotonic() - begin:.1f} s")
    assert len(ended) == len(slow), "no client may drip for longer than --http.request-timeout"
    assert worst < 1
    assert server.metric("varve_http_timeouts_total") >= len(slow)
    assert len(inner(server)) == n


# ---- small limits ----

def keep_sending(server, book, until, seconds, name):
    """Ever new series, each answer into the ledger, a 503 sent again after its Retry-After. Returns the statuses met."""
    c, t, statuses, n = server.client(timeout=60), now() - 60_000, [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until(statuses):
        series = [(labels(name, id=f"{n:05d}-{i:04d}", text="x" * 60), [(t, bits(float(i)))]) for i in range(500)]
        a = c.write(series)
        statuses.append(a.status)
        assert a.status in (204, 503), a.text
        book.record_answer("default-tenant", series, a.status)
        if a.status == 503:
            assert int(a.headers["Retry-After"]) >= 1 and a.id == "err-varve-head-memory", a.text
            time.sleep(0.1)
        else:
            n += 1
    return statuses


def test_memory_that_is_short_means_early_blocks_then_503_and_then_goes_on(varve):
    server, book = varve(head_max_memory="24MiB", bucket_audit_interval="0s"), ledger.Ledger()
    met = keep_sending(server, book, lambda s: s.count(503) >= 1 and s[-1] == 204 and s.count(204) >= 150, 60, "filler")
    assert 204 in met
    early = [line for line in server.log().splitlines() if "window cut" in line]
    assert early and any("memory" in line for line in early), early[:3]
    print(f"{met.count(204)} requests taken, {met.count(503)} answered 503, {len(early)} early blocks, {server.rss() >> 20} MiB resident")
    if 503 in met:
        assert 204 in met[met.index(503):], "it recovers by itself"
    assert server.metric("varve_head_memory_bytes") <= 24 * MIB * 1.1
    report = book.compare({"default-tenant": inner(server)})
    assert report.clean, report
    server.kill9()
    server.start()
    report = book.compare({"default-tenant": inner(server)})
    assert report.clean, report


def test_a_log_that_may_not_grow_is_bounded_by_early_blocks(varve):
    server = varve(wal_max_size="4MiB", wal_segment_size="1MiB", **QUIET)
    book, most, c, rng = ledger.Ledger(), 0, server.client(), ledger.seeded("log")
    for n in range(450):
        t = now() - 3_600_000 + n * 1000
        series = [(labels("noise", n=str(n), i=str(i), **{k: f"{rng.getrandbits(256):064x}" for k in "abcd"}), [(t, rng.getrandbits(62))]) for i in range(100)]
        a = c.write(series)
        assert a.status == 204, a.text
        book.record_answer("default-tenant", series, a.status)
        most = max(most, server.metric("varve_wal_size_bytes"))
        time.sleep(0.005)
    written = server.metric("varve_wal_bytes_total")
    print(f"{written / MIB:.1f} MiB written to the log, at most {most / MIB:.1f} MiB of it on disk")
    assert written > 11 * MIB
    assert most <= 9 * MIB, "--wal.max-size, and what is written until the next look and while the blocks are"
    assert any('window cut' in line and 'why="log size"' in line for line in server.log().splitlines())
    server.kill9()
    server.start()
    report = book.compare({"default-tenant": inner(server)})
    assert report.clean, report


def test_a_log_bigger_than_memory_is_replayed(varve):
    """Eight windows of the same series, a third of the memory that it took to write them: windows become blocks while the log is read. So many series that the
    process itself, which needs a dozen MiB in both cases, is the lesser part."""
    server = varve(**QUIET)
    bulk = Bulk(40_000, 8, start=now() // 7_200_000 * 7_200_000 - 8 * 7_200_000, step=7_200_000)
    bulk.send(server)
    held, resident = server.metric("varve_head_memory_bytes"), server.rss()
    assert held > 72 * MIB
    server.kill9()
    server.flags["head.max-memory"] = "32MiB"
    server.start()
    peak, cut = server.rss_peak(), server.log().count("window cut to make room")
    print(f"{held / MIB:.0f} MiB of head before, {resident / MIB:.0f} MiB resident; while replayed with 32 MiB at most {peak / MIB:.0f} MiB resident, {cut} blocks cut")
    assert 2 <= cut <= 40
    assert peak <= 0.8 * resident or "VARVE_SANITIZED" in os.environ, "a sanitizer keeps freed memory"
    assert inner(server) == bulk.want()
    assert server.metric("varve_wal_frames_lost_total") == 0
    server.kill9()
    server.start()
    assert sum(b["samples"] for b in server.flush()) == 40_000 * 8
    assert inner(server) == bulk.want()
