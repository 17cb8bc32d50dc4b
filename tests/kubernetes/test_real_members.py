"""The controller and real varves: rings reach them, they join when their log is replayed, drain when they are told to, and go."""
import functools
import time

import plane as planes
from lib import procs

CHANGE_S = 2.0
SECRET = "the members share this one"


def wait_agreed(world, n, timeout=20):
    """All n members go by the published ring, and it has them. Seconds since the ring was published."""
    world.wait_ring(world.names(n), timeout)
    began = time.monotonic()
    epoch = planes.epoch_of(world.text(), 3, world.dir)
    procs.wait_for(lambda: all(world.kubelet.members[m].epoch() == epoch for m in world.names(n)), 10, "every member goes by the ring", every=0.02)
    return time.monotonic() - began


def test_three_to_five_to_three(world):
    secret = world.dir / "secret"
    secret.write_text(SECRET + "\n")
    world.kubelet_start(secret=SECRET, member=functools.partial(planes.RealMember, namespace=world.namespace))
    world.kubelet.asked_s = 20
    world.base()
    world.api.create("statefulsets", planes.statefulset("s", 3))
    control = world.control(peer__secret_file=secret)
    took = [wait_agreed(world, 3, 60)]
    world.scale("s", 5)
    took.append(wait_agreed(world, 5, 60))
    leaving = [world.kubelet.members[m].server for m in ("s-3", "s-4")]
    world.scale("s", 3)
    took.append(wait_agreed(world, 3))
    assert max(took) <= CHANGE_S, took
    procs.wait_for(lambda: not any(v.running() for v in leaving), 40, "both drained, and ended by themselves")
    assert [v.proc.returncode for v in leaving] == [0, 0]
    procs.wait_for(lambda: len(world.api.get("pods")["items"]) == 3, 40, "their Pods went")
    procs.wait_for(lambda: set(control.states().values()) == {"active"}, 20, "the controller sees three active members and no other")
    # A node that comes back has its place, and is told the ring again.
    world.kubelet.members["s-1"].server.kill9()
    time.sleep(1)
    assert world.ring() == world.names(3)
    world.kubelet.members["s-1"].server.start(wait=False)
    wait_agreed(world, 3)
