"""`varve bench write`: what it says it sent is there, it repeats what Prometheus repeats, and what can't work is said in words with exit code 1."""
import collections
import http.server
import json
import pathlib
import re
import socketserver
import subprocess
import threading
import time

import pytest
from lib import procs
from lib.wire import int64, packed_varints, pb_fields, read_uvarint, unsnappy

SMALL = ("--series=1003", "--rounds=4", "--batch=100", "--connections=3")


def bench(*args, check=0, timeout=120):
    p = subprocess.run([procs.varve_binary(), "bench", "write", *args], capture_output=True, text=True, timeout=timeout, check=False)
    assert check is None or p.returncode == check, f"exit code {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p


def bench_json(*args, check=0):
    return json.loads(bench("--output=json", *args, check=check).stdout)


# ---- a receiver that answers as it is told ----


class Receiver(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer=lambda n: (204, {}, b"")):
        """answer(n-th request, from 0) -> (status, headers, body); None breaks the connection."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen = []  # (headers, body, when)
        self.connections = set()
        self.mu = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.mu:
            n = len(self.server.seen)
            self.server.seen.append((dict(self.headers), body, time.monotonic(), self.path))
            self.server.connections.add(self.client_address)
        said = self.server.answer(n)
        if said is None:
            self.close_connection = True
            return
        status, headers, text = said
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k, v)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def samples_of(message):
    t, v = 0, 0
    for number, _, value in pb_fields(message):
        if number == 1:
            v = value
        elif number == 2:
            t = int64(value)
    return t, v


def decode1(body):
    out = []
    for _, _, series in pb_fields(unsnappy(body)):
        labels = []
        for number, _, value in pb_fields(series):
            if number == 1:
                pair = {n: bytes(v).decode() for n, _, v in pb_fields(value)}
                labels.append((pair[1], pair[2]))
            else:
                assert number == 2
                t, v = samples_of(value)
        out.append((tuple(labels), t, v))
    return out


def decode2(body):
    symbols, out = [], []
    for number, _, value in pb_fields(unsnappy(body)):
        if number == 4:
            symbols.append(bytes(value).decode())
            continue
        assert number == 5 and symbols[0] == ""
        for n, wire, v in pb_fields(value):
            if n == 1:
                refs = packed_varints(wire, v)
                labels = tuple((symbols[a], symbols[b]) for a, b in zip(refs[::2], refs[1::2]))
            elif n == 2:
                t, bits = samples_of(v)
            else:
                assert n == 5 and len(v) == 0
        out.append((labels, t, bits))
    assert len(set(symbols)) == len(symbols)
    return out


# ---- against varve ----


def test_what_is_reported_is_what_is_stored(varve):
    v = varve()
    r = bench_json(f"--url={v.url}", f"--pid={v.pid}", *SMALL)
    assert (r["requests"], r["acked"], r["failed"], r["retried"]) == (44, 44, 0, 0)
    assert r["samples"] == 4012 and r["answers"] == {"204": 44} and r["first_refusal"] is None
    latency = r["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert r["seconds"] > 0 and r["samples_per_second"] == pytest.approx(4012 / r["seconds"], rel=0.01)
    assert r["bytes"] < r["message_bytes"] and 280 < r["message_bytes_per_sample"] < 340
    assert 0 < r["server"]["cpu_seconds"] < 30 and r["server"]["rss_bytes_after"] > 1e6
    stored = v.read()
    assert len(stored) == 1003
    assert sum(len(samples) for _, samples in stored_pairs(stored)) == 4012


def stored_pairs(read):
    return read.items() if isinstance(read, dict) else read


def test_the_table_has_the_same_in_words(varve):
    v = varve()
    p = bench(f"--url={v.url}/api/v1/receive", f"--pid={v.pid}", *SMALL)
    words = re.sub(r"\s+", " ", p.stdout)
    assert "44 acknowledged, 0 failed" in words and "samples 4012 in" in words and "204: 44" in words
    assert re.search(r"latency p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms", words)
    assert re.search(r"server CPU [\d.]+ us a sample", words)
    assert "44 bodies" in p.stderr and "1 pass" in p.stderr


@pytest.mark.parametrize("how", ["--order=strided", "--order=shuffled", "--out-of-order=30", "--no-prebuild", "--memory=20KiB", "--labels=25", "--connections=500"])
def test_every_way_of_sending_stores_everything(varve, how):
    v = varve()
    r = bench_json(f"--url={v.url}", *(a for a in SMALL if a.split("=")[0] != how.split("=")[0]), how)
    assert r["samples"] == 4012 and r["failed"] == 0
    assert (r["passes"] > 1) == (how == "--memory=20KiB")
    stored = dict(stored_pairs(v.read()))
    assert len(stored) == 1003 and {len(s) for s in stored.values()} == {4}


def test_tenants_share_the_series_and_churn_brings_new_ones(varve):
    v = varve()
    bench_json(f"--url={v.url}", "--tenants=3", "--tenant=team", *SMALL)
    assert [len(v.read(tenant=f"team-{i:05}")) for i in range(3)] == [335, 334, 334]
    r = bench_json(f"--url={v.url}", "--tenant=churn", "--churn=100", "--step=30s", *SMALL)
    stored = dict(stored_pairs(v.read(tenant="churn")))
    assert r["samples"] == sum(len(s) for s in stored.values()) == 4012
    assert 1003 < len(stored) <= 3009  # at 100 % a minute each target is replaced once or twice in 90 s


def test_a_run_goes_on_where_another_ended_with_the_same_bytes(varve):
    v = varve()
    start = int(time.time()) // 15 * 15000 - 600000
    with Receiver() as a, Receiver() as b:
        bench_json(f"--url={a.url}", f"--start={start}", *SMALL)
        for first in range(4):
            bench_json(f"--url={b.url}", f"--start={start}", "--series=1003", "--rounds=1", "--batch=100", f"--first-round={first}")
        assert collections.Counter(s[1] for s in a.seen) == collections.Counter(s[1] for s in b.seen)
    bench_json(f"--url={v.url}", f"--start={start}", *SMALL)
    bench_json(f"--url={v.url}", f"--start={start}", *SMALL)  # again: duplicates, no refusal
    assert sum(len(s) for _, s in stored_pairs(v.read())) == 4012


def test_the_checker_finds_what_was_acknowledged_and_what_is_missing(varve, tmp_path):
    checker = procs.find("query_check", pathlib.Path(procs.varve_binary()).parent / "bench" / "query_check")
    v = varve()
    shape = [f"--url={v.url}", "--series=1003", "--rounds=4", "--batch=100", f"--start={int(time.time()) // 15 * 15000 - 600000}", f"--acks={tmp_path / 'acks'}"]
    bench_json(*shape, "--connections=3")
    p = subprocess.run([checker, *shape], capture_output=True, text=True, check=False)
    r = json.loads(p.stdout)
    assert (p.returncode, r["acked_samples"], r["found"], r["lost"], r["wrong"], r["phantom"], r["duplicate"]) == (0, 4012, 4012, 0, 0, 0, 0), p.stderr
    with open(tmp_path / "acks", encoding="ascii") as f:
        assert sorted(tuple(map(int, line.split())) for line in f) == [(a, b) for a in range(4) for b in range(11)]
    p = subprocess.run([checker, *shape, "--seed=1"], capture_output=True, text=True, check=False)
    assert p.returncode == 2 and json.loads(p.stdout)["wrong"] > 0


def test_a_real_prometheus_takes_both_versions_with_histograms(spawn):
    p = spawn(procs.Prometheus, newest=True, flags=("--web.enable-remote-write-receiver", "--enable-feature=native-histograms"))
    p.start()
    start = int(time.time()) // 15 * 15000 - 600000
    for rw in (1, 2):
        r = bench_json(f"--url={p.url}", "--histograms=30", f"--rw={rw}", f"--start={start}", f"--first-round={rw * 4}", *SMALL)
        assert (r["acked"], r["samples"]) == (44, 4012)
        assert r.get("written") == (4012 if rw == 2 else None)
    now = (start + 7 * 15000) / 1000
    assert p.query('count({series=~".+"})', now)[0]["value"][1] == "1003"
    histograms = int(p.query('count(histogram_count({series=~".+"}))', now)[0]["value"][1])
    assert 200 < histograms < 900


# ---- against a receiver that answers as it is told ----


def test_both_versions_carry_the_same_samples_with_their_headers():
    start = 1700000000000
    with Receiver() as one, Receiver(lambda n: (204, {"X-Prometheus-Remote-Write-Samples-Written": "100" if n < 10 else "3"}, b"")) as two:
        shape = ("--series=1003", "--rounds=1", "--batch=100", "--connections=1", "--order=shuffled", f"--start={start}")
        r1, r2 = bench_json(f"--url={one.url}", "--rw=1", *shape), bench_json(f"--url={two.url}", "--rw=2", "--tenant=me", "--header=X-More: yes", *shape)
        assert "written" not in r1 and r2["written"] == 1003
        assert [decode1(b) for _, b, *_ in one.seen] == [decode2(b) for _, b, *_ in two.seen]
        assert sum(len(decode1(b)) for _, b, *_ in one.seen) == 1003
        h1, h2 = one.seen[0][0], two.seen[0][0]
        assert one.seen[0][3] == two.seen[0][3] == "/api/v1/write"
        assert (h1["Content-Type"], h1["X-Prometheus-Remote-Write-Version"]) == ("application/x-protobuf", "0.1.0")
        assert (h2["Content-Type"], h2["X-Prometheus-Remote-Write-Version"]) == ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0")
        assert h1["Content-Encoding"] == h2["Content-Encoding"] == "snappy" and h2["User-Agent"]
        assert (h2["THANOS-TENANT"], h2["X-More"]) == ("me", "yes") and "THANOS-TENANT" not in h1
        assert read_uvarint(one.seen[0][1], 0)[0] * 1.0 == pytest.approx(r1["message_bytes"] / 11, rel=0.5)


def test_a_series_stays_on_its_connection_which_is_kept():
    with Receiver() as r:
        bench_json(f"--url={r.url}", *SMALL)
        assert len(r.connections) == 3 and len(r.seen) == 44


def test_503_429_and_broken_connections_are_sent_again():
    def answer(n):
        return {1: (503, {}, b"busy"), 2: (429, {"Retry-After": "1"}, b"slow down"), 4: None}.get(n, (204, {}, b""))
    with Receiver(answer) as r:
        got = bench_json(f"--url={r.url}", "--series=300", "--rounds=1", "--batch=100", "--connections=1")
        assert (got["requests"], got["acked"], got["failed"]) == (3, 3, 0) and got["retried"] >= 2
        assert got["answers"]["204"] == 3 and got["answers"]["503"] == 1 and got["answers"]["429"] == 1
        assert got["first_refusal"] == "503: busy"
        assert r.seen[1][1] == r.seen[2][1] == r.seen[3][1]
        assert r.seen[3][2] - r.seen[2][2] >= 0.99  # Retry-After


def test_a_refusal_for_good_is_counted_and_not_repeated():
    with Receiver(lambda n: (400, {}, b"out of order\n") if n == 1 else (204, {}, b"")) as r:
        got = bench_json(f"--url={r.url}", "--series=300", "--rounds=1", "--batch=100", "--connections=1", check=1)
        assert (got["acked"], got["failed"], got["samples"], got["samples_failed"]) == (2, 1, 200, 100)
        assert got["first_refusal"] == "400: out of order" and len(r.seen) == 3


def test_a_server_that_puts_off_for_ever_is_given_up():
    with Receiver(lambda n: (503, {}, b"no")) as r:
        got = bench("--output=json", f"--url={r.url}", "--series=10", "--rounds=1", "--retry=200ms", check=1)
        assert json.loads(got.stdout)["failed"] == 1


def test_a_rate_is_held_and_latency_counts_from_when_a_request_was_due():
    with Receiver(lambda n: time.sleep(0.6 if n == 0 else 0) or (204, {}, b"")) as r:
        got = bench_json(f"--url={r.url}", "--series=1000", "--rounds=1", "--batch=100", "--connections=1", "--rate=1000")
        assert 0.85 <= got["seconds"] < 5
        assert got["latency_ms"]["p50"] > 100  # the first stalled 600 ms: those due meanwhile waited, too


# ---- what can't work ----


@pytest.mark.parametrize("args, words", [
    (["--url=http://127.0.0.1:1"], "127.0.0.1"),
    (["--url=127.0.0.1:9090"], "http://"),
    (["--url=http://127.0.0.1:1", "--pid=4194304"], "no process"),
    (["--series=0"], "--series"),
    (["--churn=lots"], "--churn"),
    (["--order=random"], "scrape|strided|shuffled"),
    (["--tenants=9", "--series=5"], "--tenants"),
    (["--labels=1"], "--labels"),
    (["--seires=5"], "did you mean --series"),
])
def test_what_cannot_work_is_said_with_exit_code_1(args, words):
    began = time.monotonic()
    p = bench("--series=100", *args, check=1) if not any(a.startswith("--series") for a in args) else bench(*args, check=1)
    assert words in p.stderr and p.stderr.count("varve: ") == 1 and not p.stdout
    assert time.monotonic() - began < 20


def test_a_wrong_path_ends_the_run_at_once(varve):
    v = varve()
    p = bench(f"--url={v.url}/nothing", "--series=10000", "--rounds=50", check=1)
    assert "404" in p.stderr and f"{v.url}/nothing" in p.stderr


def test_the_help_explains_with_examples():
    p = bench("--help")
    for word in ("--url", "--series", "--churn", "--out-of-order", "--pid", "varve bench write --rate=", "/api/v1/write"):
        assert word in p.stdout
    assert "usage: varve bench write" in subprocess.run([procs.varve_binary(), "bench"], capture_output=True, text=True, check=False).stderr


# ---- files ----


def test_dumped_bodies_are_walked_by_the_floor_program(tmp_path):
    binary = procs.find("the floor program", pathlib.Path(procs.varve_binary()).parent / "bench" / "floor")
    p = bench(f"--dump={tmp_path / 'bodies'}", "--series=1003", "--rounds=3", "--batch=100")
    assert "33 bodies" in p.stdout
    p = subprocess.run([binary, tmp_path / "bodies", "passes=2"], capture_output=True, text=True, check=True)
    r = json.loads(p.stdout)
    assert (r["series"], r["samples"]) == (1003, 2 * 3009) and r["ns_per_sample"] > 0
    bench(f"--dump={tmp_path / 'two'}", "--series=10", "--rounds=1", "--rw=2")
    p = subprocess.run([binary, tmp_path / "two"], capture_output=True, text=True, check=False)
    assert p.returncode == 1 and "2.0" in p.stderr
