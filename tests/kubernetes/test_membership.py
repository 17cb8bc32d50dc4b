"""The ring has who can serve, and everybody has the ring within two seconds, whatever Pods do."""
import json
import threading
import time

import plane as planes
from lib import procs

CHANGE_S = 2.0


def begin(world, replicas=3, **flags):
    world.kubelet_start()
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", replicas))
    control = world.control(**flags)
    world.wait_ring(world.names(replicas))
    world.wait_told(world.names(replicas))
    return control


class Watcher:
    """Reads the published ring all the time: every one that ever was, with its time, held against who could serve at that time."""

    def __init__(self, world):
        self.world, self.stop, self.rings, self.wrong = world, threading.Event(), [], []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        last = None
        while not self.stop.wait(0.03):
            try:
                ring = self.world.ring()
            except OSError:
                return  # the test is over
            if ring is None or ring == last:
                continue
            self.rings.append((time.monotonic(), ring))
            for name in ring - (last or set()):
                member = self.world.kubelet.members.get(name)
                if member is None or not member.ready:
                    self.wrong.append(name)
            last = ring

    def end(self):
        self.stop.set()
        self.thread.join(5)
        return self.rings


def test_three_to_seven_to_three_with_trouble(world):
    control = begin(world)
    kubelet, watcher = world.kubelet, Watcher(world)
    kubelet.delay = {"s-3": 1.0, "s-4": 2.5}
    kubelet.pending = {"s-5"}
    kubelet.unready = {"s-6"}
    world.scale("s", 7)
    world.wait_ring(world.names(5))
    time.sleep(2)
    assert world.ring() == world.names(5)  # s-5 is stuck, s-6 replays
    assert control.states()["s-6"] == "joining"
    kubelet.unready = set()
    world.wait_ring(world.names(5) | {"s-6"})
    kubelet.crash("s-4")
    procs.wait_for(lambda: control.states()["s-4"] == "away", 5, "s-4 is away")
    assert "s-4" in world.ring()  # nothing is moved for a crash
    kubelet.pending = set()
    world.wait_ring(world.names(7))
    world.scale("s", 3)
    world.wait_ring(world.names(3))
    procs.wait_for(lambda: len(world.api.get("pods")["items"]) == 3, 30, "four Pods drained and went")
    world.wait_told(world.names(3))
    watcher.end()
    assert not watcher.wrong, watcher.wrong
    for _, ring in watcher.rings:
        assert len(ring) >= 3


def test_a_change_is_everywhere_in_two_seconds(world):
    begin(world)
    kubelet = world.kubelet
    took = []
    for n in (4, 5, 7, 5, 3):
        if n > 5:
            kubelet.unready = {f"s-{n - 1}"}
        world.scale("s", n)
        if n == 7:
            procs.wait_for(lambda: "s-6" in kubelet.members, 10, "s-6 runs")
            world.wait_ring(world.names(6))
            time.sleep(0.5)
            kubelet.unready = set()
            began = time.monotonic()
        else:
            began = time.monotonic()
            if n < 7 and n > len(world.ring()):
                procs.wait_for(lambda: f"s-{n - 1}" in kubelet.members, 10, "the last one runs")
                began = time.monotonic()
        world.wait_ring(world.names(n))
        world.wait_told(world.names(n))
        took.append(time.monotonic() - began)
    assert max(took) <= CHANGE_S, took


def ring_by_replicas(world):
    """What thanos-receive-controller of the talk would publish: a name for every number below spec.replicas."""
    return world.names(world.api.get("statefulsets", "s")["spec"]["replicas"])


def test_the_talks_feedback_loop_is_not_here(world):
    """An autoscaler that looks at failed writes: by spec.replicas it raises itself without end, by membership it stays where it is."""
    begin(world)
    kubelet = world.kubelet
    kubelet.pending = world.names(20, 3)  # the cluster has no room for more
    world.scale("s", 4)  # a moment of load

    def autoscale(ring_of, rounds):
        seen = []
        for _ in range(rounds):
            ring = ring_of()
            failing = [n for n in ring if n not in kubelet.members]  # writes to them fail, and are tried again
            replicas = world.api.get("statefulsets", "s")["spec"]["replicas"]
            if failing:
                world.scale("s", min(replicas + len(failing), 12))
            seen.append((len(ring), len(failing)))
            time.sleep(0.3)
        return seen

    assert all(failing == 0 and n == 3 for n, failing in autoscale(world.ring, 5))
    assert world.api.get("statefulsets", "s")["spec"]["replicas"] == 4
    loop = autoscale(lambda: ring_by_replicas(world), 5)
    assert loop[0] == (4, 1) and loop[-1][0] > 8 and loop[-1][1] > 5  # it feeds itself
    assert world.ring() == world.names(3)  # and ours did not follow


