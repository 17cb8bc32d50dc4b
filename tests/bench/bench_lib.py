"""What the benchmarks share: servers pinned to one core, the sender on another, medians, tables, results in files.

Every server gets the same bytes (`varve bench write` with a fixed --start), on a free port, with its data under BENCH_DIR (build/bench-data: a real disk, not a
memory file system), and is stopped by its own process id. CPU is user + system of the server's process, from the kernel's own clock of it.
"""
import datetime
import gzip
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from lib import procs  # noqa: E402  (the path comes first)

SERVER_CORE, SENDER_CORE = 1, 0
STEP_S = 15
RESULTS = procs.ROOT / "build" / "results"
DATA = pathlib.Path(os.environ.get("BENCH_DIR") or procs.ROOT / "build" / "bench-data")
SMALL = os.environ.get("BENCH_SCALE") == "small"
RUNS = int(os.environ.get("BENCH_RUNS") or (1 if SMALL else 5))


def pin(core):
    return ["taskset", "-c", str(core)] if len(os.sched_getaffinity(0)) > 1 else []


def say(text=""):
    print(text, flush=True)


def die(text):
    raise SystemExit(f"bench: {text}")


# ---- servers ----


class Costs:
    """Mixed into a server's class: CPU to the nanosecond, and waiting until nothing is left to do."""

    def cpu(self):
        return time.clock_gettime((~self.pid << 3) | 2)  # the process' CPU clock, as clock_getcpuclockid(3) makes it

    def settle(self, timeout=60, quiet_s=0.02):
        """Until a second costs less than quiet_s."""
        last = self.cpu()
        for _ in range(timeout):
            time.sleep(1)
            now = self.cpu()
            if now - last < quiet_s:
                return
            last = now


class Varve(Costs, procs.Varve):
    durable = "fdatasync"
    has_log = True

    def __init__(self, directory, **flags):
        super().__init__(directory, flags={"head.cut-delay": "1h", "head.max-age": "12h", **{k.replace("__", "-").replace("_", "."): v for k, v in flags.items()}},
                         wrap=pin(SERVER_CORE))

    def start(self, **kw):
        kw.setdefault("timeout", 900)
        return super().start(**kw)

    def log_bytes(self):
        return self.metric("varve_wal_bytes_total")


class Prometheus(Costs, procs.Prometheus):
    durable = "page cache"
    has_log = True

    def start(self, timeout=900):
        self.spawn([procs.prometheus_binary(), f"--config.file={self.config_path}", f"--storage.tsdb.path={self.data}", f"--web.listen-address=127.0.0.1:{self.port}",
                    "--web.enable-remote-write-receiver", "--storage.tsdb.retention.time=100y"], cwd=self.dir, wrap=pin(SERVER_CORE))
        self.wait_url(self.url + "/-/ready", timeout)
        return self

    def log_bytes(self):
        return tree_bytes(self.data / "wal")


def victoria_binary():
    return procs.find("VictoriaMetrics of Debian (tools/setup.sh victoria-metrics unpacks it into the cache)", shutil.which("victoria-metrics"),
                      procs.CACHE / "victoria-metrics" / "usr" / "bin" / "victoria-metrics")


class Victoria(Costs, procs.Process):
    name = "victoria-metrics"
    durable = "none (about 5 s)"
    has_log = False

    def __init__(self, directory):
        super().__init__(directory)
        self.port = procs.free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, timeout=900):
        self.spawn([victoria_binary(), f"-storageDataPath={self.dir / 'data'}", f"-httpListenAddr=127.0.0.1:{self.port}", "-retentionPeriod=100y"], cwd=self.dir,
                   wrap=pin(SERVER_CORE))
        self.wait_url(self.url + "/health", timeout)
        return self


KINDS = {"varve": Varve, "prometheus": Prometheus, "victoria": Victoria}


class Server:
    """with Server("varve", "steady") as s: in a directory of its own, killed and removed at the end."""

    def __init__(self, kind, what, **flags):
        self.dir = DATA / f"{kind}-{what}-{os.getpid()}"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.server = KINDS[kind](self.dir, **flags)

    def __enter__(self):
        self.server.start()
        return self.server

    def __exit__(self, *_):
        if self.server.proc and self.server in procs.ALIVE:
            self.server.kill9()
        shutil.rmtree(self.dir, ignore_errors=True)


def tree_bytes(path):
    return sum(p.stat().st_size for p in pathlib.Path(path).rglob("*") if p.is_file())


