"""Replicas hold the same samples again: a node that lost its disk, and one that missed writes, take what they lack from the others' open windows."""
import json
import random
import shutil
import subprocess
import time

import pytest
from lib import procs, remote
from lib.wire import bits
from test_fleet_writes import Fleet, now

labels = remote.labels


@pytest.fixture
def fleet(tmp_path, spawn):
    def make(n=3, factor=3, **kw):
        return Fleet(tmp_path, spawn, n, factor, router=False, **kw)

    return make


def digest(f, *args):
    urls = [f"http://{a}" for a in f.addresses]
    return subprocess.run([procs.varve_binary(), "digest", *urls, *args], capture_output=True, text=True, timeout=120)


def wait_agree(f, *args):
    """A write is answered by a quorum; its last replica may take a moment longer."""
    deadline = time.monotonic() + 10
    while (p := digest(f, *args)).returncode != 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert p.returncode == 0 and "differ" not in p.stdout, p.stdout + p.stderr
    return p


def repair_state(v):
    return v.client().get("/-/repair").json()


def wait_complete(f, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        states = [repair_state(v) for v in f.nodes]
        if all(s["complete"] and s["state"] == "idle" and all(n["done"] for n in s["nodes"]) for s in states):
            return states
        assert time.monotonic() < deadline, json.dumps(states, indent=1)
        time.sleep(0.2)


def settle(t):
    """Samples of the last 15 s are not compared."""
    time.sleep(max(0, (t + 17_000 - now()) / 1000))


def ask_all(f):
    for v in f.nodes:
        assert v.client().request("POST", "/-/repair", b"").status == 200
    time.sleep(1.5)
    return wait_complete(f)


def send(f, entry, t, n=300, tenant="team-a", value=1.0):
    c = f.nodes[entry].client(tenant)
    a = c.write([(labels(f"m{i % 7}", i=str(i)), [(t, bits(value + i))]) for i in range(n)])
    assert a.status == 204, a.text


def test_a_lost_disk_is_filled_again_from_the_others_windows(fleet):
    f = fleet()
    time.sleep(1)
    t = now()
    for k in range(20):
        send(f, k % 3, t + 500 * k)
    assert "agree" in wait_agree(f).stdout
    v = f.nodes[1]
    v.kill9()
    shutil.rmtree(v.data)
    v.start()
    p = digest(f)
    assert p.returncode == 1 and "differ" in p.stdout, p.stdout + p.stderr
    settle(t + 10_000)
    states = ask_all(f)
    wait_agree(f)
    assert states[1]["samples"]["stored"] == 20 * 300 and states[1]["samples"]["refused"] == 0
    assert states[0]["samples"]["stored"] == states[2]["samples"]["stored"] == 0
    have = f.on_each("team-a")
    assert len(have[f.addresses[1]]) == 300 and all(have[a] == have[f.addresses[0]] for a in f.addresses)


def test_a_node_that_missed_writes_has_them_when_it_is_back(fleet):
    f = fleet()
    time.sleep(1)
    t = now()
    send(f, 0, t)
    f.nodes[2].kill9()
    for k in range(1, 10):
        send(f, k % 2, t + 500 * k)
    f.nodes[2].start()
    settle(t + 10_000)
    ask_all(f)
    wait_agree(f)


def test_conflicts_end_the_same_everywhere(fleet):
    f = fleet()
    time.sleep(1)
    t = now()
    pairs = labels("torn")
    # One node alone has a value, which is no write; then the two others have another one, which is.
    f.nodes[0].kill9()
    f.nodes[1].kill9()
    assert f.nodes[2].client("c").write([(pairs, [(t, bits(2.0))])]).status == 503
    f.nodes[2].kill9()
    f.nodes[0].start()
    f.nodes[1].start()
    deadline = time.monotonic() + 20
    while f.nodes[0].client("c").write([(pairs, [(t, bits(1.0))])]).status != 204:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    f.nodes[2].start()
    settle(t)
    ask_all(f)
    ask_all(f)
    wait_agree(f)
    assert {a: s[pairs] for a, s in f.on_each("c").items()} == {a: [(t, bits(2.0))] for a in f.addresses}



def test_only_peers_are_told_what_windows_hold(fleet):
    f = fleet(2, 1)
    for path in ("windows", "digest", "window", "owed"):
        a = f.nodes[0].client("x").request("GET", f"/-/peer/{path}?with={f.addresses[1]}", b"")
        assert a.status == 401 and a.id == "err-varve-peer-unknown", a.text
    a = f.nodes[0].client("x").request("POST", f"/-/peer/repair?with={f.addresses[1]}", b"")
    assert a.status == 401, a.text


def test_what_hints_had_no_room_for_is_taken_from_windows(fleet):
    f = fleet(**{"hints.max-size": "1MiB"})
    time.sleep(1)
    rng = random.Random(7)
    series = [labels("m", i=str(i), pad="%0400x" % rng.getrandbits(1600)) for i in range(2000)]
    t = now()
    send(f, 0, t)
    f.nodes[2].kill9()
    for k in range(8):
        a = f.nodes[k % 2].client("team-a").write([(p, [(t + 100 * k, bits(1.0 + k))]) for p in series])
        assert a.status == 204, a.text

    def owed():
        return sum(v for n in f.nodes[:2] for k, v in n.metrics().items() if k.startswith("varve_hints_owed_samples"))

    deadline = time.monotonic() + 20
    while not owed():
        assert time.monotonic() < deadline, "everything found room"
        time.sleep(0.5)
    f.nodes[2].start()
    settle(t)
    ask_all(f)
    deadline = time.monotonic() + 90
    while owed() or digest(f).returncode != 0:
        assert time.monotonic() < deadline, (owed(), digest(f).stdout, repair_state(f.nodes[2]))
        time.sleep(1)
    assert repair_state(f.nodes[2])["samples"]["stored"] > 0


def test_nodes_without_a_ring_are_compared_by_all_they_have(varve):
    a, b = varve(name="a"), varve(name="b")
    t = now()
    for v in (a, b):
        assert v.client("x").write([(labels("m", i=str(i)), [(t + i, bits(1.0))]) for i in range(50)]).status == 204

    def run(*args):
        return subprocess.run([procs.varve_binary(), "digest", f"http://127.0.0.1:{a.port}", f"http://127.0.0.1:{b.port}", *args], capture_output=True, text=True,
                              timeout=60)

    p = run()
    assert p.returncode == 0 and p.stdout.startswith("agree") and "50 samples" in p.stdout, p.stdout + p.stderr
    # In another order, and twice: the same. A sample more, or another value: not.
    for i in reversed(range(50)):
        assert b.client("x").write([(labels("m", i=str(i)), [(t + i, bits(1.0))])]).status == 204
    assert run().returncode == 0
    assert a.client("y").write([(labels("m"), [(t, bits(1.0))])]).status == 204
    assert b.client("y").write([(labels("m"), [(t, bits(2.0))])]).status == 204
    p = run()
    assert p.returncode == 1 and "of other values or times" in p.stdout, p.stdout + p.stderr
    assert run("--tenant=x", "--quiet").stdout == ""
    p = subprocess.run([procs.varve_binary(), "digest", f"http://127.0.0.1:{a.port}"], capture_output=True, text=True, timeout=60)
    assert p.returncode == 1 and "two nodes" in p.stderr
