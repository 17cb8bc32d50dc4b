"""Chunk payloads (XOR, integer and float histograms) to samples; and what a histogram is when two are compared.

A sample is (time in ms, value): the value is an int (a float's 64 bits) or a Histogram.
"""
import struct
from collections import namedtuple

from .wire import STALE_NAN, read_uvarint, unbits, unzigzag

XOR, HISTOGRAM, FLOAT_HISTOGRAM = 1, 2, 3

# Buckets are {index: count} without zeros, absolute; counts as numbers, the sum as bits. Reset hints depend on chunk borders: left out.
Histogram = namedtuple("Histogram", "kind schema zero_threshold zero_count count sum positive negative custom")


def histogram(kind, schema, zero_threshold, zero_count, count, total, positive, negative, custom=()):
    if total == STALE_NAN:
        return Histogram("stale", 0, 0.0, 0, 0, STALE_NAN, (), (), ())
    return Histogram(kind, schema, zero_threshold, zero_count, count, total, tuple(sorted((i, n) for i, n in positive.items() if n)),
                     tuple(sorted((i, n) for i, n in negative.items() if n)), tuple(custom))


def indexes(spans):
    """Bucket indexes of spans [(offset, length), ...]."""
    out, at = [], 0
    for offset, length in spans:
        at += offset
        out.extend(range(at, at + length))
        at += length
    return out


def absolute(deltas):
    out, at = [], 0
    for d in deltas:
        at += d
        out.append(at)
    return out


class Bits:
    """A bit stream, most significant bit first."""

    def __init__(self, payload):
        self.value = int.from_bytes(payload, "big")
        self.left = len(payload) * 8

    def read(self, n):
        self.left -= n
        if self.left < 0:
            raise ValueError("chunk ends inside a sample")
        return self.value >> self.left & (1 << n) - 1

    def signed(self, n):
        u = self.read(n)
        return u - (1 << n) if u > 1 << n - 1 else u

    def two_complement(self):
        u = self.read(64)
        return u - (1 << 64) if u >= 1 << 63 else u

    def uvarint(self):
        x = shift = 0
        while True:
            c = self.read(8)
            x |= (c & 0x7F) << shift
            if c < 0x80:
                return x
            shift += 7

    def varint(self):
        return unzigzag(self.uvarint())

    def prefix(self, most):
        n = 0
        while n < most and self.read(1):
            n += 1
        return n

    def vbi(self):
        n = self.prefix(8)
        if n == 0:
            return 0
        return self.two_complement() if n == 8 else self.signed((3, 6, 9, 12, 18, 25, 56)[n - 1])

    def vbu(self):
        n = self.prefix(8)
        return 0 if n == 0 else self.read((3, 6, 9, 12, 18, 25, 56, 64)[n - 1])


class Window:
    """One XOR-coded field: the last value and the window of its meaningful bits."""

    def __init__(self, value):
        self.value, self.lead, self.trail = value, 0, 0

    def next(self, b):
        if b.read(1):
            if b.read(1):
                self.lead = b.read(5)
                n = b.read(6) or 64
                self.trail = 64 - self.lead - n
            self.value ^= b.read(64 - self.lead - self.trail) << self.trail
        return self.value


def decode_xor(payload):
    n = struct.unpack_from(">H", payload)[0]
    b = Bits(payload[2:])
    out = []
    t = delta = 0
    value = None
    for i in range(n):
        if i == 0:
            t = b.varint()
            value = Window(b.read(64))
        else:
            if i == 1:
                delta = b.uvarint()
            else:
                p = b.prefix(4)
                delta += 0 if p == 0 else b.two_complement() if p == 4 else b.signed((14, 17, 20)[p - 1])
            t += delta
            value.next(b)
        out.append((t, value.value))
    return out


def _threshold(b):
    code = b.read(8)
    if code == 0:
        return 0.0
    return unbits(b.read(64)) if code == 255 else 0.5 * 2.0 ** (code - 243)


def _layout(b):
    threshold, schema = _threshold(b), b.vbi()
    sides = []
    for _ in range(2):
        spans = []
        for _ in range(b.vbu()):
            length = b.vbu()
            spans.append((b.vbi(), length))
        sides.append(indexes(spans))
    custom = []
    if schema == -53:
        for _ in range(b.vbu()):
            x = b.vbu()
            custom.append(unbits(b.read(64)) if x == 0 else (x - 1) / 1000)
    return threshold, schema, sides[0], sides[1], custom


class _Dod:
    """A field coded as the delta of its delta."""

    def __init__(self, first):
        self.value, self.delta = first, 0

    def next(self, b):
        self.delta += b.vbi()
        self.value += self.delta
        return self.value


def decode_histogram(payload):
    n = struct.unpack_from(">H", payload)[0]
    b = Bits(payload[3:])
    if n == 0:
        return []
    threshold, schema, pos, neg, custom = _layout(b)
    out = []
    for i in range(n):
        if i == 0:
            t, count, zero = _Dod(b.vbi()), _Dod(b.vbu()), _Dod(b.vbu())
            total = Window(b.read(64))
            deltas = [_Dod(b.vbi()) for _ in range(len(pos) + len(neg))]
        else:
            for field in (t, count, zero):
                field.next(b)
            total.next(b)
            if total.value != STALE_NAN:
                for d in deltas:
                    d.next(b)
        values = [d.value for d in deltas]
        out.append((t.value, histogram("int", schema, threshold, zero.value, count.value, total.value,
                                       dict(zip(pos, absolute(values[:len(pos)]))), dict(zip(neg, absolute(values[len(pos):]))), custom)))
    return out


def decode_float_histogram(payload):
    n = struct.unpack_from(">H", payload)[0]
    b = Bits(payload[3:])
    if n == 0:
        return []
    threshold, schema, pos, neg, custom = _layout(b)
    out = []
    for i in range(n):
        if i == 0:
            t = _Dod(b.vbi())
            count, zero, total = (Window(b.read(64)) for _ in range(3))
            buckets = [Window(b.read(64)) for _ in range(len(pos) + len(neg))]
        else:
            t.next(b)
            for field in (count, zero, total):
                field.next(b)
            if total.value != STALE_NAN:
                for w in buckets:
                    w.next(b)
        values = [unbits(w.value) for w in buckets]
        out.append((t.value, histogram("float", schema, threshold, unbits(zero.value), unbits(count.value), total.value,
                                       dict(zip(pos, values[:len(pos)])), dict(zip(neg, values[len(pos):])), custom)))
    return out


DECODERS = {XOR: decode_xor, HISTOGRAM: decode_histogram, FLOAT_HISTOGRAM: decode_float_histogram}


def decode(encoding, payload):
    if encoding not in DECODERS:
        raise ValueError(f"chunk encoding {encoding}")
    return DECODERS[encoding](bytes(payload))


def decode_aggregate(payload):
    """Thanos' downsampled chunk (255): {"count"|"sum"|"min"|"max"|"counter": (encoding, payload)}."""
    out, i = {}, 0
    for name in ("count", "sum", "min", "max", "counter"):
        n, i = read_uvarint(payload, i)
        if n:
            out[name] = (payload[i], payload[i + 1:i + 1 + n])
            i += 1 + n
    return out

