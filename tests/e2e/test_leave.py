"""Leaving in good order, whom a node takes orders from, and rings that nodes find by themselves."""
import http.client
import json
import os
import random
import subprocess
import threading
import time

import pytest
from lib import procs, remote
from lib.ledger import Ledger, seeded
from lib.wire import bits

SECRET = "a secret of tests, long enough"


def now():
    return int(time.time() * 1000)


def objstore(directory):
    return f"type: FILESYSTEM\nconfig:\n  directory: {directory}\n"


def drain_state(v):
    return json.loads(procs.http_get(v.url + "/-/drain")[1])


def post(v, path, headers=None):
    c = remote.Client(v.url)
    try:
        return c.request("POST", path, b"", headers)
    finally:
        c.close()


class Load:
    """Writers that go on until they are told to stop or nobody answers; each sample once, so what is lost is seen."""

    def __init__(self, urls, ledger, writers=2):
        self.ledger, self.stop, self.statuses, self.lock = ledger, threading.Event(), [], threading.Lock()
        self.threads = [threading.Thread(target=self._write, args=(urls[i % len(urls)], i), daemon=True) for i in range(writers)]
        for t in self.threads:
            t.start()

    def _write(self, url, number):
        c, n = remote.Client(url, "t"), 0
        while not self.stop.is_set():
            series = [(remote.labels("m", w=str(number), i=str(i)), [(now(), bits(float(n)))]) for i in range(20)]
            n += 1
            try:
                status = c.write(series).status
            except (OSError, http.client.HTTPException):
                status = None
            with self.lock:
                self.ledger.record_answer("t", series, status)
                self.statuses.append(status)
            time.sleep(0.01 if status == 204 else 0.1)
        c.close()

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join(30)


def plain(found):
    out = {}
    for k, samples in found.items():
        out.setdefault(tuple(p for p in k if p[0] not in ("tenant_id", "varve_node")), {}).update(samples)
    return {k: sorted(v.items()) for k, v in out.items()}


def all_in_the_bucket(varve, bucket, ledger):
    """A node that has nothing but the bucket has everything that was acknowledged."""
    reader = varve(name=f"reader-{random.randrange(1 << 30)}", objstore_config=objstore(bucket))
    until = time.monotonic() + 30
    while True:
        report = ledger.compare({"t": plain(reader.read("t"))})
        if report.clean or time.monotonic() > until:
            break
        time.sleep(0.3)  # its first look at the bucket is not over
    reader.stop()
    assert report.clean and report.acked > 500, str(report)


def test_a_drained_node_leaves_everything_in_the_bucket(varve, tmp_path):
    v, ledger = varve(objstore_config=objstore(tmp_path / "bucket")), Ledger()
    assert drain_state(v)["state"] == "active"
    load = Load([v.url], ledger)
    time.sleep(2)
    assert post(v, "/-/drain").json()["state"] == "draining"
    assert post(v, "/-/drain").status == 200  # once more is nothing else
    states = []
    while v.running():
        try:
            states.append(drain_state(v))
        except (OSError, AssertionError, ValueError):
            break
        time.sleep(0.05)
    assert v.wait(30) == 0
    load.end()
    order = [s for i, s in enumerate(x["state"] for x in states) if i == 0 or states[i - 1]["state"] != s]
    assert order == ["draining", "drained"], order
    assert states[-1]["windows"] == states[-1]["blocks_pending"] == states[-1]["bytes_pending"] == 0
    assert set(load.statuses) <= {204, 503, None}
    all_in_the_bucket(varve, tmp_path / "bucket", ledger)


def test_a_drain_that_is_killed_loses_nothing(varve, tmp_path):
    rng, ledger = seeded("killed drain"), Ledger()
    v = varve(objstore_config=objstore(tmp_path / "bucket"), drain_quiet="1s")
    for _ in range(10 if os.environ.get("VARVE_FULL") == "1" else 1):
        load = Load([v.url], ledger)
        time.sleep(1)
        assert post(v, "/-/drain").status == 200
        time.sleep(rng.uniform(0, 2.5))
        v.kill9()
        load.end()
        v.start()
        assert drain_state(v)["state"] == "active"  # it is told again, or stays
    assert post(v, "/-/drain").status == 200
    assert v.wait(60) == 0
    all_in_the_bucket(varve, tmp_path / "bucket", ledger)


