"""A control plane without machines: etcd, kube-apiserver, kube-controller-manager on loopback, and a kubelet that does what a test wants.

    plane = ControlPlane(directory).start()
    api = plane.client(namespace)             # a small JSON client, as the administrator or as somebody else
    kubelet = Kubelet(api, port)              # binds Pods, runs their members, sets their status; holds back whom the test names

Pods get addresses of 127.0.0.0/8, one each, all of which are this machine: a member is a process or thread that listens on its Pod's address.
"""
import collections
import hmac
import http.client
import http.server
import json
import os
import pathlib
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from secrets import randbelow, token_hex

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from lib import procs  # noqa: E402  (the path comes first)

BIN = procs.CACHE / "kubernetes" / "bin"
ETCD = procs.CACHE / "kubernetes" / "etcd" / "usr" / "bin" / "etcd"
SELECTOR = {"controller.receive.thanos.io": "thanos-receive-controller"}
RING = "controller.receive.thanos.io/hashring"


def binary(name):
    if name == "etcd":
        return procs.find("etcd", ETCD)
    return procs.find(name, BIN / name)


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """JSON over HTTPS. Paths are from the host on; ns(...) is within the namespace."""

    def __init__(self, url, ca, token, namespace="default"):
        self.url, self.ca, self.token, self.namespace = url, ca, token, namespace
        self.context = ssl.create_default_context(cafile=ca)
        self.local = threading.local()

    def call(self, method, path, body=None, content_type="application/json", timeout=30):
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **({"Content-Type": content_type} if data is not None else {})}
        for fresh in (False, True):
            c = getattr(self.local, "connection", None)
            if c is None or fresh:  # one for each thread, kept alive
                c = self.local.connection = http.client.HTTPSConnection(self.url.removeprefix("https://"), context=self.context, timeout=timeout)
            try:
                c.request(method, path, data, headers)
                r = c.getresponse()
                text = r.read()
                break
            except (http.client.HTTPException, OSError) as e:
                self.local.connection = None
                if fresh:
                    raise OSError(f"{method} {path}: {e!r}") from None
        if r.status >= 300:
            raise Refused(r.status, text.decode("utf-8", "replace"))
        return json.loads(text or b"null")

    def ns(self, kind, name="", sub=""):
        group = {"statefulsets": "/apis/apps/v1", "leases": "/apis/coordination.k8s.io/v1"}.get(kind, "/api/v1")
        return "/".join(p for p in (f"{group}/namespaces/{self.namespace}/{kind}", name, sub) if p)

    def get(self, kind, name=""):
        return self.call("GET", self.ns(kind, name))

    def find(self, kind, name):
        try:
            return self.get(kind, name)
        except Refused as e:
            if e.status == 404:
                return None
            raise

    def create(self, kind, body):
        return self.call("POST", self.ns(kind), body)

    def patch(self, kind, name, body, sub=""):
        return self.call("PATCH", self.ns(kind, name, sub), body, "application/merge-patch+json")

    def delete(self, kind, name, **options):
        return self.call("DELETE", self.ns(kind, name), {"kind": "DeleteOptions", "apiVersion": "v1", **options})


