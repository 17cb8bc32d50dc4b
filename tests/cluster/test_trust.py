"""Requests that say they come from a peer, and do not: 401 or 403, nothing stored, and the log says who it was."""
import hashlib
import hmac
import json
import os
import struct
import time

import pytest
from fleet import judge, procs
from load import Bodies

PEER_PATHS = [("POST", "/-/peer/write"), ("POST", "/-/peer/hint?for=127.0.0.1:1"), ("GET", "/-/peer/digest"), ("GET", "/-/peer/window"), ("GET", "/-/peer/changes?node=x&after=0")]
FRAME = {"Content-Type": "application/x-varve-peer"}


def signed(secret, method, target, body, ms, tenant="", nonce="0123456789abcdef", content_type=FRAME["Content-Type"]):
    """X-Varve-Peer as the head of cluster/cluster_trust.c tells it."""
    parts = [x if isinstance(x, bytes) else x.encode() for x in (method, target, tenant, content_type, str(ms), nonce, body)]
    words = b"".join(struct.pack("<Q", len(p)) for p in parts) + b"".join(parts)
    return {"X-Varve-Peer": f"v1 {ms} {nonce} {hmac.new(secret, words, hashlib.sha256).hexdigest()}"}


@pytest.fixture
def node(fleet):
    f = fleet(1)
    n = f.node()
    f.publish(f.nodes)
    f.settle()
    n.fleet = f
    return n


def head_of(node):
    return node.metric("varve_head_series"), node.metric("varve_ingest_samples_total")


def test_forged_requests_are_refused_and_logged_with_their_address(node):
    before, now = head_of(node), int(time.time() * 1000)
    client = node.client()
    cases = [("nothing", {}), ("no signature", {"X-Varve-Peer": "v1"}), ("rubbish", {"X-Varve-Peer": "\x80" * 40}), ("too long", {"X-Varve-Peer": "v1 " + "9" * 5000}),
             ("another secret", None), ("an old one", None), ("from the future", None), ("the secret itself", {"Authorization": f"Bearer {node.fleet.secret.read_text().strip()}"})]
    right = node.fleet.secret.read_bytes().strip()
    body = os.urandom(200)
    for method, path in PEER_PATHS:
        for name, headers in cases:
            if headers is None:
                headers = signed(os.urandom(32) if name == "another secret" else right, method, path, body, now + {"an old one": -3_600_000, "from the future": 3_600_000}.get(name, 0))
            a = client.request(method, path, body if method == "POST" else None, {**FRAME, **headers})
            if a.status == 404:
                continue  # not every build has every one of them; /-/peer/write is always there
            assert a.status in (401, 403), (method, path, name, a.status, a.text)
            assert a.id in ("err-varve-peer-unknown", "err-varve-peer-forged"), a.text
            assert right.decode() not in a.text
    assert client.request("POST", "/-/peer/write", b"x", FRAME).status == 401
    assert client.request("POST", "/-/peer/write", b"x", {**FRAME, **signed(os.urandom(32), "POST", "/-/peer/write", b"x", now)}).status == 403

    def write(sent, **said):
        """The answer to a body, signed as the peer that has the secret would sign what is said."""
        of = {"method": "POST", "target": "/-/peer/write", "body": sent, "ms": int(time.time() * 1000), **said}
        return client.request("POST", "/-/peer/write", sent, {**FRAME, **signed(right, **of)}).status

    assert write(b"no frame") == 400, "who knows the secret is believed, and told that this is no frame"
    assert write(b"no frame", body=b"another one") == 403
    assert write(b"no frame", target="/-/peer/hint") == 403 and write(b"no frame", method="PUT") == 403
    assert write(b"no frame", tenant="victim") == 403, "a tenant that was signed and not sent"
    assert write(b"no frame", ms=now - 600_000) == 403 and write(b"no frame", ms=now + 600_000) == 403
    assert head_of(node) == before
    assert "127.0.0.1:" in "".join(line for line in node.log().splitlines() if "peer" in line), "the log names who it was"


def test_a_member_with_another_secret_stores_nothing(fleet, tmp_path):
    f = fleet(1)
    f.three(2)
    other = tmp_path / "other-secret"
    other.write_text("f" * 48)
    stranger = f.router(flags={"peer.secret-file": other}, wait=True)
    shape = judge.Shape("strange", series=100, batch=100, start_ms=int(time.time() * 1000), step_ms=10)
    a = stranger.client().write_body(Bodies(shape).make(0, 0))
    assert a.status == 503 and a.headers.get("Retry-After"), (a.status, a.text)
    for n in f.nodes:
        assert not judge.ask(n.url, None, judge.matchers_of(shape), shape.time(0), shape.time(1), scope="local")
        assert "127.0.0.1:" in "".join(line for line in n.log().splitlines() if "peer" in line.lower() and "level=" in line), n.log_tail()
    assert f.routers[0].client().write_body(Bodies(shape).make(0, 0)).status == 204


def test_a_secret_is_changed_on_one_after_the_other(fleet, tmp_path):
    """Every process reads its own file, which changes at its own time: no request fails meanwhile."""
    f = fleet(3)
    mine = []
    for i in range(3):
        mine.append(tmp_path / f"secret-{i}")
        mine[i].write_text("a" * 48)
        f.node(flags={"peer.secret-file": mine[i]})
    mine.append(tmp_path / "secret-router")
    mine[3].write_text("a" * 48)
    router = f.router(flags={"peer.secret-file": mine[3]})
    f.publish(f.nodes)
    f.settle()
    router.wait_url(router.url + "/-/ready")
    load = f.load(router, series=300, batch=50, step_ms=500)
    load.wait_rounds(4)
    for path in mine:  # the storing nodes first, which know both from then on; the router at the end
        new = path.with_suffix(".new")
        new.write_text("b" * 48)
        os.replace(new, path)
        time.sleep(2.5)
    load.wait_rounds(6)
    load.end()
    s = load.book.summary()
    assert s["errors"] == s["refused"] == 0, s
    assert judge.check_all(load.book, f.nodes[0].url).clean


def test_a_tenant_is_what_a_peer_says_and_not_what_a_stranger_says_at_its_door(node):
    """A stranger's tenant header at a peer's door counts for nothing: it does not come that far."""
    a = node.client("victim").request("POST", "/-/peer/write", b"x" * 100, FRAME)
    assert a.status in (401, 403)
    status, text = procs.http_get(node.url + "/-/tenants")
    assert status != 200 or "victim" not in json.dumps(text)