def test_the_first_ring_waits_for_the_factor(world):
    world.kubelet_start().pending = {"s-2"}
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", 3))
    control = world.control()
    procs.wait_for(lambda: control.ready()[0] == 200 and any("begins when 3" in w for w in control.members()["waiting"]), 15, "it says what it waits for")
    assert world.text() is None
    world.kubelet.pending = set()
    world.wait_ring(world.names(3))


def test_a_replaced_pod_moves_nothing(world):
    begin(world, 4)
    text = world.text()
    for i in range(4):
        uid = world.api.get("pods", f"s-{i}")["metadata"]["uid"]
        world.api.delete("pods", f"s-{i}")
        procs.wait_for(lambda: (world.api.find("pods", f"s-{i}") or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid, 20, "another Pod")
        procs.wait_for(lambda: f"s-{i}" in world.kubelet.members, 10, "its member runs")
        assert world.text() == text
    world.wait_told(world.names(4))


def test_who_is_away_too_long_is_dropped_and_may_come_back(world):
    begin(world, 5, control__gone_after="2s")
    world.kubelet.pending = {"s-1"}
    world.api.delete("pods", "s-1")
    began = time.monotonic()
    world.wait_ring(world.names(5) - {"s-1"})
    assert time.monotonic() - began > 1.5
    world.kubelet.pending = set()
    world.wait_ring(world.names(5))


def test_a_member_that_hangs_costs_the_others_nothing(world):
    begin(world, 4)
    world.kubelet.members["s-1"].hang = True
    time.sleep(1)
    world.scale("s", 5)
    procs.wait_for(lambda: "s-4" in world.kubelet.members, 10, "s-4 runs")
    began = time.monotonic()
    world.wait_ring(world.names(5))
    world.wait_told(world.names(5) - {"s-1"})
    assert time.monotonic() - began <= CHANGE_S
    world.kubelet.members["s-1"].hang = False
    world.wait_told(world.names(5), 15)


def test_routers_are_told_too_and_never_in_a_ring(world):
    begin(world)
    world.api.create("pods", {"metadata": {"name": "router-x", "labels": planes.SELECTOR}, "spec": {"containers": [{"name": "varve", "image": "varve"}]}})
    procs.wait_for(lambda: "router-x" in world.kubelet.members, 10, "the router runs")
    world.wait_told({"router-x"}, 5)
    assert world.ring() == world.names(3)


def test_the_secret_goes_with_orders(world, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("open, sesame: a secret\n")
    world.kubelet_start(secret="open, sesame: a secret")
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", 3))
    world.control(peer__secret_file=secret)
    world.wait_ring(world.names(3))
    world.wait_told(world.names(3))
    assert all(m.denied == 0 for m in world.kubelet.members.values())


def test_several_rings_and_every_key_of_the_base(world):
    world.kubelet_start()
    base = [{"hashring": "soft", "tenants": ["a-*"], "tenant_matcher_type": "glob", "algorithm": "ketama", "external_labels": {"x": "y"}},
            {"hashring": "default", "shuffle_sharding_config": {"shard_size": 3}}]
    world.base(json.dumps(base))
    world.api.create("statefulsets", planes.statefulset("p", 3, ring="soft"))
    world.api.create("statefulsets", planes.statefulset("s", 4))
    world.control(use_az_aware_hashring="true", replication_factor=3)
    procs.wait_for(lambda: world.ring("soft") == world.names(3, of="p") and world.ring() == world.names(4), 20, "both rings")
    rings = json.loads(world.text())
    assert {e["az"] for r in rings for e in r["endpoints"]} == {"p", "s"}
    for r in rings:
        r.pop("endpoints")
    assert rings == base


def test_zones_of_nodes(world):
    kubelet = world.kubelet_start()
    admin = world.plane.client()
    zones = {f"s-{i}": f"zone-{i % 2}" for i in range(4)}
    for name, zone in zones.items():
        kubelet.nodes[name] = f"{world.namespace}-{name}"
        admin.call("POST", "/api/v1/nodes", {"metadata": {"name": kubelet.nodes[name], "labels": {"topology.kubernetes.io/zone": zone}}})
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", 4))
    world.control(use_az_aware_hashring="true", control__node_zones="true")
    world.wait_ring(world.names(4))
    procs.wait_for(lambda: {e["address"].split(".")[0]: e["az"] for e in json.loads(world.text())[0]["endpoints"]} == zones, 5, "each has its Node's zone")
    # a Pod that goes takes nothing with it
    text = world.text()
    world.api.delete("pods", "s-1")
    procs.wait_for(lambda: "s-1" not in kubelet.members, 10, "it is gone")
    procs.wait_for(lambda: "s-1" in kubelet.members, 10, "it is back")
    assert world.text() == text
