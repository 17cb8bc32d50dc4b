"""Fixtures: one control plane for all tests, a namespace for each, and what is started in it stopped at its end."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import plane as planes  # noqa: E402  (the path comes first)
from lib import procs  # noqa: E402


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and call.when in ("setup", "call"):
        for p in list(procs.ALIVE):
            report.sections.append((f"log of {p.name} in {p.dir}", p.log_tail(80)))


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    p = planes.ControlPlane(tmp_path_factory.mktemp("plane"))
    try:
        yield p.start()
    finally:
        p.stop()


class World:
    """A namespace with its kubelet, and controllers."""

    def __init__(self, plane, namespace, directory):
        self.plane, self.namespace, self.dir = plane, namespace, directory
        self.api = plane.client(namespace)
        self.port = procs.free_port()
        self.kubelet = None

    def kubelet_start(self, **kw):
        self.kubelet = planes.Kubelet(self.api, self.port, self.dir, **kw)
        return self.kubelet

    def control(self, name="control-a", start=True, **flags):
        c = planes.Controller(self.dir / name, self.plane, self.namespace, self.port, **flags)
        return c.start() if start else c

    def base(self, text='[{"hashring": "default"}]'):
        self.api.create("configmaps", {"metadata": {"name": "base"}, "data": {"hashrings.json": text}})

    def scale(self, name, replicas):
        self.api.patch("statefulsets", name, {"spec": {"replicas": replicas}})

    def text(self):
        m = self.api.find("configmaps", "generated")
        return m["data"].get("hashrings.json") if m else None

    def ring(self, name="default"):
        """Pod names of the published ring, None when there is none."""
        import json
        for r in json.loads(self.text() or "[]"):
            if r["hashring"] == name:
                return {(e if isinstance(e, str) else e["address"]).split(".")[0] for e in r["endpoints"]}
        return None

    def wait_ring(self, names, timeout=20):
        procs.wait_for(lambda: self.ring() == set(names), timeout, f"the ring is {sorted(names)}, it is {sorted(self.ring() or [])}")

    def names(self, n, first=0, of="s"):
        return {f"{of}-{i}" for i in range(first, first + n)}

    def wait_told(self, names, timeout=10):
        """Every one of these members has the published text."""
        def told():
            text = self.text()
            return text and all(n in self.kubelet.members and self.kubelet.members[n].text() == text for n in names)
        procs.wait_for(told, timeout, "every member has the ring")


@pytest.fixture
def world(plane, tmp_path, request):
    namespace = f"t{abs(hash(request.node.nodeid)) % 10**10}"
    plane.client().call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    w = World(plane, namespace, tmp_path)
    yield w
    procs.stop_all()
    if w.kubelet:
        w.kubelet.stop()
