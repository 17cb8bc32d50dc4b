"""Processes: varve, Prometheus (Debian 12's and a newer one), promtool, MinIO, moto. Each on loopback, a free port and a directory of its own.

What is not installed fails the test with the command that installs it; nothing is skipped. Processes are stopped by their own id.
"""
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from . import remote
from .s3 import S3

ROOT = pathlib.Path(__file__).resolve().parents[3]
CACHE = pathlib.Path(os.environ.get("VARVE_CACHE") or pathlib.Path.home() / ".cache" / "varve")

ALIVE = []  # started and not yet stopped: conftest.py ends them and shows the ends of their logs when a test fails


class Missing(AssertionError):
    pass


GIVEN = set()  # ports this process has handed out: what asks twice before it listens gets two


def free_port():
    """A port that nobody listens on and that the kernel gives to no connection by itself: one of its own range may be gone by the time a server wants it."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        first = int(f.read().split()[0])
    for _ in range(1000):
        port = random.randrange(10240, first if first > 12000 else 65536)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in GIVEN:
            GIVEN.add(port)
            return port
    raise AssertionError("no free port in 1,000 tries")


def find(what, *places):
    for p in places:
        if p and os.access(p, os.X_OK) and os.path.isfile(p):
            return str(p)
    raise Missing(f"{what} is not installed (looked for {', '.join(str(p) for p in places if p)}): run `make test`, which sets up what the tests need")


def varve_binary():
    return find("varve", os.environ.get("VARVE_BIN"), ROOT / "build" / "varve")


def prometheus_binary(newest=False):
    if newest:
        return find("Prometheus 3.5", CACHE / "prometheus-sid" / "usr" / "bin" / "prometheus")
    return find("prometheus", shutil.which("prometheus"), CACHE / "prometheus" / "usr" / "bin" / "prometheus")


def promtool_binary(newest=False):
    if newest:
        return find("promtool 3.5", CACHE / "prometheus-sid" / "usr" / "bin" / "promtool")
    return find("promtool", shutil.which("promtool"), CACHE / "prometheus" / "usr" / "bin" / "promtool")


def wait_for(condition, timeout, what, every=0.05):
    """The first true answer of condition(); an AssertionError after timeout seconds."""
    end = time.monotonic() + timeout
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(every)


def http_get(url, timeout=10):
    """(status, text); (0, reason) when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as r:
            return r.status, r.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode("utf-8", "replace")
    except (OSError, urllib.error.URLError) as e:
        return 0, str(e)


