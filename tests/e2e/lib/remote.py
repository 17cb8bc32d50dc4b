"""Remote write 1.0 as a sender, remote read (SAMPLES and STREAMED_XOR_CHUNKS) as a client.

Labels are tuples of (name, value), sorted; samples (time in ms, bits or Histogram), see lib/chunks.py.
"""
import http.client
import json
import struct
from collections import namedtuple
from urllib.parse import urlsplit

from . import chunks
from .wire import (STALE_NAN, bits, crc32c, int64, packed_doubles, packed_varints, pb_bits, pb_fields, pb_int, pb_len, pb_sint, raw, read_uvarint, snappy,
                   text, unbits, unsnappy, unzigzag, uvarint)

TENANT = "THANOS-TENANT"


def labels(name=None, **more):
    """labels("up", job="x") -> a sorted tuple of pairs."""
    if name is not None:
        more["__name__"] = name
    return tuple(sorted(more.items(), key=lambda p: raw(p[0])))


# ---- write ----

_label_cache = {}


def encode_labels(pairs):
    done = _label_cache.get(pairs)
    if done is None:
        done = b"".join(pb_len(1, pb_len(1, raw(n)) + pb_len(2, raw(v))) for n, v in pairs)
        if len(_label_cache) < 200000:
            _label_cache[pairs] = done
    return done


def encode_sample(t, value_bits):
    return pb_len(2, pb_bits(1, value_bits) + pb_int(2, t))


def encode_series(pairs, samples):
    return pb_len(1, encode_labels(tuple(pairs)) + b"".join(encode_sample(t, v) for t, v in samples))


def encode_exemplar(pairs, t, value_bits):
    """A field of a TimeSeries."""
    return pb_len(3, encode_labels(tuple(pairs)) + pb_bits(2, value_bits) + pb_int(3, t))


METRIC_TYPES = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")


def encode_metadata(family, kind, help_text="", unit=""):
    """A field of a WriteRequest; kind is one of METRIC_TYPES."""
    return pb_len(3, pb_int(1, METRIC_TYPES.index(kind)) + pb_len(2, raw(family)) + pb_len(4, raw(help_text)) + pb_len(5, raw(unit)))


def encode_request(series):
    """series: iterable of (labels, [(t, bits), ...]), in any order of labels: as given."""
    return b"".join(encode_series(pairs, samples) for pairs, samples in series)


def encode_int_histogram(t, schema, zero_threshold, zero_count, count, total, spans, deltas, negative_spans=(), negative_deltas=()):
    """A Histogram field of a TimeSeries; total as a float."""
    h = pb_int(1, count) + pb_bits(3, bits(total)) + pb_sint(4, schema) + pb_bits(5, bits(zero_threshold)) + pb_int(6, zero_count)
    for span_field, delta_field, some_spans, some_deltas in ((8, 9, negative_spans, negative_deltas), (11, 12, spans, deltas)):
        h += b"".join(pb_len(span_field, pb_sint(1, o) + pb_int(2, n)) for o, n in some_spans)
        if some_deltas:
            h += pb_len(delta_field, b"".join(uvarint((d << 1 ^ d >> 63) & 0xFFFFFFFFFFFFFFFF) for d in some_deltas))
    return pb_len(4, h + pb_int(15, t))


WRITE_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "User-Agent": "varve-tests/1",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}

Answer = namedtuple("Answer", "status headers body")


class Answer(Answer):
    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def id(self):
        """The error id in front of the message, err-varve-..., or ''."""
        head = self.text.split(":", 1)[0].strip()
        return head if head.startswith("err-varve-") else ""

    def json(self):
        return json.loads(self.body)


READ_PATH = "/api/v1/read"
READ_LOCAL = READ_PATH + "?scope=local"  # what one node itself has