def test_a_bucket_that_is_down_is_waited_for(varve, tmp_path):
    bucket, ledger = tmp_path / "bucket", Ledger()
    bucket.mkdir()
    v = varve(objstore_config=objstore(bucket), drain_timeout="1s", drain_quiet="0s")
    load = Load([v.url], ledger)
    time.sleep(1)
    load.end()
    os.rename(bucket, tmp_path / "away")
    bucket.write_text("not a directory")
    assert post(v, "/-/drain").status == 200
    procs.wait_for(lambda: "--drain.timeout" in v.log(), 120, "the log says that it takes long")
    assert drain_state(v)["state"] == "draining" and drain_state(v)["waits_for"]
    bucket.unlink()
    os.rename(tmp_path / "away", bucket)
    assert v.wait(120) == 0
    all_in_the_bucket(varve, bucket, ledger)


class Fleet:
    def __init__(self, spawn, tmp_path, n, factor, **flags):
        self.nodes = [spawn(procs.Varve, name=f"node{i}") for i in range(n)]
        self.addresses = [f"127.0.0.1:{v.port}" for v in self.nodes]
        self.ring, self.bucket, self.secret = tmp_path / "hashrings.json", tmp_path / "bucket", tmp_path / "secret"
        self.secret.write_text(SECRET + "\n", "utf-8")
        self.write_ring(self.addresses)
        for v, a in zip(self.nodes, self.addresses):
            v.flags = {"objstore.config": objstore(self.bucket), "replication-factor": factor, "hashrings.local-endpoint": a, "peer.secret-file": self.secret,
                       "hashrings.file": self.ring, **flags}
            v.start()

    def write_ring(self, addresses):
        new = self.ring.with_suffix(".new")
        new.write_text(json.dumps([{"endpoints": addresses}]), "utf-8")
        os.replace(new, self.ring)


def ring_of(v):
    return json.loads(procs.http_get(v.url + "/-/ring")[1])


