"""The controller itself: one of two leads, it outlives the API, and edits by hand end as the flag says."""
import json
import os
import signal
import time

import plane as planes
from lib import procs
from test_membership import begin


def leaders(controllers):
    return [c for c in controllers if c.running() and c.metric("varve_control_leader") == 1.0]


def test_of_two_one_leads_and_the_other_takes_over(world):
    a = begin(world)
    b = world.control("control-b")
    procs.wait_for(lambda: b.ready()[0] == 200, 10, "the second one is ready")
    for _ in range(20):
        assert leaders([a, b]) == [a]
        time.sleep(0.1)
    # SIGTERM lets the lease go: no waiting for its end
    a.signal(signal.SIGTERM)
    assert a.wait(15) == 0
    began = time.monotonic()
    procs.wait_for(lambda: leaders([b]) == [b], 10, "the other one leads")
    assert time.monotonic() - began < 2.5
    world.scale("s", 4)
    world.wait_ring(world.names(4))
    # kill -9 does not: it takes the lease's duration
    c = world.control("control-c")
    b.signal(signal.SIGKILL)
    b.wait(10)
    procs.wait_for(lambda: leaders([c]) == [c], 15, "the third one leads")
    world.scale("s", 5)
    world.wait_ring(world.names(5))
    world.wait_told(world.names(5))


def test_a_leader_that_slept_does_no_harm(world):
    a = begin(world)
    b = world.control("control-b")
    procs.wait_for(lambda: b.ready()[0] == 200, 10, "the second one is ready")
    os.kill(a.pid, signal.SIGSTOP)
    try:
        procs.wait_for(lambda: leaders([b]) == [b], 15, "the other one leads")
        world.scale("s", 5)
        world.wait_ring(world.names(5))
    finally:
        os.kill(a.pid, signal.SIGCONT)
    for _ in range(20):
        assert world.ring() == world.names(5)
        time.sleep(0.1)
    assert leaders([a, b]) == [b]
    world.wait_told(world.names(5))


def test_without_the_api_nothing_changes_and_then_it_catches_up(world):
    a = begin(world, 5, control__gone_after="6s")
    text = world.text()
    world.plane.stop_apiserver()
    try:
        time.sleep(1)
        # a member that is away meanwhile: the time in which nobody can see whether a replacement comes does not count
        world.kubelet.members["s-1"].ready = False
        time.sleep(7)
        assert a.running()
        assert procs.http_get(a.url("/-/healthy"))[0] == 200
        assert a.ready()[0] == 200
        assert a.members()["trouble"]
        assert procs.http_get(a.url("/-/ring"))[1] == text
        world.kubelet.unready = {"s-1"}
    finally:
        world.plane.start_apiserver()
    procs.wait_for(lambda: a.members()["fresh"] and a.members()["leading"], 40, "it sees and leads again")
    for _ in range(20):
        assert world.text() == text
        time.sleep(0.1)
    world.wait_ring(world.names(5) - {"s-1"}, 15)
    world.kubelet.unready = set()
    world.scale("s", 6)
    world.wait_ring(world.names(6), 40)
    world.wait_told(world.names(6))


def test_started_without_the_api_it_waits(world):
    world.kubelet_start()
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", 3))
    world.plane.stop_apiserver()
    try:
        a = world.control()
        assert a.ready()[0] == 503
    finally:
        world.plane.start_apiserver()
    world.wait_ring(world.names(3), 40)


def edit(world, text):
    world.api.patch("configmaps", "generated", {"data": {"hashrings.json": text}})


def test_an_edit_by_hand_is_put_back(world):
    a = begin(world, 4)
    text = world.text()
    for bad in (json.dumps([{"hashring": "default", "endpoints": ["a:1", "b:1", "c:1"]}]), "{", ""):
        edit(world, bad)
        procs.wait_for(lambda: world.text() == text, 10, "the ring is back")
    assert "edited by hand" in a.log()
    world.api.delete("configmaps", "generated")
    procs.wait_for(lambda: world.text() == text, 10, "the ring is back")
    # what else is in there is not ours
    world.api.patch("configmaps", "generated", {"data": {"note": "mine"}, "metadata": {"labels": {"team": "x"}}})
    world.scale("s", 5)
    world.wait_ring(world.names(5))
    m = world.api.get("configmaps", "generated")
    assert m["data"]["note"] == "mine" and m["metadata"]["labels"]["team"] == "x"


def test_an_edit_by_hand_is_kept_when_told_to(world):
    a = begin(world, 5, control__manual="keep")
    text = world.text()
    mine = json.loads(text)
    mine[0]["endpoints"] = mine[0]["endpoints"][:3]
    edit(world, json.dumps(mine))
    procs.wait_for(lambda: a.metric("varve_control_edited_by_hand") == 1.0, 5, "it is seen")
    world.wait_told(world.names(5))  # and told
    world.scale("s", 6)
    time.sleep(2)
    assert world.ring() == world.names(3)
    edit(world, "[")  # not a ring: the one before stays with members
    time.sleep(1)
    assert all(json.loads(m.text()) == mine for n, m in world.kubelet.members.items() if n in world.names(5))
    world.api.delete("configmaps", "generated")
    world.wait_ring(world.names(6))


def test_a_base_that_is_wrong_changes_nothing(world):
    a = begin(world)
    text = world.text()
    world.api.patch("configmaps", "base", {"data": {"hashrings.json": '[{"hashring": "default", "tenant": ["typo"]}]'}})
    procs.wait_for(lambda: "tenant" in a.members()["trouble"], 5, "it says so")
    assert a.metric("varve_control_plan_successful") == 0.0
    world.scale("s", 4)
    time.sleep(1.5)
    assert world.text() == text
    world.api.patch("configmaps", "base", {"data": {"hashrings.json": '[{"hashring": "default", "tenants": ["typo"]}]'}})
    world.wait_ring(world.names(4))


def test_settings_that_can_not_work_are_refused(world):
    for flags, part in (({"replication_factor": 0}, "--replication-factor"), ({"configmap_generated_name": "base"}, "its own base"),
                        ({"control__lease_duration": "10ms"}, "--control.lease-duration"), ({"port": 0}, "--port")):
        c = world.control(f"bad-{abs(hash(part))}", start=False, **flags)
        c.spawn([procs.varve_binary(), "control", *(f"--{k}={v}" for k, v in c.flags.items())])
        assert c.wait(10) == 1
        assert part in c.log()
