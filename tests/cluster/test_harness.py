"""The harness itself: it has to see what is lost, wrong, twice, made up or unready, or the rest of this folder says nothing. One varve, no ring."""
import http.server
import itertools
import json
import random
import socket
import struct
import threading
import time

import pytest
from fleet import Load, RingFile, Watch, Worker, judge, procs
from lib.wire import uvarint
from load import Shape
from proxy import MODES, Proxy


@pytest.fixture
def one(tmp_path):
    server = procs.Varve(tmp_path / "varve", {"wal.segment-size": "8MiB", "disk.reserve": "64MiB"})
    yield server.start()
    procs.stop_all()


class Answers:
    """A server that answers writes with the given codes in turn, then 204."""

    def __init__(self, codes, retry_after=None):
        left, owner = iter(codes), self
        self.bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                owner.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                code = next(left, 204)
                self.send_response(code)
                if retry_after is not None and code != 204:
                    self.send_header("Retry-After", str(retry_after))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                self.send_response(owner.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.status = 200
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.name = "answers"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def test_a_load_on_one_varve_is_all_there(one, tmp_path):
    load = Load(tmp_path / "load", one.url, "load", series=500, batch=50, step_ms=250, shards=3).start()
    reader = Worker(tmp_path / "reader", "judge", ledger=load.ledger, urls=tmp_path / "urls", out=tmp_path / "reader" / "result.json", every=0.2)
    (tmp_path / "urls").write_text(one.url)
    reader.start()
    load.wait_rounds(12)
    got = reader.end()
    load.end()
    book = load.book
    assert got["reads"] >= 3 and got["refused"] == 0 and got["expected"] > 0 and not any(got[k] for k in judge.Findings.KINDS)
    found = judge.check_all(book, one.url)
    assert found.clean and found.expected == book.samples() == found.read >= 5000, str(found)
    s = book.summary()
    assert s["errors"] == s["refused"] == s["open"] == 0 and 0 < s["p50_ms"] <= s["p99_ms"]
    # And what the server has not is missed.
    book.acked[3].add(book.last_round() + 1)
    assert judge.check_all(book, one.url).counts == {"lost": 50}


def shape_and_answer():
    shape = Shape("x", series=6, batch=3, start_ms=1_790_000_000_000, step_ms=1000)
    must = {b: {0, 1, 2, 3} for b in range(2)}
    found = [({**dict(shape.labels(i)), "tenant_id": "t"}, [(uvarint(shape.time(k)), shape.value(i, k)) for k in range(4)]) for i in range(6)]
    return shape, must, found


def test_the_judge_sees_each_kind_of_fault():
    def counts(change, batches=(0, 1)):
        shape, must, found = shape_and_answer()
        change(shape, must, found)
        return dict(judge.check(shape, found, list(batches), must).counts)

    assert counts(lambda s, m, f: None) == {}
    assert counts(lambda s, m, f: f[2][1].pop(1)) == {"lost": 1}
    assert counts(lambda s, m, f: f.pop(2)) == {"lost": 4}
    assert counts(lambda s, m, f: f.append(f[0])) == {"duplicate": 4}
    assert counts(lambda s, m, f: f.append(({**f[0][0], "varve_node": "n"}, f[0][1][:1]))) == {"duplicate": 1}  # a replica that was not taken out
    assert counts(lambda s, m, f: f[0][1].__setitem__(0, (f[0][1][0][0], 7.0))) == {"wrong": 1}
    assert counts(lambda s, m, f: f[0][1].append((uvarint(s.time(1) + 1), 1.0))) == {"phantom": 1}
    assert counts(lambda s, m, f: f[0][0].__setitem__("extra", "1")) == {"phantom": 1, "lost": 4}
    assert counts(lambda s, m, f: None, [0]) == {"phantom": 3}  # series of a batch that was not asked for
    assert counts(lambda s, m, f: m[0].clear()) == {}  # there, and the answer to it did not come: no fault


def test_samples_are_parsed_fast_and_slowly_alike():
    rng = random.Random(7)
    for n in (0, 1, 50):
        times, values = [1_790_000_000_000 + i for i in range(n)], [rng.random() for _ in range(n)]
        fast = b"".join(b"\x12\x10\x09" + struct.pack("<d", v) + b"\x10" + uvarint(t) for t, v in zip(times, values))
        slow = b"".join(b"\x12\x10\x10" + uvarint(t) + b"\x09" + struct.pack("<d", v) for t, v in zip(times, values))
        assert judge.rows(fast) == judge.rows(slow) == [(uvarint(t), v) for t, v in zip(times, values)]


@pytest.mark.parametrize("codes, outcome, attempts", [([503, 500], "A", 3), ([400], "R", 1), ([429], "R", 1), ([409], "R", 1), ([], "A", 1)])
def test_requests_are_repeated_as_prometheus_does(tmp_path, codes, outcome, attempts):
    server = Answers(codes)
    load = Load(tmp_path / "load", server.url, "load", series=10, batch=10, step_ms=100, shards=1).start()
    load.wait_rounds(3)
    load.end()
    server.stop()
    first = load.book.requests[0]
    assert (first.outcome, first.attempts, first.codes) == (outcome, attempts, codes)
    assert all(r.outcome == "A" for r in load.book.requests[1:])
    assert len(set(server.bodies[:attempts])) == 1  # the same bytes again
    s = load.book.summary()
    assert s["errors"] == len(codes) and s["refused"] == (outcome == "R")


def test_retry_after_is_obeyed_and_counts_as_latency(tmp_path):
    server = Answers([503], retry_after=1)
    load = Load(tmp_path / "load", server.url, "load", series=10, batch=10, step_ms=200, shards=1).start()
    load.wait_rounds(8)
    load.end()
    server.stop()
    rs = load.book.requests
    assert rs[0].latency_us >= 1_000_000 and rs[1].latency_us >= 700_000  # what waited behind it is late as well
    assert rs[-1].latency_us < 200_000


def test_an_unready_node_is_seen_for_as_long_as_it_is(tmp_path):
    server = Answers([])
    watch = Watch(tmp_path / "watch")
    watch.put(server)
    watch.start()
    time.sleep(0.5)
    server.status = 503
    time.sleep(1)
    server.status = 200
    time.sleep(0.3)
    watch.drop(server)
    server.status = 503
    time.sleep(0.3)
    got = watch.end()
    server.stop()
    assert 0.8 <= got["unready_s"]["answers"] <= 1.4 and "503" in got["first"]["answers"] and got["polls"] > 15


def echo_server():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(c):
        try:
            while data := c.recv(65536):
                c.sendall(data)
        except OSError:  # a reset is what some modes are for
            pass
        c.close()

    def accept():
        while True:
            try:
                c, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(c,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def echoed(c, n=1000, timeout=0.7):
    """(bytes that came back, seconds), or the name of the error."""
    c.settimeout(timeout)
    began, got = time.monotonic(), 0
    try:
        c.sendall(b"x" * n)
        while got < n:
            data = c.recv(65536)
            if not data:
                return "end"
            got += len(data)
    except TimeoutError:
        return "nothing" if got == 0 else got
    except OSError as e:
        return type(e).__name__
    return got, time.monotonic() - began


def test_the_proxy_does_what_it_says():
    listener = echo_server()
    proxy = Proxy(listener.getsockname()[1]).start()
    host, port = proxy.address.split(":")

    def connect():
        return socket.create_connection((host, int(port)), 2)

    for mode in MODES:
        old = connect()
        assert echoed(old)[0] == 1000
        proxy.set(mode)
        for conn in (old, *([] if mode == "refuse" else [connect()])):
            got = echoed(conn, 4000 if mode == "slow" else 1000)
            if mode == "pass":
                assert got[0] == 1000 and got[1] < 0.2
            elif mode in ("hang", "blackhole"):
                assert got == "nothing"
            elif mode == "slow":
                assert got == "nothing" or isinstance(got, int) and got < 4000 or got[1] > 0.35
            elif mode == "latency":
                assert got[0] == 1000 and got[1] >= 0.4
            else:
                assert got in ("ConnectionResetError", "BrokenPipeError", "end")
            conn.close()
        if mode == "refuse":
            with pytest.raises(ConnectionRefusedError):
                connect()
        proxy.set("pass")
        new = connect()
        assert echoed(new)[0] == 1000, mode
        new.close()
    # What a blackhole held back arrives afterwards: nothing was lost on the way.
    c = connect()
    echoed(c)
    proxy.set("blackhole")
    assert echoed(c) == "nothing"
    proxy.set("pass")
    c.settimeout(2)
    assert len(c.recv(65536)) == 1000
    proxy.stop()
    listener.close()


def test_ring_files_are_replaced_in_every_way(tmp_path):
    ring = RingFile(tmp_path)
    text = json.dumps([{"endpoints": ["a:1", "b:1"]}], indent=1)
    ring.write("[]")
    for how, n in itertools.product(("rename", "links", "in place", "links", "rename"), range(2)):
        ring.write(text + " " * n, how)
        assert ring.path.read_text() == text + " " * n and ring.path.is_symlink() == (how == "links" or (how == "in place" and ring.path.is_symlink())), (how, n)
