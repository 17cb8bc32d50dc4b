"""A fleet of real varves on loopback: storing nodes, routers, a ring file, one bucket, one secret; and the programs that load, watch and judge it.

    f = Fleet(directory, factor=3)
    for _ in range(3): f.node()
    router = f.router()
    f.publish(f.nodes)                          # the ring file; f.settle() waits until all run it
    load = f.load(router)                       # load.py; f.reader(load), f.watch() likewise

A ring calls a node by its address. With a proxy in front of it (proxy.py) that is the proxy's: what peers say to it goes through there, what a test asks it does not.
"""
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import judge  # noqa: E402  (the paths come first)
from lib import procs, remote  # noqa: E402
from proxy import Proxy  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
LONG = "VARVE_FULL" in os.environ


# ---- the ring file ----


class RingFile:
    """hashrings.json, replaced in every way in which people and the kubelet do it."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.path = self.dir / "hashrings.json"
        self.n = 0

    def write(self, text, how="rename"):
        self.n += 1
        {"rename": self._rename, "links": self._links, "in place": self._in_place}[how](text)

    def _rename(self, text):
        new = self.dir / f".new-{self.n}"
        new.write_text(text, "utf-8")
        os.replace(new, self.path)

    def _links(self, text):
        """As a mounted ConfigMap: the file is a link through the link ..data, which is swapped."""
        version = self.dir / f"..version-{self.n}"
        version.mkdir()
        (version / "hashrings.json").write_text(text, "utf-8")
        self._link(version.name, self.dir / "..data")
        if not self.path.is_symlink():
            self._link("..data/hashrings.json", self.path)

    def _link(self, target, at):
        new = self.dir / f".link-{self.n}"
        os.symlink(target, new)
        os.replace(new, at)

    def _in_place(self, text):
        """Emptied, written half, and some time later whole."""
        with open(self.path, "r+b") as f:
            f.truncate(0)
            data = text.encode()
            f.write(data[:len(data) // 2])
            f.flush()
            time.sleep(0.15)
            f.write(data[len(data) // 2:])


# ---- processes ----


class Node(procs.Varve):
    """One varve of a fleet, storing or routing."""

    def __init__(self, directory, flags, proxied=False, host="127.0.0.1", **kw):
        super().__init__(directory, flags=flags, **kw)
        self.name, self.host = self.dir.name, host
        self.proxy = Proxy((host, self.port)).start() if proxied else None

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def address(self):
        return self.proxy.address if self.proxy else f"{self.host}:{self.port}"

    def argv_with(self, flags):
        if "http.address" in flags:
            flags = {**flags, "http.address": f"{self.host}:{self.port}"}
        return super().argv_with({k: v for k, v in flags.items() if v is not None})

    def ready(self):
        return procs.http_get(self.url + "/-/ready", 3)

    def ring_status(self):
        """GET /-/ring as JSON; {} when nobody answers."""
        status, text = procs.http_get(self.url + "/-/ring", 3)
        try:
            return json.loads(text) if status == 200 else {}
        except ValueError:
            return {}

    def epoch(self):
        return self.ring_status().get("epoch")

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))


class Worker(procs.Process):
    """A program of this folder. stop() ends it kindly; what it printed is its log."""

    def __init__(self, directory, program, **flags):
        super().__init__(directory)
        self.name, self.program = program, program
        self.out = self.dir / "result.json"
        self.argv_given = [f"--{k.replace('_', '-')}={v}" for k, v in flags.items() if v is not None]

    def start(self):
        self.spawn([sys.executable, "-u", HERE / f"{self.program}.py", *self.argv_given], cwd=self.dir)
        return self

    def end(self, timeout=90):
        """Its result; it has to end well."""
        code = self.stop(timeout)
        assert code == 0, f"{self.name} ended with {code}:\n{self.log_tail(30)}"
        return json.loads(self.out.read_text("utf-8")) if self.out.exists() else None


class Load(Worker):
    def __init__(self, directory, url, name, **flags):
        self.ledger = pathlib.Path(directory) / "ledger"
        super().__init__(directory, "load", url=url, ledger=self.ledger, name=name, **flags)

    @property
    def book(self):
        """The ledger as far as it is written."""
        if not hasattr(self, "_book"):
            self._book = judge.Book(self.ledger)
        return self._book.refresh()

    def wait_rounds(self, n, timeout=60):
        """Until so many more rounds are acknowledged in full, or at least begun."""
        last = self.book.last_round()
        procs.wait_for(lambda: self.running() and self.book.last_round() >= last + n, timeout, f"{n} more rounds of load", 0.1)
        return self


class Watch(Worker):
    def __init__(self, directory):
        self.list = pathlib.Path(directory) / "nodes"
        super().__init__(directory, "watch", nodes=self.list, out=pathlib.Path(directory) / "result.json")
        self.nodes = []

    def put(self, *nodes):
        self.nodes += nodes
        self._write()

    def drop(self, *nodes):
        self.nodes = [n for n in self.nodes if n not in nodes]
        self._write()
        time.sleep(0.2)  # it looks at its list every 50 ms

    def _write(self):
        new = self.list.with_suffix(".new")
        new.write_text("".join(f"{n.name} {n.url}\n" for n in self.nodes), "utf-8")
        os.replace(new, self.list)


# ---- the fleet ----


class Fleet:
    def __init__(self, directory, factor=3, algorithm="ketama", **flags):
        self.dir, self.factor, self.algorithm = pathlib.Path(directory), factor, algorithm
        self.dir.mkdir(parents=True, exist_ok=True)
        self.rings = RingFile(self.dir / "rings")
        self.secret = self.dir / "secret"
        self.secret.write_text(secrets.token_hex(24) + "\n", "ascii")
        self.bucket = self.dir / "bucket"
        self.flags = {
            "hashrings.file": self.rings.path, "replication-factor": factor, "hashrings.algorithm": algorithm, "peer.secret-file": self.secret,
            "objstore.config": f"type: FILESYSTEM\nconfig:\n  directory: {self.bucket}\n", "head.block-range": "2h",
            # small machines: a dozen of nodes share one disk and one memory
            "wal.segment-size": "8MiB", "disk.reserve": "64MiB", "head.max-memory": "1GiB", **flags,
        }
        self.nodes, self.routers, self.queriers, self.left = [], [], [], []  # storing; routing; only reading; storing nodes that are gone for good
        self.text, self.made, self.workers = None, 0, 0

    def everybody(self):
        return self.nodes + self.routers + self.queriers

    def node(self, start=True, proxied=False, flags=None, **kw):
        self.made += 1
        n = Node(self.dir / f"node-{self.made}", {**self.flags, **(flags or {})}, proxied, **kw)
        n.flags.setdefault("hashrings.local-endpoint", n.address)
        self.nodes.append(n)
        return n.start() if start else n

    def router(self, start=True, wait=False, flags=None, **kw):
        """Ready only when there is a ring: start does not wait for that unless it is asked to."""
        r = Node(self.dir / f"router-{len(self.routers) + 1}", {**self.flags, "target": "route", "data-dir": None, "objstore.config": None, "head.block-range": None,
                                                                "wal.segment-size": None, "disk.reserve": None, "head.max-memory": None, **(flags or {})}, **kw)
        self.routers.append(r)
        if start:
            r.start(wait=False)
            wait_up(r)
        if wait:
            r.wait_url(r.url + "/-/ready")
        return r

    def querier(self, flags=None):
        """Stores nothing and routes nothing: it asks all others. For readers that go on while nodes come and go."""
        q = Node(self.dir / f"querier-{len(self.queriers) + 1}", {**self.flags, "target": "query", **(flags or {})})
        self.queriers.append(q)
        return q.start()

    def three(self, n=3, **kw):
        """n nodes and a router with their ring, all ready: what most tests begin with. The router."""
        for _ in range(n):
            self.node(**kw)
        router = self.router()
        self.publish(self.nodes)
        self.settle()
        router.wait_url(router.url + "/-/ready")
        return router

    # ---- rings ----

    def ring_text(self, nodes, name="default", zones=0, **more):
        """One ring; nodes, or addresses, in so many zones."""
        endpoints = [n.address if isinstance(n, Node) else n for n in nodes]
        if zones:
            endpoints = [{"address": a, "az": f"zone-{i % zones}"} for i, a in enumerate(endpoints)]
        return json.dumps([{"hashring": name, "endpoints": endpoints, **more}], indent=1) + "\n"

    def publish(self, nodes, how="rename", **more):
        """The ring file names these from now on. Its text."""
        self.text = self.ring_text(nodes, **more)
        self.rings.write(self.text, how)
        return self.text

    def tool(self, *args, stdin=None, check=0):
        """`varve ring ...` with this fleet's factor and algorithm; texts of rings as (text,)."""
        words = []
        for i, a in enumerate(args):
            if isinstance(a, tuple):
                path = self.dir / f"tool-{i}.json"
                path.write_text(a[0], "utf-8")
                a = path
            words.append(str(a))
        p = subprocess.run([procs.varve_binary(), "ring", *words, f"--replication-factor={self.factor}", f"--hashrings.algorithm={self.algorithm}"], input=stdin,
                           capture_output=True, text=True, timeout=120, check=False)
        assert check is None or p.returncode == check, f"varve ring {words}: {p.returncode}\n{p.stderr}"
        return p.stdout

    def epoch_of(self, text):
        return json.loads(self.tool("check", (text,), "--output=json"))["epoch"]

    def settle(self, text=None, who=None, timeout=10):
        """Seconds until all of them run this ring."""
        want, began = self.epoch_of(text or self.text), time.monotonic()
        for n in who or self.everybody():
            procs.wait_for(lambda n=n: n.epoch() == want, timeout, f"{n.name} runs epoch {want}, it is {n.ring_status()}", 0.02)
        return time.monotonic() - began

    def owners(self, shape, text=None):
        """[addresses, replica 0 first] of each series of a load, by the tool."""
        lines = "".join(json.dumps({"tenant": shape.tenant or "default-tenant", "labels": shape.labels(i)}) + "\n" for i in range(shape.series))
        return [json.loads(line) for line in self.tool("where", (text or self.text,), "--cases=-", stdin=lines).splitlines()]

    def diff(self, old, new):
        """`varve ring diff` of two texts, of their one ring."""
        return json.loads(self.tool("diff", (old,), (new,), "--output=json"))["rings"][0]

    # ---- leaving ----

    def drain(self, node, timeout=120):
        """Tells it to leave and waits until its process has ended, which has to be with 0. Seconds."""
        began = time.monotonic()
        node.run("drain", node.url, f"--peer.secret-file={self.secret}", f"--timeout={timeout}s", timeout=timeout + 10, check=0)
        code = node.wait(timeout)
        assert code == 0, f"{node.name} drained and exited with {code}:\n{node.log_tail(20)}"
        self.nodes.remove(node)
        self.left.append(node)
        return time.monotonic() - began

    # ---- programs beside it ----

    def _worker_dir(self, what):
        self.workers += 1
        return self.dir / f"{what}-{self.workers}"

    def load(self, to, name="load", **flags):
        return Load(self._worker_dir(name), to.url, name, **flags).start()

    def beside(self):
        """A varve that is in no fleet, with a small load of its own: what this machine and its disk do to latency meanwhile."""
        alone = Node(self.dir / "alone", {"wal.segment-size": "8MiB", "disk.reserve": "64MiB"}).start()
        return self.load(alone, "alone", series=400, batch=20, shards=4)

    def reader(self, load, through):
        """judge.py over the ledger of a load; reader.through(nodes) changes whom it asks."""
        directory = self._worker_dir("reader")
        directory.mkdir(parents=True)
        urls = directory / "urls"
        r = Worker(directory, "judge", ledger=load.ledger, urls=urls, out=directory / "result.json")

        def ask(nodes):
            new = urls.with_suffix(".new")
            new.write_text("".join(n.url + "\n" for n in nodes), "utf-8")
            os.replace(new, urls)

        r.through = ask
        ask(through)
        return r.start()

    def watch(self, *nodes):
        w = Watch(self._worker_dir("watch"))
        w.put(*nodes)
        return w.start()

    # ---- what it says of itself ----

    def sum(self, metric, of=None):
        return sum(n.metric(metric) for n in (of or self.everybody()) if n.running())

    def owed(self):
        return self.sum("varve_hints_pending_samples", self.nodes)

    def wait_hints(self, timeout=60):
        """Seconds until nobody owes anybody anything."""
        began = time.monotonic()
        procs.wait_for(lambda: self.owed() == 0, timeout, "all hints are delivered", 0.2)
        return time.monotonic() - began

    def replicas_agree(self, book, text=None):
        """Holds every series on each of its owners against the others and against the ledger: [(series, address, rounds that it lacks)], empty when all is there."""
        owners = self.owners(book.shape, text)
        have = {n.address: judge.held(n.url, book) for n in self.nodes}
        missing = []
        for i, addresses in enumerate(owners):
            acked = book.acked[i // book.shape.batch]
            every = set(acked).union(*(have[a].get(i, set()) for a in addresses))
            missing += [(i, a, sorted(every - have[a].get(i, set()))) for a in addresses if every - have[a].get(i, set())]
        return missing

    def stop(self):
        for n in self.everybody() + self.left:
            if n.proxy:
                n.proxy.stop()


def wait_up(node, timeout=30):
    """Until it answers at all: a router without a ring is up and not ready."""
    def up():
        assert node.running(), f"{node.name} ended with {node.proc.returncode}:\n{node.log_tail(15)}"
        return procs.http_get(node.url + "/-/healthy", 2)[0] == 200
    procs.wait_for(up, timeout, f"{node.name} answers")


def whereabouts(f, book, found):
    """Of the first sample that is lost: whether nobody has it, or nobody found it."""
    if "lost" not in found.first:
        return ""
    i, k = found.first["lost"]
    have = [n.name for n in f.nodes if n.running() and k in judge.held(n.url, book, k, k).get(i, ())]
    owners = f.owners(book.shape)[i]
    return f"; by themselves {have or 'no nodes'} have it, its nodes are {[n.name for n in f.nodes if n.address in owners]}"


def end_load(load, fleet, through=None, timeout=90):
    """Stops a load and judges everything that it was told, through this node, a querier, or the first node that runs: (book, findings)."""
    load.end(timeout)
    book = load.book
    node = through or next(n for n in fleet.queriers + fleet.nodes if n.running())
    found = judge.check_all(book, node.url)
    assert found.clean, f"through {node.name}: {found}{whereabouts(fleet, book, found)}"
    return book, found


def pause(process):
    process.signal(signal.SIGSTOP)


def go_on(process):
    process.signal(signal.SIGCONT)


__all__ = ["Fleet", "Load", "LONG", "Node", "RingFile", "Watch", "Worker", "end_load", "go_on", "judge", "pause", "procs", "remote", "wait_up"]