def test_a_node_of_a_ring_leaves_when_no_ring_has_it(spawn, varve, tmp_path):
    f, ledger = Fleet(spawn, tmp_path, 3, 2), Ledger()
    load = Load([f.nodes[0].url, f.nodes[1].url], ledger)
    gone = f.nodes[2]
    time.sleep(1)
    # whom it takes the order from
    assert post(gone, "/-/drain").status == 401
    assert post(gone, "/-/drain", {"Authorization": f"Bearer {SECRET}x"}).status == 403
    assert drain_state(gone)["state"] == "active"
    tool = subprocess.Popen([procs.varve_binary(), "drain", gone.url, f"--peer.secret-file={f.secret}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    procs.wait_for(lambda: drain_state(gone)["state"] == "draining", 10, "the order is signed and taken")
    procs.wait_for(lambda: f.nodes[0].metrics().get(f'varve_peer_state{{peer="{f.addresses[2]}"}}') == 3, 10, "the others hear of it")
    time.sleep(2)
    s = drain_state(gone)
    assert s["state"] == "draining" and s["in_ring"] and "ring" in s["waits_for"]
    before = len(load.statuses)
    f.write_ring(f.addresses[:2])
    assert gone.wait(60) == 0
    assert tool.wait(30) == 0
    time.sleep(1)
    load.end()
    assert set(load.statuses) == {204} and len(load.statuses) > before  # nobody was refused anything meanwhile
    procs.wait_for(lambda: f.nodes[0].metrics().get(f'varve_peer_state{{peer="{f.addresses[2]}"}}') == 4, 10, "the others know that it need not be asked any more")
    for v in f.nodes[:2]:
        v.flush()
    all_in_the_bucket(varve, f.bucket, ledger)


def test_a_ring_is_found_among_peers(spawn, tmp_path):
    ports = [spawn(procs.Varve, name=f"probe{i}").port for i in range(3)]
    names = [",".join(f"127.0.0.1:{p}" for p in ports[:2]), f"127.0.0.1:{ports[2]}"]
    nodes = []
    for i, port in enumerate(ports):
        v = spawn(procs.Varve, name=f"found{i}")
        v.port = port
        v.flags = {"replication-factor": 2, "hashrings.local-endpoint": f"127.0.0.1:{port}", "peers": names, "peers.gone-after": "1h", "drain.quiet": "1s"}
        nodes.append(v)

    def members(v):
        r = ring_of(v)
        return set(r["hashrings"][0]["endpoints"]) if r["hashrings"] else set()

    all_three = {f"127.0.0.1:{p}" for p in ports}
    nodes[0].start()
    time.sleep(2)
    assert members(nodes[0]) == set() and "2" in ring_of(nodes[0])["waits"]
    nodes[1].start()
    nodes[2].start()
    procs.wait_for(lambda: all(members(v) == all_three for v in nodes), 30, "the three found each other")
    assert len({ring_of(v)["epoch"] for v in nodes}) == 1
    c = nodes[0].client("t")
    assert c.write([(remote.labels("m", i=str(i)), [(now(), bits(1.0))]) for i in range(100)]).status == 204
    # crashed is not gone, and a restart begins with the ring that was
    nodes[2].kill9()
    time.sleep(3)
    assert members(nodes[0]) == all_three
    nodes[1].stop()
    nodes[1].start()
    assert members(nodes[1]) == all_three
    nodes[2].start()
    # who leaves is left out at once
    assert post(nodes[2], "/-/drain").status == 200
    two = all_three - {f"127.0.0.1:{ports[2]}"}
    procs.wait_for(lambda: members(nodes[0]) == two and members(nodes[1]) == two, 20, "the ring is without it")
    assert nodes[2].wait(60) == 0
    assert c.write([(remote.labels("m", i=str(i)), [(now(), bits(2.0))]) for i in range(100)]).status == 204


def test_a_certificate_makes_a_peer_and_a_tenants_does_not(spawn, tmp_path):
    golden = procs.ROOT / "tests" / "golden" / "net"
    web = tmp_path / "web.yml"
    web.write_text(f"tls_server_config:\n  cert_file: {golden}/server.pem\n  key_file: {golden}/server.key\n  client_ca_file: {golden}/ca.pem\n"
                   "  client_auth_type: VerifyClientCertIfGiven\n", "utf-8")
    shown = [f"--peer.ca-file={golden}/ca.pem", f"--peer.tls-cert-file={golden}/client.pem", f"--peer.tls-key-file={golden}/client.key"]

    def node(name, peer):
        v = spawn(procs.Varve, name=name, flags={
            "web.config.file": web, "hashrings": '[{"endpoints":["127.0.0.1:1"]}]', "hashrings.local-endpoint": "127.0.0.1:2", "drain.quiet": "1s", "peer.tls-name": peer,
            "peer.tls-ca-file": golden / "ca.pem", "peer.tls-cert-file": golden / "server.pem", "peer.tls-key-file": golden / "server.key"})
        v.start(wait=False)
        procs.wait_for(lambda: "msg=ready" in v.log(), 30, "it is ready")
        return v

    v = node("other", "bob.test")
    r = v.run("drain", f"https://127.0.0.1:{v.port}", *shown, check=1)
    assert "401" in r.stderr and "err-varve-peer-unknown" in r.stderr
    v.stop()
    v = node("same", "alice.test")
    r = v.run("drain", f"https://127.0.0.1:{v.port}", shown[0], check=1)  # TLS, and no certificate
    assert "401" in r.stderr
    v.run("drain", f"https://127.0.0.1:{v.port}", *shown, check=0)
    assert v.wait(30) == 0


@pytest.mark.parametrize("flags,words", [
    ({"peers": "a"}, "host:port"), ({"peers": "dns+a"}, "host:port"), ({"peers": "a:1", "hashrings": "[]"}, "exclude"),
    ({"peers": "a:1", "peers.gone-after": "0s"}, "--peers.gone-after"), ({"hashrings": '[{"endpoints":["a:1"]}]', "peer.secret-file": "/nowhere"}, "--peer.secret-file"),
])
def test_a_flag_that_is_wrong_is_said(spawn, flags, words):
    v = spawn(procs.Varve, flags=flags)
    v.start(wait=False)
    assert v.wait(30) == 1
    assert words in v.log()
