"""Remote write 2.0 as a sender: symbols and references, by hand.

A series is what series() gives; write() sends them and returns an answer whose `written` are the counts that it says, or None.
"""
import struct
from collections import namedtuple

from .wire import pb_bits, pb_int, pb_len, pb_sint, raw, snappy, uvarint

HEADERS = {
    "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request",
    "Content-Encoding": "snappy",
    "User-Agent": "varve-tests/1",
    "X-Prometheus-Remote-Write-Version": "2.0.0",
}
WRITTEN = tuple(f"X-Prometheus-Remote-Write-{what}-Written" for what in ("Samples", "Histograms", "Exemplars"))
COUNTER, GAUGE, HISTOGRAM, GAUGEHISTOGRAM, SUMMARY, INFO, STATESET = range(1, 8)

Series = namedtuple("Series", "labels samples histograms exemplars metadata created")


def series(labels, samples=(), histograms=(), exemplars=(), metadata=None, created=0):
    """labels: pairs in the order to send; samples: (t, bits) or (t, bits, start); histograms: see histogram(); exemplars: (labels, bits, t);
    metadata: (type, help, unit)."""
    return Series(tuple(labels), samples, histograms, exemplars, metadata, created)


class Symbols:
    def __init__(self):
        self.of = {b"": 0}

    def ref(self, s):
        return self.of.setdefault(s if isinstance(s, bytes) else raw(s), len(self.of))

    def refs(self, pairs):
        return b"".join(uvarint(self.ref(x)) for pair in pairs for x in pair)

    def encode(self):
        return b"".join(pb_len(4, s) for s in self.of)


def encode_sample(sample):
    t, value, *start = sample
    return pb_len(2, (pb_bits(1, value) if value else b"") + pb_int(2, t) + (pb_int(3, start[0]) if start else b""))


def histogram(t, schema=0, count=0, total=0.0, zero=0, threshold=0.001, pos=(), neg=(), pos_spans=None, neg_spans=None, custom=(), is_float=False, hint=0,
              start=0, sum_bits=None):
    """A Histogram without its tag. pos, neg: absolute counts; spans default to one from index 0. total is the sum."""
    def spans(field, given, n):
        given = given if given is not None else ([(0, n)] if n else [])
        return b"".join(pb_len(field, pb_sint(1, o) + pb_int(2, length)) for o, length in given)

    def counts(field, values):
        if not values:
            return b""
        if is_float:
            return pb_len(field + 1, struct.pack(f"<{len(values)}d", *values))
        deltas = [v - before for before, v in zip([0, *values], values)]
        return pb_len(field, b"".join(uvarint(((d << 1) ^ (d >> 63)) & 0xFFFFFFFFFFFFFFFF) for d in deltas))

    out = pb_bits(2, _bits(count)) if is_float else pb_int(1, count)
    out += pb_bits(3, _bits(total) if sum_bits is None else sum_bits) + pb_sint(4, schema) + pb_bits(5, _bits(threshold))
    out += pb_bits(7, _bits(zero)) if is_float else pb_int(6, zero)
    out += spans(8, neg_spans, len(neg)) + counts(9, neg) + spans(11, pos_spans, len(pos)) + counts(12, pos)
    out += pb_int(14, hint) + pb_int(15, t)
    if custom:
        out += pb_len(16, struct.pack(f"<{len(custom)}d", *custom))
    return out + (pb_int(17, start) if start else b"")


def _bits(v):
    return struct.unpack("<Q", struct.pack("<d", v))[0]


def encode_series(s, symbols):
    out = pb_len(1, symbols.refs(s.labels)) + b"".join(map(encode_sample, s.samples)) + b"".join(pb_len(3, h) for h in s.histograms)
    for labels, value, t in s.exemplars:
        out += pb_len(4, (pb_len(1, symbols.refs(labels)) if labels else b"") + pb_bits(2, value) + pb_int(3, t))
    kind, text, unit = s.metadata or (0, "", "")
    out += pb_len(5, (pb_int(1, kind) if kind else b"") + b"".join(pb_int(f, symbols.ref(x)) for f, x in ((3, text), (4, unit)) if x))
    return pb_len(5, out + (pb_int(6, s.created) if s.created else b""))


def encode_request(all_series):
    """Symbols in the order of their first use, as Prometheus has them."""
    symbols = Symbols()
    body = b"".join(encode_series(s, symbols) for s in all_series)
    return symbols.encode() + body


def written(answer):
    """(samples, histograms, exemplars) as the answer says, or None when it has none of the headers; some of them fails."""
    values = [answer.headers.get(h) for h in WRITTEN]
    if values == [None] * 3:
        return None
    assert None not in values, f"some headers only: {dict(answer.headers)}"
    for h in WRITTEN:
        assert len(answer.headers.get_all(h)) == 1, f"{h} twice"
    return tuple(map(int, values))


def write_body(client, body, headers=None, path="/api/v1/write"):
    return client.write_body(body, {**HEADERS, **(headers or {})}, path)


def write(client, all_series, headers=None, path="/api/v1/write"):
    return write_body(client, snappy(encode_request(all_series)), headers, path)