class Client:
    """One keep-alive connection; not for several threads. Raises OSError or http.client.HTTPException when there is no answer."""

    def __init__(self, url, tenant=None, timeout=30, headers=None):
        at = urlsplit(url)
        self.host, self.port, self.timeout = at.hostname, at.port, timeout
        self.headers = dict(headers or {})
        if tenant is not None:
            self.headers[TENANT] = tenant
        self.conn = None

    def close(self):
        if self.conn:
            self.conn.close()
            self.conn = None

    def request(self, method, path, body=None, headers=None):
        if self.conn is None:
            self.conn = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            self.conn.request(method, path, body=body, headers={**self.headers, **(headers or {})})
            r = self.conn.getresponse()
            answer = Answer(r.status, r.headers, r.read())
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if r.will_close:
            self.close()
        return answer

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def write_body(self, body, headers=None, path="/api/v1/write"):
        """A body as it goes over the wire; headers replace the usual ones, None removes one."""
        h = {**WRITE_HEADERS, **(headers or {})}
        return self.request("POST", path, body, {k: v for k, v in h.items() if v is not None})

    def write(self, series, headers=None, path="/api/v1/write"):
        return self.write_body(snappy(encode_request(series)), headers, path)

    def read(self, queries, accept=(0,), headers=None, path=READ_PATH):
        """queries: [(start_ms, end_ms, [(type, name, value), ...])], types '=', '!=', '=~', '!~'. Returns one {labels: [(t, value)]} a query."""
        return parse_read(self.read_raw(queries, accept, headers, path), len(queries))

    def read_raw(self, queries, accept=(0,), headers=None, path=READ_PATH):
        h = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Read-Version": "0.1.0", **(headers or {})}
        return self.request("POST", path, snappy(encode_read(queries, accept)), h)


# ---- read ----

SAMPLES, STREAMED = 0, 1
MATCHERS = {"=": 0, "!=": 1, "=~": 2, "!~": 3}


def encode_read(queries, accept=(SAMPLES,)):
    out = b""
    for start, end, matchers in queries:
        q = pb_int(1, start) + pb_int(2, end)
        for kind, name, value in matchers:
            q += pb_len(3, pb_int(1, MATCHERS[kind]) + pb_len(2, raw(name)) + pb_len(3, raw(value)))
        out += pb_len(1, q)
    if accept:
        out += pb_len(2, bytes(accept))
    return out


def _label(content):
    name = value = ""
    for field, _, v in pb_fields(content):
        if field == 1:
            name = text(v)
        elif field == 2:
            value = text(v)
    return name, value


def _spans(contents):
    out = []
    for content in contents:
        offset = length = 0
        for field, _, v in pb_fields(content):
            if field == 1:
                offset = unzigzag(v)
            elif field == 2:
                length = v
        out.append((offset, length))
    return out


def _histogram(content):
    one, many = {}, {8: [], 9: [], 10: [], 11: [], 12: [], 13: [], 16: []}
    for field, wire, v in pb_fields(content):
        if field in (8, 11):
            many[field].append(v)
        elif field in (9, 12):
            many[field] += [unzigzag(x) for x in packed_varints(wire, v)]
        elif field in (10, 13, 16):
            many[field] += [unbits(x) for x in packed_doubles(wire, v)]
        else:
            one[field] = v
    is_float = 2 in one
    count = unbits(one[2]) if is_float else one.get(1, 0)
    zero = unbits(one.get(7, 0)) if is_float else one.get(6, 0)
    sides = []
    for spans, deltas, counts in ((11, 12, 13), (8, 9, 10)):
        values = many[counts] if is_float else chunks.absolute(many[deltas])
        sides.append(dict(zip(chunks.indexes(_spans(many[spans])), values)))
    return int64(one.get(15, 0)), chunks.histogram("float" if is_float else "int", unzigzag(one.get(4, 0)), unbits(one.get(5, 0)), zero, count,
                                                   one.get(3, 0), sides[0], sides[1], many[16])


def _series(content):
    pairs, samples = [], []
    for field, _, v in pb_fields(content):
        if field == 1:
            pairs.append(_label(v))
        elif field == 2:
            t = value = 0
            for f, _, x in pb_fields(v):
                if f == 1:
                    value = x
                elif f == 2:
                    t = int64(x)
            samples.append((t, value))
        elif field == 4:
            samples.append(_histogram(v))
    return tuple(pairs), samples


