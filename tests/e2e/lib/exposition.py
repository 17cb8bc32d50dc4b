"""A page that a real Prometheus scrapes as protobuf, the only form that has native histograms: those of lib/histograms.py, counters and classic histograms with exemplars,
metrics of every other type; some are missing for a while, as after a restart. Written from the message's description (io.prometheus.client.MetricFamily).
"""
import http.server
import random
import struct
import threading
import time

from . import gen
from .histograms import GAUGE, Maker
from .wire import STALE_NAN, bits, pb_bits, pb_int, pb_len, pb_sint, raw, uvarint

COUNTER_TYPE, GAUGE_TYPE, SUMMARY_TYPE, UNTYPED_TYPE, HISTOGRAM_TYPE, GAUGE_HISTOGRAM_TYPE = range(6)
CONTENT_TYPE = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
BOUNDS = (0.005, 0.1, 1.0, 2.5, float("inf"))


def pairs_of(pairs):
    return b"".join(pb_len(1, pb_len(1, raw(n)) + pb_len(2, raw(v))) for n, v in pairs)


def exemplar(field, value, now, **pairs):
    stamp = pb_int(1, int(now)) + pb_int(2, int(now % 1 * 1000) * 1_000_000)
    return pb_len(field, pairs_of(pairs.items()) + pb_bits(2, bits(value)) + pb_len(3, stamp))


def metric(pairs, field, content):
    return pb_len(4, pairs_of(pairs) + pb_len(field, content))


def family(name, kind, metrics, help_text=None, unit=""):
    body = pb_len(1, raw(name)) + pb_len(2, raw(f"Help of {name}" if help_text is None else help_text)) + pb_int(3, kind) + b"".join(metrics)
    return body + (pb_len(5, raw(unit)) if unit else b"")


def native(h):
    """A native histogram's message; h is what remote2.histogram() takes."""
    is_float = h["is_float"]
    out = (pb_bits(4, bits(h["count"])) if is_float else pb_int(1, h["count"])) + pb_bits(2, bits(h["total"])) + pb_sint(5, h["schema"]) + pb_bits(6, bits(h["threshold"]))
    out += pb_bits(8, bits(h["zero"])) if is_float else pb_int(7, h["zero"])
    for first, spans, counts in ((9, h["neg_spans"], h["neg"]), (12, h["pos_spans"], h["pos"])):
        out += b"".join(pb_len(first, pb_sint(1, o) + pb_int(2, n)) for o, n in spans)
        if is_float and counts:
            out += pb_len(first + 2, struct.pack(f"<{len(counts)}d", *counts))
        elif counts:
            out += pb_len(first + 1, b"".join(uvarint((d << 1 ^ d >> 63) & 0xFFFFFFFFFFFFFFFF) for d in (v - b for b, v in zip([0, *counts], counts))))
    return out


class Page:
    """histograms native ones and floats others; each scrape is one step."""

    def __init__(self, seed, histograms, floats):
        self.rng = random.Random(seed)
        self.makers = [Maker(seed + k) for k in range(histograms)]
        self.floats = gen.Samples(seed, floats, 0, 1, prefix="page")
        self.classic = [[0] * len(BOUNDS) for _ in range(10)]
        self.scrapes = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                assert "io.prometheus.client.MetricFamily" in self.headers["Accept"], self.headers["Accept"]
                body = owner.body()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def body(self):
        now, r = time.time(), self.rng
        families = {}  # (name, type) -> metrics
        for k, m in enumerate(self.makers):
            h = m.next()
            if h is None or "schema" not in h or h["custom"]:
                continue  # away for this time: Prometheus makes the marker
            out = native(h)
            if r.random() < 0.1:
                out += exemplar(16, r.random(), now - r.random() / 10, trace_id=f"{r.getrandbits(64):016x}")
            kind = GAUGE_HISTOGRAM_TYPE if h["hint"] == GAUGE else HISTOGRAM_TYPE
            families.setdefault((f"page_native_{k % 7}_{kind}_seconds", kind), []).append(metric([("series", f"{k:04d}")], 7, out))
        for k, buckets in enumerate(self.classic):
            for _ in range(r.randrange(5)):
                buckets[r.randrange(len(buckets))] += 1
            out, behind = pb_int(1, sum(buckets)) + pb_bits(2, bits(sum(buckets) * 0.25)), 0
            for bound, n in zip(BOUNDS, buckets):
                behind += n
                seen = exemplar(3, min(bound, 99.0), now - 0.001 * k, trace_id=f"{r.getrandbits(128):032x}", span="1") if r.random() < 0.2 else b""
                out += pb_len(3, pb_int(1, behind) + pb_bits(2, bits(bound)) + seen)
            families.setdefault(("page_classic_seconds", HISTOGRAM_TYPE), []).append(metric([("k", str(k))], 7, out))
        for i, pairs in enumerate(self.floats.series):
            v = self.floats.value(i, self.scrapes)
            if v is None or v == STALE_NAN:
                continue
            name, kind = dict(pairs)["__name__"], self.floats.kinds[i]
            number, field = {"counter": (COUNTER_TYPE, 3), "special": (UNTYPED_TYPE, 5)}.get(kind, (GAUGE_TYPE, 2))
            seen = exemplar(2, 0.5, now, trace_id=f"{r.getrandbits(64):016x}") if kind == "counter" and r.random() < 0.05 else b""
            own = [p for p in pairs if p[0] not in ("__name__", "job", "instance")]
            families.setdefault((name, number), []).append(metric(own, field, pb_bits(1, v) + seen))
        quantiles = b"".join(pb_len(3, pb_bits(1, bits(q)) + pb_bits(2, bits(r.random()))) for q in (0.5, 0.99))
        families[("page_summary_bytes", SUMMARY_TYPE)] = [metric([], 4, pb_int(1, self.scrapes) + pb_bits(2, bits(1.5)) + quantiles)]
        self.scrapes += 1
        bodies = (family(name, kind, metrics, unit="seconds" if name.endswith("_seconds") else "") for (name, kind), metrics in sorted(families.items()))
        return b"".join(uvarint(len(b)) + b for b in bodies)
