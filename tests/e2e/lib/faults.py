"""Bad days for a real varve: system calls that fail or end the process (strace), a kill before the n-th change of a file (tests/crash/recorder.c).

strace counts the calls of each thread by itself; -P keeps it to the files named, whatever name they have at the time of the call.
"""
import os
import pathlib
import shutil
import signal

from . import procs, remote, tsdb
from .ledger import ACKED, UNKNOWN, Ledger

FULL = os.environ.get("VARVE_FULL") == "1"


def strace_binary():
    return procs.find("strace", shutil.which("strace"))


def preloaded(name):
    """A library of tests/crash/, built by `make`."""
    tools = os.environ.get("VARVE_TOOLS")
    path = pathlib.Path(tools or procs.ROOT / "build" / "tool") / f"{name}.so"
    if not path.is_file():
        raise procs.Missing(f"{path} is not there: run `make test`, which builds it")
    return path


class Traced(procs.Varve):
    """varve under strace: inject("fdatasync:error=EIO:when=3", paths). Signals go to varve, its exit code comes through strace."""

    name = "traced"

    def inject(self, what, paths=()):
        """what: one or more of strace's inject expressions, with spaces between."""
        calls = ",".join(one.split(":", 1)[0] for one in what.split())
        self.wrap = [strace_binary(), "-f", "-qq", "-o", str(self.dir / "strace.log"), "-e", f"trace={calls}"]
        for one in what.split():
            self.wrap += ["-e", f"inject={one}"]
        for p in paths:
            self.wrap += ["-P", str(p)]
        self.env["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"  # it looks for leaks by ptrace, which strace has
        return self

    def segments(self, n=24):
        return [self.data / "wal" / f"{i:08d}.wal" for i in range(1, n)]

    def child(self):
        """varve's own process id."""
        if not self.wrap:
            return self.pid

        def one():
            with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as f:
                pids = f.read().split()
            return int(pids[0]) if pids else None
        return procs.wait_for(one, 10, "strace starts varve")

    def hits(self):
        path = self.dir / "strace.log"
        return path.read_text("utf-8", "replace").count("INJECTED") if path.exists() else 0

    def kill9(self):
        if self.running():
            os.kill(self.child(), signal.SIGKILL)
        return self.wait()

    def stop(self, timeout=30):
        if self.running():
            os.kill(self.child(), signal.SIGTERM)
        return self.wait(timeout)

    def plain(self):
        """Started again without strace."""
        self.wrap = ()
        return self.start()


def killed_at(server, n, log=None):
    """server's environment: it counts changes of files from arm() on and ends before the n-th; n = 0: never. log: what it does is written there."""
    server.armed = server.dir / f"armed-{n}"
    server.env = {"LD_PRELOAD": str(preloaded("recorder")), "VARVE_RECORD_ROOT": str(server.data), "VARVE_KILL_AT": str(n), "VARVE_KILL_ARMED": str(server.armed)}
    if log:
        server.env["VARVE_RECORD"] = str(log)
    return server


def post(client, series):
    """The status, or None when no answer came."""
    try:
        return client.write(series).status
    except (OSError, remote.http.client.HTTPException):
        return None


def tell(ledger, tenant, series, status):
    ledger.record(tenant, series, ACKED if status is not None and 200 <= status < 300 else UNKNOWN)


def check(server, ledger, tenants, when=""):
    """Everything acknowledged is there with its value, and nothing else."""
    found = {t: {tsdb.without(k, ("tenant_id",)): v for k, v in server.read(t).items()} for t in tenants}
    report = ledger.compare(found)
    assert report.clean, f"{when}: {report}"
    return report


def check_bucket(directory):
    """No block half there, no window cut twice, no sample in two blocks. The number of samples in it."""
    windows, seen = {}, set()
    for d in sorted(p for p in pathlib.Path(directory).iterdir() if len(p.name) == 26):
        assert (d / "meta.json").is_file(), f"{d.name} is half in the bucket"
        block = tsdb.Block(d)
        varve = block.meta["thanos"]["extensions"]["varve"]
        window = (varve["window"], str(varve))
        assert varve["window"] not in windows, f"window {window} has two blocks: {windows[varve['window']]} and {d.name}"
        windows[varve["window"]] = d.name
        for labels, samples in block.dump().items():
            for t, _ in samples:
                key = (tuple(sorted(block.external_labels.items() if isinstance(block.external_labels, dict) else block.external_labels)), labels, t)
                assert key not in seen, f"{key} is in two blocks"
                seen.add(key)
    return len(seen)


__all__ = ["FULL", "Traced", "killed_at", "post", "tell", "check", "check_bucket", "Ledger", "strace_binary", "recorder"]