class ControlPlane:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.token = token_hex(16)
        self.port, self.etcd_port, self.etcd_peer = (procs.free_port() for _ in range(3))
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = str(self.dir / "tls" / "ca.crt")
        self.tokens = {"admin": (self.token, "system:masters")}
        self.etcd = self.apiserver = self.manager = None

    def _openssl(self, *argv):
        subprocess.run(["openssl", *argv], check=True, cwd=self.dir / "tls", capture_output=True)

    def _certificates(self):
        tls = self.dir / "tls"
        tls.mkdir()
        (tls / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj",
                      "/CN=test-ca", "-days", "2")
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj",
                      "/CN=apiserver")
        self._openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.crt", "-days", "2",
                      "-extfile", "san")
        self._openssl("genrsa", "-out", "sa.key", "2048")

    def _process(self, name, argv):
        p = procs.Process(self.dir / name)
        p.name = name
        p.spawn(argv)
        procs.ALIVE.remove(p)  # it outlives a test: the session ends it
        return p

    def start(self):
        self._certificates()
        token_file, kubeconfig = self.dir / "tokens.csv", self.dir / "kubeconfig"
        # a user who may only what RBAC gives to a service account of that name
        self.tokens["controller"] = (token_hex(16), "controllers")
        token_file.write_text("".join(f'{t},{user},{user},"{group}"\n' for user, (t, group) in self.tokens.items()))
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority": self.ca}}],
            "users": [{"name": "u", "user": {"token": self.token}}]}))
        self.etcd = self._process("etcd", [
            binary("etcd"), "--data-dir", self.dir / "etcd" / "data", "--listen-client-urls", f"http://127.0.0.1:{self.etcd_port}", "--advertise-client-urls",
            f"http://127.0.0.1:{self.etcd_port}", "--listen-peer-urls", f"http://127.0.0.1:{self.etcd_peer}", "--initial-advertise-peer-urls",
            f"http://127.0.0.1:{self.etcd_peer}", "--initial-cluster", f"default=http://127.0.0.1:{self.etcd_peer}", "--log-level", "error"])
        self.etcd.wait_url(f"http://127.0.0.1:{self.etcd_port}/health", 30)
        self.start_apiserver()
        self.manager = self._process("kube-controller-manager", [
            binary("kube-controller-manager"), "--kubeconfig", kubeconfig, "--leader-elect=false", "--secure-port=0",
            "--controllers=statefulset-controller,replicaset-controller,deployment-controller", "--kube-api-qps=200", "--kube-api-burst=400", "--v=1"])
        return self

    def start_apiserver(self):
        tls = self.dir / "tls"
        self.apiserver = self._process("kube-apiserver", [
            binary("kube-apiserver"), "--etcd-servers", f"http://127.0.0.1:{self.etcd_port}", "--secure-port", self.port, "--bind-address=127.0.0.1",
            "--tls-cert-file", tls / "server.crt", "--tls-private-key-file", tls / "server.key", "--client-ca-file", tls / "ca.crt", "--token-auth-file",
            self.dir / "tokens.csv", "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount", "--service-account-issuer=https://test.invalid",
            "--service-account-key-file", tls / "sa.key", "--service-account-signing-key-file", tls / "sa.key", "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none", "--shutdown-delay-duration=0s", "--v=1"])
        procs.wait_for(self._up, 120, "kube-apiserver is ready", 0.2)

    def _up(self):
        if not self.apiserver.running():
            raise AssertionError(f"kube-apiserver ended:\n{self.apiserver.log_tail(20)}")
        try:
            return self.client().call("GET", "/readyz?verbose", timeout=5) is None
        except json.JSONDecodeError:
            return True
        except (OSError, Refused):
            return False

    def stop_apiserver(self):
        self.apiserver.signal(9)
        self.apiserver.proc.wait(30)

    def stop(self):
        for p in (self.manager, self.apiserver, self.etcd):
            if p and p.running():
                p.signal(9)
                p.proc.wait(30)

    def client(self, namespace="default", user="admin"):
        return Api(self.url, self.ca, self.tokens[user][0], namespace)

    def token_path(self, user):
        path = self.dir / f"token-{user}"
        path.write_text(self.tokens[user][0] + "\n")
        return path


# ---- members ----

EPOCHS = {}
EPOCHS_LOCK = threading.Lock()


def epoch_of(text, factor, directory):
    """As varve itself says it; None for a ring that is refused."""
    with EPOCHS_LOCK:
        if (text, factor) not in EPOCHS:
            path = pathlib.Path(directory) / f"ring-{len(EPOCHS)}.json"
            path.write_text(text)
            p = subprocess.run([procs.varve_binary(), "ring", "check", path, f"--replication-factor={factor}", "--output=json"], capture_output=True, text=True)
            EPOCHS[text, factor] = json.loads(p.stdout)["epoch"] if p.returncode == 0 else None
        return EPOCHS[text, factor]


def signed_by(secret, method, target, headers, body):
    """What cluster/trust.h says of a signature."""
    version, ms, nonce, mac = (headers.get("X-Varve-Peer") or "v0 0 0 0").split(" ")
    if version != "v1" or abs(int(ms) - time.time() * 1000) > 60000 or len(nonce) != 16:
        return False
    parts = [p.encode() for p in (method, target, headers.get("THANOS-TENANT") or "", headers.get("Content-Type") or "", ms, nonce, body)]
    text = b"".join(struct.pack("<Q", len(p)) for p in parts) + b"".join(parts)
    return hmac.compare_digest(mac, hmac.new(secret.encode(), text, "sha256").hexdigest())