def _check_series(pairs, samples, where):
    assert list(pairs) == sorted(pairs, key=lambda p: raw(p[0])), f"{where}: labels are not sorted: {pairs}"
    assert len({n for n, _ in pairs}) == len(pairs), f"{where}: a label name twice: {pairs}"
    times = [t for t, _ in samples]
    assert all(a < b for a, b in zip(times, times[1:])), f"{where}: times do not ascend: {pairs}"


def _key(pairs):
    return [(raw(n), raw(v)) for n, v in pairs]


def parse_samples(body, n_queries):
    results = []
    for field, _, v in pb_fields(unsnappy(body)):
        if field != 1:
            continue
        result, last = {}, None
        for f, _, content in pb_fields(v):
            if f != 1:
                continue
            pairs, samples = _series(content)
            _check_series(pairs, samples, "remote read")
            assert pairs not in result, f"series twice: {pairs}"
            assert last is None or last < _key(pairs), f"series are not sorted: {pairs}"
            last = _key(pairs)
            result[pairs] = samples
        results.append(result)
    assert len(results) == n_queries, f"{len(results)} results for {n_queries} queries"
    return results


StreamChunk = namedtuple("StreamChunk", "mint maxt encoding payload")


def frames(body):
    """Yields (query index, labels, [StreamChunk]) per series of a STREAMED answer; CRCs checked."""
    i = 0
    while i < len(body):
        n, i = read_uvarint(body, i)
        crc = struct.unpack_from(">I", body, i)[0]
        message = body[i + 4:i + 4 + n]
        i += 4 + n
        assert len(message) == n, "a frame is cut off"
        assert crc32c(message) == crc, "a frame's CRC is wrong"
        index, series = 0, []
        for field, _, v in pb_fields(message):
            if field == 1:
                series.append(v)
            elif field == 2:
                index = int64(v)
        for content in series:
            pairs, out = [], []
            for field, _, v in pb_fields(content):
                if field == 1:
                    pairs.append(_label(v))
                elif field == 2:
                    c = {1: 0, 2: 0, 3: 0, 4: b""}
                    for f, _, x in pb_fields(v):
                        c[f] = x
                    out.append(StreamChunk(int64(c[1]), int64(c[2]), c[3], bytes(c[4])))
            yield index, tuple(pairs), out


def parse_streamed(body, n_queries, bounds=None):
    results = [{} for _ in range(n_queries)]
    last = (-1, None)
    for index, pairs, series in frames(body):
        at = (index, _key(pairs))
        assert last[1] is None or last < at, f"series are not sorted, or one is in two frames: {pairs}"
        last = at
        samples, end = [], None
        for c in series:
            assert end is None or c.mint > end, f"chunks overlap: {pairs}"
            end = c.maxt
            inside = chunks.decode(c.encoding, c.payload)
            assert inside and inside[0][0] == c.mint and inside[-1][0] == c.maxt, f"a chunk's times are not its samples': {pairs}"
            samples += inside
        _check_series(pairs, samples, "streamed read")
        results[index][pairs] = samples
    return results


def parse_read(answer, n_queries=1):
    assert answer.status == 200, f"remote read: {answer.status} {answer.text[:500]}"
    if "streamed" in answer.headers.get("Content-Type", ""):
        assert "proto=prometheus.ChunkedReadResponse" in answer.headers["Content-Type"]
        return parse_streamed(answer.body, n_queries)
    assert answer.headers.get("Content-Type") == "application/x-protobuf"
    assert answer.headers.get("Content-Encoding") == "snappy"
    return parse_samples(answer.body, n_queries)


def clip(result, start, end):
    """A streamed answer may hold whole chunks: what lies in [start, end], series without samples dropped."""
    cut = {k: [s for s in v if start <= s[0] <= end] for k, v in result.items()}
    return {k: v for k, v in cut.items() if v}


ALL = [("=~", "__name__", ".+")]
EVER = (-(1 << 62), 1 << 62)


def read_all(url, tenant=None, matchers=ALL, start=EVER[0], end=EVER[1], accept=(SAMPLES,), path=READ_PATH):
    c = Client(url, tenant, timeout=120)
    try:
        return c.read([(start, end, matchers)], accept, path=path)[0]
    finally:
        c.close()

