"""What a sender gets for what it sends: good requests, and every bad one that a bad day brings. Statuses, ids, what is stored, what it costs."""
import http.client
import os
import re
import socket
import time

import pytest
from lib import gen, ledger, procs, remote, wire
from lib.remote import labels
from lib.wire import bits, pb_int, pb_len

MIB = 1 << 20
PATHS = ["/api/v1/receive", "/api/v1/write", "/api/v1/push"]


def now():
    return int(time.time() * 1000)


@pytest.fixture
def server(varve):
    return varve()


def stored(server, tenant=None):
    return {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(tenant).items()}


def refused(answer, status, error_id=None):
    assert answer.status == status, f"{answer.status} {answer.text[:300]}"
    assert answer.id, f"no error id in {answer.text[:300]!r}"
    assert error_id is None or answer.id == "err-varve-" + error_id, answer.text
    if status == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    return answer


# ---- good ----

@pytest.mark.parametrize("path", PATHS)
def test_every_write_path_stores(server, path):
    t = now()
    a = server.client().write([(labels("up", job="x"), [(t, bits(1.5))])], path=path)
    assert (a.status, a.body) == (204, b"")
    assert stored(server) == {labels("up", job="x"): [(t, bits(1.5))]}


def test_every_float_keeps_its_bits(server):
    t = now()
    values = [bits(x) for x in (0.0, -0.0, 1.0, -1.5, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"))]
    values += [wire.STALE_NAN, wire.NORMAL_NAN, 0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF]
    series = [(labels("special", i=str(i)), [(t, v)]) for i, v in enumerate(values)]
    assert server.client().write(series).status == 204
    want = {k: v for k, v in series}
    assert stored(server) == want
    server.flush()
    assert stored(server) == want


def test_a_retry_is_harmless(server):
    samples = gen.Samples(1, 50, now() - 600_000)
    c = server.client()
    for _ in range(3):
        for k in range(20):
            assert c.write(samples.batch(k)).status == 204
    assert stored(server) == samples.all(20)


def test_samples_out_of_order_are_stored_sorted(server):
    rng = ledger.seeded("order")
    t = now() - 3_600_000
    want = [(t + i * 1000, bits(float(i))) for i in range(3000)]
    mixed = want[:]
    rng.shuffle(mixed)
    c = server.client()
    for i in range(0, len(mixed), 100):
        assert c.write([(labels("late"), mixed[i:i + 100])]).status == 204
    assert stored(server) == {labels("late"): want}
    server.flush()
    assert stored(server) == {labels("late"): want}


def test_a_sample_at_the_end_of_time_takes_no_other_with_it(varve):
    server = varve(ingest_oldest="0s")
    times = [-2**63 + 300_000_000, -2**62, -1, 0, now()]
    want = {labels("m"): [(t, bits(1.0)) for t in times]}
    for t in times:
        assert server.client().write([(labels("m"), [(t, bits(1.0))])]).status == 204
    everything = lambda: {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read(start=-2**63, end=2**63 - 1).items()}
    assert everything() == want
    assert len(server.flush()) == len(times)
    assert everything() == want
    server.kill9()
    server.start()
    assert everything() == want


def test_tenants_do_not_see_each_other(server):
    t = now()
    for n in range(20):
        name = f"team-{n}"
        assert server.client(name).write([(labels("up"), [(t, bits(float(n)))])]).status == 204
    for n in range(20):
        assert list(stored(server, f"team-{n}").values()) == [[(t, bits(float(n)))]]
    assert stored(server) == {} == stored(server, "team-20")
    c = remote.Client(server.url, headers={"X-Scope-OrgID": "team-3"})
    assert c.write([(labels("down"), [(t, bits(1.0))])]).status == 204
    assert labels("down") in stored(server, "team-3")
    both = {"THANOS-TENANT": "team-3", "X-Scope-OrgID": "team-4"}
    refused(remote.Client(server.url, headers=both).write([(labels("up"), [(t, bits(1.0))])]), 400, "tenant")
    both["X-Scope-OrgID"] = "team-3"
    assert remote.Client(server.url, headers=both).write([(labels("both"), [(t, bits(1.0))])]).status == 204


def test_absent_headers_are_remote_write_1(server):
    t = now()
    a = server.client().write([(labels("up"), [(t, bits(1.0))])], headers={"Content-Type": None, "Content-Encoding": None})
    assert a.status == 204, a.text
    assert stored(server)


@pytest.mark.parametrize("content_type", ["application/x-protobuf;proto=prometheus.WriteRequest", "application/x-protobuf; proto=prometheus.WriteRequest"])
def test_version_1_by_name(server, content_type):
    assert server.client().write([(labels("up"), [(now(), bits(1.0))])], headers={"Content-Type": content_type}).status == 204


def test_exemplars_and_metadata_ride_along(server):
    """What becomes of them: test_annotations.py."""
    t = now()
    body = pb_len(1, remote.encode_labels(labels("up")) + remote.encode_sample(t, bits(1.0)) + remote.encode_exemplar(labels(trace_id="abc"), t, bits(1.0)))
    body += remote.encode_metadata("up", "counter", "help")
    assert server.client().write_body(wire.snappy(body)).status == 204
    assert stored(server) == {labels("up"): [(t, bits(1.0))]}


# ---- row 1: not a request at all ----



def good_now():
    return remote.encode_series(labels("good_neighbour"), [(now(), bits(1.0))])


MALFORMED = {
    "not_snappy": lambda: b"hello, this is not snappy",
    "empty_body": lambda: b"",
    "framed_snappy": lambda: b"\xff\x06\x00\x00sNaPpY" + wire.snappy(good_now()),
    "snappy_cut_off": lambda: wire.snappy(good_now() * 10)[:-3],
    "not_protobuf": lambda: wire.snappy(b"\xff\xfe\xfd this is not protobuf"),
    "json": lambda: wire.snappy(b'{"streams": []}'),
    "truncated_varint": lambda: wire.snappy(good_now() + pb_len(1, remote.encode_labels(labels("x")) + b"\x12\x02\x10\xff")),
    "wrong_wire_type": lambda: wire.snappy(good_now() + pb_len(1, pb_int(1, 5))),
    "sample_is_a_string": lambda: wire.snappy(good_now() + pb_len(1, remote.encode_labels(labels("x")) + pb_len(2, pb_len(1, b"1.5")))),
    "length_beyond_the_end": lambda: wire.snappy(good_now() + b"\x0a\xff\xff\xff\x03" + b"abc"),
    "half_a_request": lambda: wire.snappy(good_now() + good_now()[:-4]),
    "invalid_utf8_in_a_name": lambda: wire.snappy(good_now() + remote.encode_series((("__name__", "x"), ("b\udcff\udcfe", "v")), [(now(), bits(1.0))])),
    "invalid_utf8_in_the_metric_name": lambda: wire.snappy(good_now() + remote.encode_series((("__name__", "x\udcff"),), [(now(), bits(1.0))])),
    "invalid_utf8_in_a_name_without_samples": lambda: wire.snappy(good_now() + remote.encode_series((("__name__", "x"), ("b\udcff", "v")), [])),
    "label_cut_off_without_samples": lambda: wire.snappy(good_now() + pb_len(1, pb_len(1, b"\x0a\x50ab"))),
    "label_is_not_a_message": lambda: wire.snappy(good_now() + pb_len(1, pb_len(1, b"\xff\xff\xff") + remote.encode_sample(now(), bits(1.0)))),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_stores_nothing(server, case):
    a = server.client().write_body(MALFORMED[case]())
    refused(a, 400)
    assert stored(server) == {}


# ---- row 2: headers ----

@pytest.mark.parametrize("headers", [
    {"Content-Type": "application/json"}, {"Content-Type": "image/png"}, {"Content-Type": "application/x-protobuf;proto=no.such.Message"},
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}, {"Content-Encoding": "identity"},
    {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v3.Request"},
], ids=lambda h: next(iter(h.values())))
@pytest.mark.parametrize("body", [b"corrupt too", None], ids=["corrupt", "good"])
def test_a_wrong_header_is_415_before_the_body_is_judged(server, headers, body):
    refused(server.client().write_body(body or wire.snappy(good_now()), headers), 415)
    assert stored(server) == {}


def test_other_methods_are_405(server):
    for method in ("GET", "PUT", "DELETE"):
        a = server.client().request(method, "/api/v1/write", b"")
        assert a.status == 405 and "POST" in a.headers["Allow"]


# ---- rows 3 and 4: too much ----

class Cost:
    """More resident memory at the peak, and CPU seconds, of a server during a block."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        self.server.rss_peak_reset()
        self.rss, self.cpu = self.server.rss(), self.server.cpu()
        return self

    def __exit__(self, *exc):
        self.rss, self.cpu = self.server.rss_peak() - self.rss, self.server.cpu() - self.cpu
        print(f"cost: {self.rss / MIB:.1f} MiB more resident, {self.cpu:.2f} CPU s")

    def within(self, mib=64, cpu=0.1):
        if "VARVE_SANITIZED" not in os.environ:
            assert self.rss <= mib * MIB, f"{self.rss / MIB:.1f} MiB more resident"
            # The kernel counts CPU in ticks of 10 ms: one at each end.
            assert self.cpu <= cpu + 0.02, f"{self.cpu} CPU s"


def raw_request(server, head, pieces, timeout=20):
    """Sends until an answer comes or all is sent; returns the status."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as s:
        s.sendall(head)
        s.setblocking(False)
        got, pieces, piece = b"", iter(pieces), b""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                data = s.recv(65536)
                got += data
                if b"\r\n\r\n" in got or not data:
                    break
            except BlockingIOError:
                pass
            except ConnectionResetError:
                break
            if not piece:
                piece = next(pieces, b"")
            try:
                piece = piece[s.send(piece):] if piece else piece
            except BlockingIOError:
                time.sleep(0.001)
            except (BrokenPipeError, ConnectionResetError):
                time.sleep(0.01)
            if not piece:
                time.sleep(0.002)
    m = re.match(rb"HTTP/1\.1 (\d+)", got)
    return int(m[1]) if m else 0


HEAD = ("POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n")


def test_a_body_over_the_limit_is_413_by_its_length(server):
    server.client().write_body(wire.snappy(good_now()))
    with Cost(server) as cost:
        assert raw_request(server, f"{HEAD}Content-Length: {33 * MIB}\r\n\r\n".encode(), []) == 413
        assert raw_request(server, f"{HEAD}Content-Length: {1 << 40}\r\n\r\n".encode(), []) == 413
    cost.within(mib=8)


def test_a_body_over_the_limit_is_413_while_it_arrives(varve):
    server = varve(ingest_max_body="4MiB")
    with Cost(server) as cost:
        chunk = b"10000\r\n" + b"\x00" * 65536 + b"\r\n"
        status = raw_request(server, (HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode(), [chunk] * 1600)
        assert status == 413
    cost.within(mib=16)
    assert server.client().write_body(wire.snappy(good_now())).status == 204


@pytest.mark.parametrize("declared", [128 * MIB + 1, 1 << 30, (1 << 32) - 1])
def test_a_declared_size_over_the_limit_is_413_before_it_is_allocated(server, declared):
    server.client().write_body(wire.snappy(good_now()))
    with Cost(server) as cost:
        refused(server.client().write_body(wire.uvarint(declared) + b"\x00a" * 1000), 413)
    cost.within(mib=8)


def test_a_declared_size_that_is_not_there_costs_nothing(server):
    server.client().write_body(wire.snappy(good_now()))
    with Cost(server) as cost:
        refused(server.client().write_body(wire.uvarint(128 * MIB) + b"\x00a" * 1000), 400)
    cost.within(mib=8)




HOSTILE = {
    "8M_empty_series": (lambda: b"\x0a\x00" * 8_400_000, 413),
    "1M_labels_in_one_series": (lambda: pb_len(1, remote.encode_labels(labels(a="b")) * 1_000_000 + remote.encode_sample(now(), 0)), None),
    "8M_empty_samples": (lambda: pb_len(1, remote.encode_labels(labels("x")) + b"\x12\x00" * 8_000_000), 413),
    "4M_series_of_one_sample": (lambda: b"\x0a\x02\x12\x00" * 4_000_000, 413),
    "4M_exemplars": (lambda: pb_len(1, remote.encode_labels(labels("x")) + b"\x1a\x00" * 4_000_000), None),
    "4M_histograms": (lambda: pb_len(1, remote.encode_labels(labels("x")) + b"\x22\x00" * 4_000_000), None),
    "8M_metadata": (lambda: b"\x1a\x00" * 8_000_000, None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_body_of_many_tiny_things_costs_little(server, case):
    make, status = HOSTILE[case]
    body = wire.snappy(make())
    server.client().write_body(wire.snappy(good_now()))
    before = stored(server)
    with Cost(server) as cost:
        a = server.client().write_body(body)
    assert a.status in ((status,) if status else (400, 413)), a.text
    assert a.id
    cost.within()
    assert stored(server) == before


def test_an_unknown_field_of_a_gigabyte(server):
    server.client().write_body(wire.snappy(good_now()))
    claimed = wire.snappy(good_now() + b"\xfa\x01" + wire.uvarint(1 << 30) + b"abc")  # field 31, 1 GiB as it says
    with Cost(server) as cost:
        refused(server.client().write_body(claimed), 400)
        # A real one: 64-byte copies of a zero, so that 1 GiB is 50 MB on the wire; it is cut at --ingest.max-body.
        head = wire.uvarint(1 << 30) + b"\x00\x00" + b"\xfe\x01\x00" * 1000
        refused(server.client().write_body(head), 413)
    cost.within()


def test_ten_years_in_one_request(varve):
    server = varve(ingest_oldest="0s", head_cut_delay="1h")
    t, c = now(), server.client()
    assert c.write([(labels("warm"), [(t, bits(1.0))])]).status == 204
    series = [(labels("years"), [(t - i * 7_200_000, bits(float(i))) for i in range(43_800)])]
    with Cost(server) as cost:
        assert c.write(series).status == 204
    cost.within(mib=256, cpu=1)
    everything = lambda: dict(sorted(server.read(matchers=[("=", "__name__", "years")])[labels("years", tenant_id="default-tenant")]))
    want = dict(series[0][1])
    assert everything() == want
    # Windows of another length beside them: a retry finds each sample where it is.
    server.kill9()
    server.flags["head.block-range"] = "1h"
    server.start()
    some = [(labels("years"), series[0][1][:3000:7])]
    assert server.client().write(some).status == 204
    refused(server.client().write([(labels("years"), [(t, bits(-1.0)) for t, _ in some[0][1]])]), 400, "duplicate-timestamp")
    assert everything() == want


# ---- row 5: some series bad ----

def bad_series(t):
    """name -> (series, words that the answer must hold)"""
    long_name, long_value = "n" * 1025, "v" * 4097
    return {
        "no-metric-name": (((("job", "x"),), [(t, bits(1.0))])),
        "empty-label-name": (((("", "x"), ("__name__", "m1")), [(t, bits(1.0))])),
        "duplicate-label": (((("__name__", "m2"), ("a", "1"), ("a", "2")), [(t, bits(1.0))])),
        "too-many-labels": ((labels("m3", **{f"l{i:03d}": "x" for i in range(64)}), [(t, bits(1.0))])),
        "label-name-too-long": ((labels("m4", **{long_name: "x"}), [(t, bits(1.0))])),
        "label-value-too-long": ((labels("m5", a=long_value), [(t, bits(1.0))])),
        "too-old": ((labels("m6"), [(t - 31 * 86_400_000, bits(1.0))])),
        "too-far-ahead": ((labels("m7"), [(t + 11 * 60_000, bits(1.0))])),
    }


@pytest.mark.parametrize("reason", list(bad_series(0)))
def test_the_valid_rest_of_a_partly_bad_request_is_stored(server, reason):
    t = now()
    rest = [(labels("fine", i=str(i)), [(t, bits(float(i)))]) for i in range(10)]
    body = wire.snappy(remote.encode_request(rest[:5] + [bad_series(t)[reason]] + rest[5:]))
    c = server.client()
    first = refused(c.write_body(body), 400, reason)
    assert f"{reason} 1" in first.text, first.text  # counts per reason
    assert stored(server) == dict(rest)
    assert c.write_body(body).text == first.text
    server.kill9()
    server.start()
    assert stored(server) == dict(rest)


def test_counts_per_reason_and_the_first_offender(server):
    t = now()
    bad = bad_series(t)
    series = [bad["too-old"], bad["too-old"], bad["duplicate-label"], bad["no-metric-name"], (labels("fine"), [(t, bits(1.0))])]
    a = refused(server.client().write(series), 400)
    for words in ("too-old 2", "duplicate-label 1", "no-metric-name 1", "m6"):
        assert words in a.text, a.text
    assert stored(server) == {labels("fine"): [(t, bits(1.0))]}


def test_a_refused_histogram_is_named(server):
    t = now()
    n = 200_000
    too_large = remote.encode_int_histogram(t, 0, 0.001, 0, n, 1.0, [(0, n)], [1] + [0] * (n - 1))
    for histogram, reason in ((pb_len(4, pb_int(1, 2) + pb_int(6, 1) + pb_int(15, t)), "histogram-invalid"), (too_large, "histogram-too-large")):
        body = remote.encode_series(labels("fine"), [(t, bits(1.0))]) + pb_len(1, remote.encode_labels(labels("latency", job="x")) + histogram)
        a = refused(server.client().write_body(wire.snappy(body)), 400, reason)
        for words in ("1 of 2 samples", reason + " 1", f'first: {{__name__="latency", job="x"}} at {t}: '):
            assert words in a.text, a.text
    assert stored(server) == {labels("fine"): [(t, bits(1.0))]}


def test_another_value_at_the_same_time_is_refused(server):
    t, c = now(), server.client()
    assert c.write([(labels("m"), [(t, bits(1.0))])]).status == 204
    a = refused(c.write([(labels("m"), [(t, bits(2.0)), (t + 1, bits(3.0))])]), 400, "duplicate-timestamp")
    assert "duplicate-timestamp 1" in a.text
    assert stored(server) == {labels("m"): [(t, bits(1.0)), (t + 1, bits(3.0))]}
    a = refused(c.write([(labels("n"), [(t, bits(1.0)), (t, bits(2.0))])]), 400, "duplicate-timestamp")
    assert len(stored(server)[labels("n")]) == 1


def test_unsorted_labels_and_empty_values_are_one_series(server):
    t, c = now(), server.client()
    spellings = [(("__name__", "m"), ("a", "1"), ("b", "2")), (("b", "2"), ("__name__", "m"), ("a", "1")),
                 (("a", "1"), ("b", "2"), ("gone", ""), ("__name__", "m"))]
    for i, pairs in enumerate(spellings):
        assert c.write([(pairs, [(t + i, bits(1.0))])]).status == 204
    assert stored(server) == {labels("m", a="1", b="2"): [(t + i, bits(1.0)) for i in range(3)]}


def test_limits_are_exact(server):
    t = now()
    good = [(labels("m3", **{f"l{i:03d}": "x" for i in range(63)}), [(t, bits(1.0))]), (labels("m4", **{"n" * 1024: "x"}), [(t, bits(1.0))]),
            (labels("m5", a="v" * 4096), [(t, bits(1.0))]), (labels("m6"), [(t - 30 * 86_400_000 + 60_000, bits(1.0))]),
            (labels("m7"), [(t + 9 * 60_000, bits(1.0))])]
    a = server.client().write(good)
    assert a.status == 204, a.text
    assert stored(server) == dict(good)


# ---- row 6: tenants ----

BAD_TENANTS = ["", ".", "..", "a/b", "../etc", "a b", ".hidden", "x" * 129, "größe".encode().decode("latin-1"), "a\\b", "a%2fb", "a\tb", "~"]


@pytest.mark.parametrize("tenant", BAD_TENANTS)
def test_a_bad_tenant_leaves_no_trace(server, tenant):
    c = server.client(tenant)
    a = refused(c.write([(labels("up"), [(now(), bits(1.0))])]), 400, "tenant")
    assert a.status == 400
    assert c.read_raw([(0, now(), remote.ALL)]).status == 400
    server.client("fine").write([(labels("up"), [(now(), bits(1.0))])])
    server.flush()
    names = {b["tenant"] for b in server.flush()}
    assert names == {"fine"}
    if tenant:
        assert not any(f'"{tenant}"' in line for line in server.metrics())
        assert not any(tenant in p.relative_to(server.dir).parts for p in server.dir.rglob("*"))
    outside = {p.name for p in server.dir.iterdir()}
    assert outside <= {"data", "varve.log"}, outside


def test_good_tenants_of_every_shape(server):
    for tenant in ("a", "A-b_c.d", "0", "-", "_", "x" * 128, "team-1"):
        assert server.client(tenant).write([(labels("up"), [(now(), bits(1.0))])]).status == 204
        assert stored(server, tenant)


# ---- row 7: not now ----

def test_too_many_bytes_in_flight_is_503_at_once(varve):
    server = varve(ingest_max_inflight="2MiB", ingest_max_body="1MiB")
    held = []
    try:
        for _ in range(4):
            s = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            s.sendall(f"{HEAD}Content-Length: {900 * 1024}\r\n\r\n".encode() + b"x" * 800 * 1024)
            held.append(s)
        time.sleep(0.5)
        start = time.monotonic()
        a = None
        for _ in range(3):
            try:
                a = server.client().write_body(wire.snappy_literal(b"\x0a\x00" * 400_000))
                break
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
        assert a is not None and time.monotonic() - start < 3
        refused(a, 503)
        assert server.client().get("/-/healthy").status == 200
    finally:
        for s in held:
            s.close()
    procs.wait_for(lambda: server.client().write_body(wire.snappy(good_now())).status == 204, 10, "writes go on after the bodies are gone")


def test_what_never_fits_in_flight_is_413_and_not_tried_for_ever(varve):
    server = varve(ingest_max_inflight="2MiB")
    refused(server.client().write_body(b"x" * (2 * MIB + 1)), 413, "body-too-large")
    refused(server.client().write_body(wire.snappy_literal(pb_len(15, b"x" * MIB))), 413, "decoded-too-large")
    assert server.client().write_body(wire.snappy(good_now())).status == 204


def test_head_over_its_memory_is_503_and_nothing_acknowledged_is_lost(varve):
    server = varve(head_max_memory="24MiB", bucket_audit_interval="0s")
    book, c, t = ledger.Ledger(), server.client(), now()
    statuses = set()
    for n in range(400):
        series = [(labels("filler", id=f"{n:05d}-{i:05d}", text="x" * 60), [(t, bits(float(i)))]) for i in range(500)]
        a = c.write(series)
        statuses.add(a.status)
        if a.status == 503:
            refused(a, 503)
        book.record_answer("default-tenant", series, a.status)
        if len(statuses) == 2 and n > 100:
            break
    assert statuses <= {204, 503} and 204 in statuses
    report = book.compare({"default-tenant": stored(server)})
    assert report.clean, report


def test_writes_during_replay_are_503_and_then_work(varve):
    server = varve()
    c, t = server.client(), now() - 3_600_000
    for n in range(60):
        series = [(labels("replayed", i=str(i), n=str(n)), [(t + k * 1000, bits(float(k))) for k in range(200)]) for i in range(100)]
        assert c.write(series).status == 204
    server.kill9()
    server.start(wait=False)
    seen, said, body = set(), set(), wire.snappy(good_now())
    end = time.monotonic() + 30
    while 204 not in seen and time.monotonic() < end:
        try:
            a = c.write_body(body)
        except (OSError, http.client.HTTPException):
            continue
        seen.add(a.status)
        if a.status == 503:
            refused(a, 503, "not-ready")
            assert c.get("/-/healthy").status == 200
            ready = c.get("/-/ready")  # replay may end between the two questions, so not each of them finds it
            assert ("replay" in ready.text) == (ready.status == 503), ready
            said.add(ready.status)
            assert c.get("/api/v1/status/walreplay").json()["data"]["state"] in ("waiting", "in progress", "done")
    assert seen == {503, 204} and 503 in said, (seen, said)
    assert sum(len(v) for k, v in stored(server).items() if dict(k)["__name__"] == "replayed") == 60 * 100 * 200
