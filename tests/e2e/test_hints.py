"""A node that was away gets what it missed from those that have it: after a kill under load, over restarts of who keeps it, and what does not fit is said to be owed."""
import os
import time

import pytest
from lib import procs, remote
from lib.wire import bits
from test_fleet_writes import Fleet, now

labels = remote.labels


@pytest.fixture
def fleet(tmp_path, spawn):
    def make(n=3, factor=3, **kw):
        return Fleet(tmp_path, spawn, n, factor, **kw)

    return make


def of(node, metric, **want):
    return sum(v for k, v in node.metrics().items() if k.split("{")[0] == metric and all(f'{a}="{b}"' in k for a, b in want.items()))


def pending(f, address, nodes):
    return sum(of(v, "varve_hints_pending_samples", peer=address) for v in nodes)


def wait(look, want, seconds=30):
    end = time.monotonic() + seconds
    while (got := look()) != want:
        assert time.monotonic() < end, f"{got} instead of {want}"
        time.sleep(0.1)


def write(client, series, t, n=1):
    a = client.write([(p, [(t + k, bits(float(k))) for k in range(n)]) for p in series])
    assert a.status == 204, a.text


def same_everywhere(f, tenant, n_series, n_samples):
    have = f.on_each(tenant)
    first = have[f.addresses[0]]
    assert len(first) == n_series and sum(len(s) for s in first.values()) == n_samples
    assert all(h == first for h in have.values())


def test_what_was_missed_is_delivered_when_the_node_is_back(fleet):
    f = fleet()
    series = [labels("s", i=str(i)) for i in range(100)]
    t = now()
    write(f.router.client("a"), series, t)
    wait(lambda: of(f.router, "varve_forward_writes"), 0)  # the third node, too, has it
    f.nodes[0].kill9()
    away = f.addresses[0]
    doors = [f.router, f.nodes[1], f.nodes[2]]
    for k in range(1, 31):
        write(doors[k % 3].client("a"), series, t + 10 * k, n=2)
    wait(lambda: pending(f, away, f.nodes[1:]), 30 * 200)
    assert pending(f, away, [f.router]) == 0  # it keeps nothing
    wait(lambda: all(of(v, "varve_hints_oldest_seconds") > 0 for v in f.nodes[1:]), True)
    assert os.path.isdir(f.nodes[1].data / "hints")
    # who keeps it is killed, too
    f.nodes[1].kill9()
    f.nodes[1].start()
    assert pending(f, away, f.nodes[1:]) == 30 * 200
    f.nodes[0].start()
    wait(lambda: pending(f, away, f.nodes), 0)
    same_everywhere(f, "a", 100, 100 + 30 * 200)
    assert sum(of(v, "varve_hints_delivered_total") for v in f.nodes) == 30 * 200
    assert sum(of(v, "varve_hints_dropped_total") for v in [f.router, *f.nodes]) == 0
    assert of(f.nodes[0], "varve_hints_pending_bytes") == 0
    # and nothing of it is left
    wait(lambda: os.listdir(f.nodes[1].data / "hints"), [])


def test_more_nodes_than_replicas(fleet):
    f = fleet(5, 3)
    series = [labels("s", i=str(i)) for i in range(300)]
    t = now()
    f.nodes[2].kill9()
    for k in range(20):
        write(f.router.client("b"), series, t + k)
    f.nodes[2].start()
    wait(lambda: (sum(pending(f, a, f.nodes) for a in f.addresses), sum(of(v, "varve_hints_delivered_total") for v in f.nodes) > 0), (0, True))
    have = f.on_each("b")
    for pairs, owners in zip(series, f.where("b", series)):
        for address in owners:
            assert len(have[address].get(pairs, [])) == 20, (pairs, address)


def test_what_does_not_fit_is_owed(fleet):
    f = fleet(3, 3, **{"hints.max-size": "1MiB"})
    t = now()
    away = f.addresses[0]
    f.nodes[0].kill9()
    for k in range(60):
        write(f.nodes[1].client("c"), [labels("s", i=str(i), x=os.urandom(20).hex()) for i in range(500)], t + k)
    wait(lambda: of(f.nodes[1], "varve_hints_owed_samples", peer=away) > 0, True)
    kept, owed = pending(f, away, f.nodes[1:]), of(f.nodes[1], "varve_hints_owed_samples", peer=away)
    assert kept + owed == 60 * 500
    assert of(f.nodes[1], "varve_hints_dropped_total", reason="size") == owed
    assert of(f.nodes[1], "varve_hints_pending_bytes") < 1 << 20
    time.sleep(1.5)  # the state is written once a second
    f.nodes[1].kill9()
    f.nodes[1].start()
    assert of(f.nodes[1], "varve_hints_owed_samples", peer=away) == owed
    f.nodes[0].start()
    wait(lambda: pending(f, away, f.nodes), 0)
    assert of(f.nodes[1], "varve_hints_owed_samples", peer=away) in (owed, 0)  # until repair has brought it


def test_only_peers_bring_hints(fleet):
    f = fleet(2, 2)
    a = f.nodes[0].client("x").request("POST", f"/-/peer/hint?for={f.addresses[1]}", b"", {"Content-Type": "application/x-varve-peer"})
    assert a.status == 401, a.text


def test_flags_are_judged(tmp_path):
    v = procs.Varve(tmp_path)
    for flag in ("--hints.max-size=1KiB", "--hints.rate=1", "--hints.max-age=0s"):
        assert flag.split("=")[0] in v.run(flag, f"--data-dir={tmp_path}/data", check=1).stderr