class Member:
    """What the controller needs of a varve: /-/ready, /-/ring, /-/drain."""

    def __init__(self, name, ip, port, factor, directory, secret=None):
        self.name, self.ip, self.factor, self.dir, self.secret = name, ip, factor, directory, secret
        self.ready = True
        self.hang = False
        self.state = "active"
        self.rings = []  # (time, text)
        self.denied = 0
        self.open = set()  # connections
        self.lock = threading.Lock()
        member = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                with member.lock:
                    member.open.add(self.connection)

            def finish(self):
                with member.lock:
                    member.open.discard(self.connection)
                super().finish()

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass  # broken off by stop()

            def log_message(self, *args):
                pass

            def answer(self, status, body):
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def trusted(self, body):
                if member.secret is None or signed_by(member.secret, self.command, self.path, self.headers, body):
                    return True
                member.denied += 1
                self.answer(401, "who are you?")
                return False

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()

            def do_GET(self):
                while member.hang:
                    time.sleep(0.05)
                if self.path == "/-/ready":
                    self.answer(200 if member.ready else 503, "ready" if member.ready else "replaying")
                elif self.path == "/-/ring?hashrings=0":
                    self.answer(200, {"epoch": member.epoch() or "0000000000000000"})
                elif self.path == "/-/drain":
                    self.answer(200, {"state": member.state})
                else:
                    self.answer(404, "no such thing")

            def do_PUT(self):
                text = self.body()
                if not self.trusted(text):
                    return
                if epoch_of(text, member.factor, member.dir) is None:
                    self.answer(400, "refused")
                    return
                with member.lock:
                    member.rings.append((time.monotonic(), text))
                self.answer(200, "taken")

            def do_POST(self):
                if not self.trusted(self.body()):
                    return
                if member.state == "active":
                    member.state = "draining"
                self.answer(200, {"state": member.state})

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server((ip, port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def text(self):
        with self.lock:
            return self.rings[-1][1] if self.rings else None

    def epoch(self):
        text = self.text()
        return epoch_of(text, self.factor, self.dir) if text else None

    def stop(self):
        self.hang = False
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for c in self.open:  # a process that is gone answers on none of them
                try:
                    c.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class RealMember:
    """A varve on the Pod's address, as the manifests start it: it gets its first rings from the controller. It does what it says: `ready` is only what the Pod's status says."""

    def __init__(self, name, ip, port, factor, directory, secret=None, namespace="default"):
        self.name, self.ip, self.factor, self.dir, self.ready = name, ip, factor, directory, True
        self.url = f"http://{ip}:{port}"
        home = pathlib.Path(directory) / f"{name}-{ip}"
        flags = {"http.address": f"{ip}:{port}", "hashrings.file": home / "hashrings.json", "replication-factor": factor, "target": "ingest,query",
                 "hashrings.local-endpoint": f"{name}.svc.{namespace}.svc.cluster.local:{port}", "drain.quiet": "1s", "head.block-range": "1m"}
        if secret:
            flags["peer.secret-file"] = home / "secret"
            home.mkdir(parents=True, exist_ok=True)
            flags["peer.secret-file"].write_text(secret + "\n")
        self.server = procs.Varve(home, flags=flags)
        self.server.start(wait=False)

    def ask(self, path):
        """None: nobody answers."""
        try:
            status, text = procs.http_get(self.url + path, 2)
        except OSError:
            return None
        return json.loads(text) if status == 200 else None

    @property
    def state(self):
        if not self.server.running():
            return "drained"
        said = (self.ask("/-/drain") or {}).get("state", "active")
        return "draining" if said == "drained" else said  # it is not over before its process is

    @state.setter
    def state(self, _):
        pass  # its own matter

    def epoch(self):
        return (self.ask("/-/ring") or {}).get("epoch")

    def stop(self):
        if self.server.running():
            self.server.kill9()


class Kubelet:
    """Looks at Pods ten times a second and makes true what they ask for, but for whom it is told to hold back.

    pending      Pods that stay Pending for ever
    unready      Pods whose member runs and is not ready
    delay        seconds between a Pod's coming and its running
    drain_s      seconds that a member that drains takes
    asked_s      seconds that a Pod that ends waits for somebody to ask it to drain (varve drain --if-asked)
    """

    def __init__(self, api, port, directory, factor=3, secret=None, member=Member):
        self.api, self.port, self.dir, self.factor, self.secret, self.member = api, port, directory, factor, secret, member
        self.pending, self.unready = set(), set()
        self.delay, self.drain_s, self.asked_s = {}, 0.3, 0.5
        self.members = {}  # by Pod name
        self.nodes = {}  # Pod name -> Node name
        self.seen, self.born, self.ends = {}, {}, {}  # by uid
        self.next_ip = collections.Counter()
        self.base = randbelow(200) + 10
        self.stopped = threading.Event()
        self.trouble = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def address(self):
        self.next_ip["n"] += 1
        n = self.next_ip["n"]
        return f"127.{self.base}.{n // 250}.{n % 250 + 1}"

    def run(self):
        while not self.stopped.wait(0.1):
            try:
                self.look()
            except (OSError, Refused, json.JSONDecodeError) as e:
                self.trouble.append(repr(e))

    def look(self):
        pods = {p["metadata"]["uid"]: p for p in self.api.get("pods")["items"]}
        for uid in [u for u in self.seen if u not in pods]:
            self.end(uid)
        for uid, p in pods.items():
            self.one(uid, p)

    def end(self, uid):
        name, member = self.seen.pop(uid)
        if member:
            member.stop()
            if self.members.get(name) is member:
                del self.members[name]

    def one(self, uid, p):
        name, meta = p["metadata"]["name"], p["metadata"]
        if uid not in self.seen:
            self.seen[uid] = (name, None)
            self.born[uid] = time.monotonic()
        member = self.seen[uid][1]
        if meta.get("deletionTimestamp"):
            # preStop waits for the end of a drain that somebody asked for, a moment at least
            since = self.ends.setdefault(uid, time.monotonic())
            if member and member.state == "draining":
                if time.monotonic() - since > self.drain_s:
                    member.state = "drained"
                return
            if time.monotonic() - since > (0.5 if not member or member.state == "drained" else self.asked_s):
                self.end(uid)
                self.api.delete("pods", name, gracePeriodSeconds=0, preconditions={"uid": uid})
            return
        if not p["spec"].get("nodeName"):
            self.api.call("POST", self.api.ns("pods", name, "binding"), {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                                                                        "target": {"apiVersion": "v1", "kind": "Node",
                                                                                   "name": self.nodes.get(name, "node-1")}})
            return
        if name in self.pending or time.monotonic() - self.born[uid] < self.delay.get(name, 0):
            return
        if member is None:
            ip = self.address()
            member = self.member(name, ip, self.port, self.factor, self.dir, self.secret)
            member.ready = name not in self.unready
            self.seen[uid] = (name, member)
            self.members[name] = member
            self.status(name, ip, member.ready)
        elif name in self.unready and member.ready:
            member.ready = False
            self.status(name, member.ip, False)
        elif name not in self.unready and not member.ready:
            member.ready = True
            self.status(name, member.ip, True)

    def status(self, name, ip, ready):
        self.api.patch("pods", name, {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True" if ready else "False"}, {"type": "ContainersReady", "status": "True" if ready else "False"}]}}, "status")

    def crash(self, name):
        """The process is gone, and does not come back in this Pod."""
        for uid, (n, member) in list(self.seen.items()):
            if n == name and member:
                member.stop()
                self.api.patch("pods", name, {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}}, "status")

    def stop(self):
        self.stopped.set()
        self.thread.join(10)
        for uid in list(self.seen):
            self.end(uid)


# ---- the controller ----

class Controller(procs.Process):
    name = "control"

    def __init__(self, directory, plane, namespace, member_port, user="admin", **flags):
        super().__init__(directory)
        self.name = pathlib.Path(directory).name
        self.port = procs.free_port()
        self.flags = {"namespace": namespace, "configmap-name": "base", "configmap-generated-name": "generated", "file-name": "hashrings.json",
                      "replication-factor": 3, "port": member_port, "control.kube-url": plane.url, "control.kube-ca": plane.ca,
                      "control.kube-token-file": plane.token_path(user), "http.address": f"127.0.0.1:{self.port}", "control.lease-duration": "3s",
                      "control.identity": self.name, **{k.replace("__", ".").replace("_", "-"): v for k, v in flags.items()}}

    def start(self):
        self.spawn([procs.varve_binary(), "control", *(f"--{k}={v}" for k, v in self.flags.items() if v is not None)])
        procs.wait_for(lambda: self.running() and procs.http_get(self.url("/-/healthy"), 2)[0] == 200, 20, "the controller listens")
        return self

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def ready(self):
        return procs.http_get(self.url("/-/ready"), 3)

    def members(self):
        return json.loads(procs.http_get(self.url("/-/members"), 5)[1])

    def states(self):
        return {m["address"].split(".")[0]: m["state"] for m in self.members()["members"]}

    def metric(self, name):
        text = procs.http_get(self.url("/metrics"), 5)[1]
        m = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(m[1]) if m else None


def statefulset(name, replicas, ring="default", service="svc", policy="Parallel", labels=None, pod_labels=None):
    labels = {**SELECTOR, RING: ring} if labels is None else labels
    pod_labels = {"app": name, **SELECTOR} if pod_labels is None else pod_labels
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "labels": labels}, "spec": {
        "replicas": replicas, "serviceName": service, "podManagementPolicy": policy, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": pod_labels}, "spec": {"containers": [{"name": "varve", "image": "varve"}], "terminationGracePeriodSeconds": 600}}}}
