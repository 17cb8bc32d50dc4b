"""Peers that are slow, silent, reset or unreachable: by a proxy in front of one of three nodes, and by a network namespace. Factor 3: nobody may wait for the one."""
import itertools
import os
import subprocess
import time

import pytest
from fleet import LONG, end_load, procs
from test_restarts import no_client_noticed

HEALTHY_S, FAULT_S = (20, 40) if LONG else (10, 14)
# What two cores' scheduling adds to a clock that is read in Python, beside a dozen of processes.
GRAIN_MS = 5
MEMORY = 96 << 20  # a peer's queue may hold LIMIT_PEER_INFLIGHT_BYTES; this is it and some room


class Side:
    """What a router is before a fault, to be held against what it is in it and after it."""

    def __init__(self, node):
        self.node, self.rss, self.threads = node, node.rss(), node.threads()


def bounded(healthy, faulty, alone):
    """Twice what it was, or twice what the machine does to anybody in the same seconds."""
    assert faulty["p99_ms"] <= max(2 * max(healthy["p99_ms"], alone), healthy["p99_ms"] + GRAIN_MS), (healthy, faulty, alone)


def through(f, router, load, begin, end, name):
    """Healthy, faulty, healthy again; what must hold of all faults."""
    alone = f.beside()
    alone.wait_rounds(3)
    since = time.time() * 1e6
    time.sleep(HEALTHY_S)
    sides = [Side(n) for n in f.everybody()]
    at = time.time() * 1e6
    begin()
    time.sleep(FAULT_S)
    grown = {s.node.name: s.node.rss() - s.rss for s in sides}
    over = time.time() * 1e6
    threads = {s.node.name: s.node.threads() - s.threads for s in sides}
    end()
    load.wait_rounds(4)
    hints = f.wait_hints(90)
    # A deadline is ten seconds at most: what waited for the peer in the fault has ended now.
    for s in sides:
        procs.wait_for(lambda s=s: s.node.threads() <= s.threads, 30, f"{s.node.name} has {s.threads} threads again", 0.5)
    book, found = end_load(load, f)
    healthy, faulty, meanwhile = book.summary(since, at), book.summary(at, over), alone.book.summary(at, over)["p99_ms"]
    print(f"{name}: p50 {healthy['p50_ms']:.1f} -> {faulty['p50_ms']:.1f} ms, p99 {healthy['p99_ms']:.1f} -> {faulty['p99_ms']:.1f} ms of {faulty['requests']} requests, of one that is alone {meanwhile:.1f} ms; "
          f"grown {max(grown.values()) / 1048576:.1f} MiB, threads {threads}; hints delivered after {hints:.1f} s; {found}")
    no_client_noticed(book)
    assert max(grown.values()) <= MEMORY, grown
    assert max(threads.values()) <= 4, threads
    bounded(healthy, faulty, meanwhile)
    missing = f.replicas_agree(book)
    assert not missing, f"{len(missing)} of the replicas lack samples; first: {missing[:3]}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["hang", "slow", "reset", "blackhole", "refuse", "latency"])
def test_one_bad_peer_costs_nobody_else(fleet, mode):
    f = fleet(3)
    for i in range(3):
        f.node(proxied=i == 2)
    router = f.router()
    f.publish(f.nodes)
    f.settle()
    router.wait_url(router.url + "/-/ready")
    load = f.load(router, series=1500, batch=50)
    proxy = f.nodes[2].proxy
    through(f, router, load, lambda: proxy.set(mode), lambda: proxy.set("pass"), mode)


@pytest.mark.timeout(300)
def test_a_bad_peer_of_storing_nodes_that_take_writes_themselves(fleet):
    """No router: the client writes to a node that stores, and the peer hangs and resets in turn."""
    f = fleet(3)
    for i in range(3):
        f.node(proxied=i == 2)
    f.publish(f.nodes)
    f.settle()
    load = f.load(f.nodes[0], series=1500, batch=50)
    proxy = f.nodes[2].proxy
    through(f, f.nodes[0], load, lambda: proxy.set("hang"), lambda: (proxy.set("reset"), time.sleep(2), proxy.set("pass")), "hang, then reset")


# ---- network namespaces: a cable that is pulled, without anybody being told ----

serial = itertools.count(1)


class Namespace:
    """A namespace with one cable to this one: host is its address."""

    def __init__(self):
        k = next(serial) + os.getpid() % 200 * 16
        self.name, self.cable = f"varve-t{k}", f"vt{k}"
        net = f"10.{200 + k % 50}.{k // 50 % 250}"
        self.ours, self.host = f"{net}.1", f"{net}.2"
        self.inner = inner = self.cable + "i"
        try:
            for line in (f"netns add {self.name}", f"link add {self.cable} type veth peer name {inner}", f"link set {inner} netns {self.name}",
                         f"addr add {self.ours}/30 dev {self.cable}", f"link set {self.cable} up", f"-n {self.name} addr add {self.host}/30 dev {inner}",
                         f"-n {self.name} link set {inner} up", f"-n {self.name} link set lo up"):
                self.ip(line)
        except (OSError, subprocess.CalledProcessError) as e:
            self.remove()
            pytest.skip(f"no network namespaces here: {getattr(e, 'stderr', e)}")

    @staticmethod
    def ip(line, check=True):
        subprocess.run(["ip", *line.split()], check=check, capture_output=True, text=True)

    def pull(self):
        """At its end: ours keeps its address and loses only what it sends."""
        self.ip(f"-n {self.name} link set {self.inner} down")

    def plug(self):
        self.ip(f"-n {self.name} link set {self.inner} up")

    def remove(self):
        for line in (f"link del {self.cable}", f"netns del {self.name}"):
            try:
                self.ip(line, check=False)
            except OSError:
                pass


@pytest.fixture
def namespace():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    n = Namespace()
    yield n
    procs.stop_all()
    n.remove()


@pytest.mark.timeout(300)
def test_a_pulled_cable(fleet, namespace):
    """Nobody is told: packets go nowhere, in both directions, also those of open connections."""
    f = fleet(3)
    for i in range(3):
        if i == 2:
            f.node(host=namespace.host, wrap=("ip", "netns", "exec", namespace.name))
        else:
            f.node(host=namespace.ours)
    router = f.router(host=namespace.ours)
    f.publish(f.nodes)
    f.settle()
    router.wait_url(router.url + "/-/ready")
    load = f.load(router, series=1500, batch=50)
    cut = f.nodes[2]
    alive = f.nodes[:2]
    beside = f.beside()
    beside.wait_rounds(3)
    since = time.time() * 1e6
    time.sleep(HEALTHY_S)
    rss, at = router.rss(), time.time() * 1e6
    namespace.pull()
    time.sleep(FAULT_S)
    over, grown = time.time() * 1e6, router.rss() - rss
    assert all(n.ready()[0] == 200 for n in alive)
    namespace.plug()
    procs.wait_for(lambda: cut.ready()[0] == 200, 30, "the cable is plugged in again")
    load.wait_rounds(4)
    f.wait_hints(90)
    book, found = end_load(load, f)
    healthy, faulty = book.summary(since, at), book.summary(at, over)
    print(f"pulled: p99 {healthy['p99_ms']:.1f} -> {faulty['p99_ms']:.1f} ms; the router grew by {grown / 1048576:.1f} MiB; {found}")
    no_client_noticed(book)
    assert grown <= MEMORY
    bounded(healthy, faulty, beside.book.summary(at, over)["p99_ms"])
    assert not f.replicas_agree(book)