# ---- the sender ----


def command(**flags):
    argv = [procs.varve_binary(), "bench", "write", "--output=json"]
    for k, v in flags.items():
        for one in v if isinstance(v, list) else [v] if v is not None else []:
            argv.append(f"--{k.replace('_', '-')}={one}")
    return argv


def write(server, **flags):
    """Sends; the report of `varve bench write`, with what became of the server's CPU and memory."""
    flags.setdefault("batch", 2000)
    flags.setdefault("connections", 4)
    flags.setdefault("step", f"{STEP_S}s")
    flags.setdefault("pid", getattr(server, "pid", None))
    argv = [*pin(SENDER_CORE), *command(url=server.url, **flags)]
    p = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        got = json.loads(p.stdout)
    except ValueError:
        got = None
    if p.returncode != 0 or got is None or got["acked"] != got["requests"]:
        die(f"{server.name}: the load failed: {' '.join(argv)}\n{p.stdout}{p.stderr}\n{server.log_tail(15)}")
    return got


def dump(directory, **flags):
    flags.setdefault("batch", 2000)
    p = subprocess.run(command(dump=directory, **flags), capture_output=True, text=True, check=False)
    if p.returncode != 0:
        die(f"bodies could not be written: {p.stderr}")


def floor(directory):
    """The floor program's report on the bodies of a directory."""
    binary = pathlib.Path(procs.varve_binary()).parent / "bench" / "floor"
    p = subprocess.run([*pin(SERVER_CORE), binary, directory, "passes=3"], capture_output=True, text=True, check=False)
    if p.returncode != 0:
        die(f"the floor program failed: {p.stderr}")
    return json.loads(p.stdout)


# ---- words and numbers ----


def machine():
    model = "?"
    for line in pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text("ascii"))[1]) / 1048576
    DATA.mkdir(parents=True, exist_ok=True)
    fs = subprocess.run(["stat", "-f", "-c", "%T", DATA], capture_output=True, text=True, check=False).stdout.strip()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, {fs}"


def versions():
    def first(argv, pattern):
        p = subprocess.run(argv, capture_output=True, text=True, check=False)
        m = re.search(pattern, p.stdout + p.stderr)
        return m[1] if m else "?"
    return {"varve": first([procs.varve_binary(), "version"], r"varve (\S+)"),
            "prometheus": first([procs.prometheus_binary(), "--version"], r"version (\d+\.\d+\.\d+)"),
            "victoria": victoria_version()}


def victoria_version():
    """Debian's build does not know its own; the package's changelog does."""
    usr = pathlib.Path(victoria_binary()).resolve().parents[1]
    log = usr / "share" / "doc" / "victoria-metrics" / "changelog.Debian.gz"
    m = re.search(rb"\((?:\d+:)?(\d+\.\d+\.\d+)", gzip.decompress(log.read_bytes())[:200]) if log.exists() else None
    return m[1].decode() if m else "?"


def commit():
    p = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=procs.ROOT, capture_output=True, text=True, check=False)
    return p.stdout.strip() or "unknown"


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def save(name, result):
    """build/results/NAME.json, which `make bench-docs` reads."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "machine": machine(), "commit": commit(), "runs": RUNS,
              "scale": "small" if SMALL else "full", **result}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1), "utf-8")
    say(f"\nresults: {path.relative_to(procs.ROOT)}")
    return result


def show(v, digits=None):
    """A number with about three digits that count."""
    if v is None:
        return "-"
    if digits is None:
        digits = 0 if abs(v) >= 100 else 1 if abs(v) >= 10 else 2 if abs(v) >= 1 else 3
    return f"{v:,.{digits}f}"


def table(rows, align=None):
    """Lines of a plain table; the first row is the head."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) if i == 0 or (align and align[i] == "l") else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))).rstrip() for r in rows]


def begin(title):
    procs.raise_open_files()
    procs.Process.poll_s = 0.005
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped and their data goes
    try:
        for needed in (procs.varve_binary, procs.prometheus_binary, victoria_binary):
            needed()
    except procs.Missing as e:
        die(str(e).replace("make test", "make bench"))
    DATA.mkdir(parents=True, exist_ok=True)
    say(f"{title}: {machine()}; {RUNS} run{'s' if RUNS > 1 else ''}{', small scale: a look at the machinery, not at the numbers' if SMALL else ''}")


def end():
    procs.stop_all()
    try:
        DATA.rmdir()
    except OSError:
        pass