class Process:
    """A child with its output in a file. Subclasses say what to run and how to see that it is ready."""

    poll_s = 0.05  # between two looks whether it is

    name = "process"

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log_path = self.dir / f"{self.name}.log"
        self.proc = None

    def spawn(self, argv, env=None, cwd=None, wrap=()):
        self.argv = [*map(str, wrap), *map(str, argv)]
        with open(self.log_path, "ab") as log:
            log.write(f"# {' '.join(self.argv)}\n".encode())
            log.flush()
            self.proc = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})},
                                         cwd=cwd, start_new_session=True)
        ALIVE.append(self)
        return self

    @property
    def pid(self):
        return self.proc.pid

    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def log(self):
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def log_tail(self, n=60):
        return "\n".join(self.log().splitlines()[-n:])

    def wait_url(self, url, timeout=30):
        def up():
            if not self.running():
                raise AssertionError(f"{self.name} ended with {self.proc.returncode} before it was ready:\n{self.log_tail(15)}")
            return http_get(url, 2)[0] == 200
        wait_for(up, timeout, f"{self.name}: {url}", self.poll_s)

    def wait(self, timeout=30):
        """Its exit code."""
        try:
            code = self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} is still running after {timeout} s:\n{self.log_tail(15)}") from None
        if self in ALIVE:
            ALIVE.remove(self)
        return code

    def signal(self, number):
        self.proc.send_signal(number)

    def kill9(self):
        if self.running():
            self.proc.send_signal(signal.SIGKILL)
        return self.wait()

    def stop(self, timeout=30):
        """SIGTERM; its exit code."""
        if self.running():
            self.proc.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    # ---- what it costs ----

    def _status(self, key):
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as f:
            return int(re.search(rf"^{key}:\s+(\d+)", f.read(), re.M)[1]) * 1024

    def rss(self):
        return self._status("VmRSS")

    def rss_peak(self):
        return self._status("VmHWM")

    def rss_peak_reset(self):
        with open(f"/proc/{self.pid}/clear_refs", "w", encoding="ascii") as f:
            f.write("5")

    def cpu(self):
        """User and system seconds since it started, at clock-tick grain."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Varve(Process):
    """build/varve. flags: {"head.block-range": "1m", "label": ["a=b", "c=d"]}; a new start keeps directory and port."""

    name = "varve"

    def __init__(self, directory, flags=None, env=None, wrap=()):
        super().__init__(directory)
        self.data = self.dir / "data"
        self.port = free_port()
        self.flags = dict(flags or {})
        self.env = dict(env or {})
        self.wrap = wrap
        self.clients = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def bucket_dir(self):
        """The default bucket, when no object store is configured."""
        return self.data / "bucket"

    def argv_with(self, flags):
        out = [varve_binary()]
        for k, v in flags.items():
            for one in v if isinstance(v, (list, tuple)) else [v]:
                out.append(f"--{k}={one}" if one is not True else f"--{k}")
        return out

    def start(self, wait=True, timeout=60, **more):
        flags = {"data-dir": self.data, "http.address": f"127.0.0.1:{self.port}", **self.flags, **{k.replace("_", "."): v for k, v in more.items()}}
        self.spawn(self.argv_with(flags), env=self.env, cwd=self.dir, wrap=self.wrap)
        if wait:
            self.wait_url(self.url + "/-/ready", timeout)
        return self

    def client(self, tenant=None, **kw):
        c = remote.Client(self.url, tenant, **kw)
        self.clients.append(c)
        return c

    def close_clients(self):
        for c in self.clients:
            c.close()

    def wait(self, timeout=30):
        self.close_clients()
        return super().wait(timeout)

    def flush(self, timeout=120):
        """POST /-/flush: the blocks, all live."""
        c = remote.Client(self.url, timeout=timeout)
        try:
            a = c.request("POST", "/-/flush", b"")
        finally:
            c.close()
        assert a.status == 200, f"flush: {a.status} {a.text[:500]}"
        return a.json()["blocks"]

    def metrics(self):
        """{'name{labels}': value} as /metrics prints it."""
        status, page = http_get(self.url + "/metrics")
        assert status == 200, f"/metrics: {status} {page[:200]}"
        out = {}
        for line in page.splitlines():
            if line and line[0] != "#":
                name, value = line.rsplit(" ", 1)
                out[name] = float(value)
        return out

    def metric(self, name):
        """The sum of a metric over its labels; 0 when it is not there."""
        return sum(v for k, v in self.metrics().items() if k == name or k.startswith(name + "{"))

    def read(self, tenant=None, matchers=remote.ALL, start=remote.EVER[0], end=remote.EVER[1], accept=(remote.SAMPLES,), path=remote.READ_PATH):
        return remote.read_all(self.url, tenant, matchers, start, end, accept, path)

    def run(self, *args, timeout=60, check=None):
        """Runs a subcommand, `varve bucket ls ...`; with check, its exit code must be that."""
        r = subprocess.run([varve_binary(), *map(str, args)], capture_output=True, text=True, timeout=timeout, cwd=self.dir, env={**os.environ, **self.env},
                           check=False)
        if check is not None:
            assert r.returncode == check, f"varve {' '.join(map(str, args))}: {r.returncode}\n{r.stdout}\n{r.stderr}"
        return r

    def bucket_ls(self):
        """`varve bucket ls` as the rows of its JSON."""
        args = ["bucket", "ls", "--output=json", f"--data-dir={self.data}"]
        if "objstore.config-file" in self.flags:
            args.append(f"--objstore.config-file={self.flags['objstore.config-file']}")
        return json.loads(self.run(*args, check=0).stdout)["blocks"]


class Prometheus(Process):
    """A real Prometheus. config: text of prometheus.yml after the scrape_interval; data: an existing data directory, used in place."""

    name = "prometheus"

    def __init__(self, directory, config="", newest=False, data=None, scrape_interval="1s", flags=(), external_labels=None):
        super().__init__(directory)
        self.port = free_port()
        self.newest = newest
        self.data = pathlib.Path(data) if data else self.dir / "prometheus-data"
        self.config_path = self.dir / "prometheus.yml"
        labels = "".join(f"\n    {k}: {json.dumps(v)}" for k, v in (external_labels or {}).items())
        self.config_path.write_text(f"global:\n  scrape_interval: {scrape_interval}\n  scrape_timeout: {scrape_interval}\n"
                                    + (f"  external_labels:{labels}\n" if labels else "") + config.replace("@PORT@", str(self.port)), "utf-8")
        self.flags = list(flags)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout=60):
        self.spawn([prometheus_binary(self.newest), f"--config.file={self.config_path}", f"--storage.tsdb.path={self.data}",
                    f"--web.listen-address=127.0.0.1:{self.port}", "--storage.tsdb.retention.time=100y", "--web.enable-admin-api",
                    "--web.enable-lifecycle", *self.flags], cwd=self.dir)
        self.wait_url(self.url + "/-/ready", timeout)
        return self

    def api(self, path, **params):
        pairs = [(k.rstrip("_"), one) for k, v in params.items() for one in (v if isinstance(v, (list, tuple)) else [v])]
        status, body = http_get(f"{self.url}/api/v1/{path}?" + urllib.parse.urlencode(pairs), timeout=60)
        assert status == 200, f"Prometheus {path}: {status} {body[:500]}"
        return json.loads(body)["data"]

    def query(self, expr, time_s):
        return self.api("query", query=expr, time=time_s)["result"]

    def query_range(self, expr, start_s, end_s, step_s):
        return self.api("query_range", query=expr, start=start_s, end=end_s, step=step_s)["result"]


def promtool(*args, newest=False, timeout=300):
    return subprocess.run([promtool_binary(newest), *map(str, args)], capture_output=True, text=True, timeout=timeout, check=False)


class MinIO(Process):
    name = "minio"
    access_key, secret_key, bucket = "varve-test", "varve-test-secret", "metrics"

    def __init__(self, directory):
        super().__init__(directory)
        self.port, self.console = free_port(), free_port()
        self.s3 = S3("127.0.0.1", self.port, self.access_key, self.secret_key)

    def start(self, timeout=60):
        binary = find("MinIO", CACHE / "bin" / "minio", shutil.which("minio"))
        self.spawn([binary, "server", self.dir / "minio-data", "--address", f"127.0.0.1:{self.port}", "--console-address", f"127.0.0.1:{self.console}",
                    "--quiet"],
                   env={"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off",
                        "MINIO_CALLHOME_ENABLE": "off", "HOME": str(self.dir)})
        self.wait_url(f"http://127.0.0.1:{self.port}/minio/health/ready", timeout)

        def created():  # it says ready before it is
            try:
                self.s3.create_bucket(self.bucket)
                return True
            except OSError:
                return False
        wait_for(created, timeout, "MinIO makes a bucket")
        return self

    def objstore_yaml(self, prefix=""):
        return s3_yaml(self.port, self.access_key, self.secret_key, self.bucket, prefix)


class Moto(Process):
    """A second S3 implementation, from PyPI."""

    name = "moto"
    access_key, secret_key, bucket = "varve-test", "varve-test-secret", "metrics"

    def __init__(self, directory):
        super().__init__(directory)
        self.port = free_port()
        self.s3 = S3("127.0.0.1", self.port, self.access_key, self.secret_key)

    def start(self, timeout=60):
        try:
            import moto.server  # noqa: F401
        except ImportError as e:
            raise Missing(f"moto's server is not installed ({e}): run `make test`, which sets up what the tests need") from None
        self.spawn([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.port])
        self.wait_url(f"http://127.0.0.1:{self.port}/moto-api/", timeout)
        self.s3.create_bucket(self.bucket)
        return self

    def objstore_yaml(self, prefix=""):
        return s3_yaml(self.port, self.access_key, self.secret_key, self.bucket, prefix)


def s3_yaml(port, access_key, secret_key, bucket, prefix=""):
    text = (f"type: S3\nconfig:\n  bucket: {bucket}\n  endpoint: 127.0.0.1:{port}\n  region: us-east-1\n  access_key: {access_key}\n"
            f"  secret_key: {secret_key}\n  insecure: true\n")
    return text + (f"prefix: {prefix}\n" if prefix else "")


def filesystem_yaml(directory):
    return f"type: FILESYSTEM\nconfig:\n  directory: {directory}\n"


def stop_all():
    for p in list(reversed(ALIVE)):
        if p.running():
            p.proc.send_signal(signal.SIGKILL)
        p.wait()


def raise_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
