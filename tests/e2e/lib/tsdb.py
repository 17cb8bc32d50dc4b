"""Reads a Prometheus block (index v2, chunk encodings 1-3, tombstones, meta.json) and checks all that a reader can check.

Written from the format's description, so that what the server writes has a second opinion that shares no code with it.
"""
import glob
import json
import os
import struct
from collections import defaultdict

from . import chunks
from .wire import crc32c, raw, read_uvarint, read_varint, text


class Damaged(Exception):
    pass


def need(condition, *what):
    if not condition:
        raise Damaged(" ".join(str(w) for w in what))


def _crc(data, start, end, name):
    need(len(data) >= end + 4, name, "is cut off")
    need(struct.unpack_from(">I", data, end)[0] == crc32c(data[start:end]), name, "has a wrong CRC")


def _str(data, i):
    n, i = read_uvarint(data, i)
    return bytes(data[i:i + n]), i + n


class Index:
    """symbols, series {ref: (labels, [(mint, maxt, chunk ref)])} in order, postings {(name, value): [ref]}."""

    def __init__(self, data):
        self.data = memoryview(data)
        need(len(data) >= 5 + 52, "index: too short")
        magic, self.version = struct.unpack_from(">IB", data)
        need(magic == 0xBAAAD700 and self.version == 2, "index: magic or version", hex(magic), self.version)
        toc = len(data) - 52
        _crc(data, toc, toc + 48, "index: TOC")
        self.toc = struct.unpack_from(">6Q", data, toc)
        self._read_symbols()
        self._read_series()
        self._read_postings()

    def _section(self, at, name):
        n = struct.unpack_from(">I", self.data, at)[0]
        _crc(self.data, at + 4, at + 4 + n, "index: " + name)
        return at + 4, at + 4 + n

    def _read_symbols(self):
        start, end = self._section(self.toc[0], "symbols")
        count = struct.unpack_from(">I", self.data, start)[0]
        self.symbols, i = [], start + 4
        for _ in range(count):
            s, i = _str(self.data, i)
            self.symbols.append(s)
        need(i == end, "index: symbols do not end where they say")
        need(all(a < b for a, b in zip(self.symbols, self.symbols[1:])), "index: symbols are not ascending")

    def _read_series(self):
        self.series = {}
        i, end, last_labels, last_ref = self.toc[1], self.toc[2], None, -1
        while True:
            pad = -i % 16
            if i + pad >= end:
                need(not any(self.data[i:end]), "index: series padding is not zero")
                break
            need(not any(self.data[i:i + pad]), "index: series padding is not zero")
            i += pad
            ref = i // 16
            n, start = read_uvarint(self.data, i)
            _crc(self.data, start, start + n, f"index: series {ref}")
            k, labels = start, []
            n_labels, k = read_uvarint(self.data, k)
            for _ in range(n_labels):
                name, k = read_uvarint(self.data, k)
                value, k = read_uvarint(self.data, k)
                labels.append((self.symbols[name], self.symbols[value]))
            need(all(a[0] < b[0] for a, b in zip(labels, labels[1:])), "index: labels are not ascending in", labels)
            need(all(v for _, v in labels), "index: empty label value in", labels)
            need(last_labels is None or last_labels < labels, "index: series are not ascending at", labels)
            last_labels = labels
            n_chunks, k = read_uvarint(self.data, k)
            need(n_chunks > 0, "index: a series without chunks", labels)
            out, mint, maxt, chunk = [], 0, 0, 0
            for c in range(n_chunks):
                if c == 0:
                    mint, k = read_varint(self.data, k)
                    length, k = read_uvarint(self.data, k)
                    chunk, k = read_uvarint(self.data, k)
                else:
                    gap, k = read_uvarint(self.data, k)
                    need(gap > 0, "index: chunks overlap in", labels)
                    mint = maxt + gap
                    length, k = read_uvarint(self.data, k)
                    delta, k = read_varint(self.data, k)
                    chunk += delta
                maxt = mint + length
                need(chunk > last_ref, "index: chunk references do not ascend in", labels)
                last_ref = chunk
                out.append((mint, maxt, chunk))
            need(k == start + n, "index: series", ref, "does not end where it says")
            self.series[ref] = (tuple((text(a), text(b)) for a, b in labels), out)
            i = start + n + 4

    def _read_postings(self):
        start, end = self._section(self.toc[5], "postings offset table")
        count = struct.unpack_from(">I", self.data, start)[0]
        self.postings, i, last = {}, start + 4, None
        for _ in range(count):
            keys, i = read_uvarint(self.data, i)
            need(keys == 2, "index: offset table entry with", keys, "keys")
            name, i = _str(self.data, i)
            value, i = _str(self.data, i)
            offset, i = read_uvarint(self.data, i)
            need(last is None or last < (name, value), "index: offset table is not ascending at", name, value)
            last = (name, value)
            need(offset % 4 == 0, "index: postings are not aligned")
            a, b = self._section(offset, f"postings of {name} {value}")
            n = struct.unpack_from(">I", self.data, a)[0]
            need(b - a == 4 + 4 * n, "index: postings length")
            refs = list(struct.unpack_from(f">{n}I", self.data, a + 4))
            need(all(x < y for x, y in zip(refs, refs[1:])), "index: postings are not ascending")
            self.postings[(text(name), text(value))] = refs
        need(i == end, "index: offset table does not end where it says")
        expect = defaultdict(list)
        for ref, (labels, _) in self.series.items():
            expect[("", "")].append(ref)
            for pair in labels:
                expect[pair].append(ref)
        if not self.series:
            expect[("", "")] = []
        need(self.postings == dict(expect), "index: postings do not say what the series say")


class Block:
    """One block directory. check=True reads and checks everything at once."""

    def __init__(self, path, check=True):
        self.path = str(path)
        with open(os.path.join(self.path, "meta.json"), encoding="utf-8") as f:
            self.meta = json.load(f)
        need(self.meta["version"] == 1, "meta.json: version")
        need(self.meta["ulid"] == os.path.basename(os.path.normpath(self.path)), "meta.json: ulid is not the directory's name")
        with open(os.path.join(self.path, "index"), "rb") as f:
            self.index = Index(f.read())
        self.segments = []
        for n, name in enumerate(sorted(glob.glob(os.path.join(self.path, "chunks", "*")))):
            need(os.path.basename(name) == f"{n + 1:06d}", "chunks: segment", name, "is not in sequence")
            with open(name, "rb") as f:
                data = f.read()
            need(struct.unpack_from(">IB3s", data) == (0x85BD40DD, 1, b"\0\0\0"), "chunks: header of", name)
            self.segments.append(data)
        self.tombstones = self._read_tombstones()
        if check:
            self.check()

    def _read_tombstones(self):
        out = defaultdict(list)
        name = os.path.join(self.path, "tombstones")
        if not os.path.exists(name):
            return out
        with open(name, "rb") as f:
            data = f.read()
        need(struct.unpack_from(">IB", data) == (0x0130BA30, 1), "tombstones: header")
        _crc(data, 5, len(data) - 4, "tombstones")
        i = 5
        while i < len(data) - 4:
            ref, i = read_uvarint(data, i)
            mint, i = read_varint(data, i)
            maxt, i = read_varint(data, i)
            out[ref].append((mint, maxt))
        return out

    def chunk(self, ref):
        """(encoding, payload) of a chunk reference."""
        data, at = self.segments[ref >> 32], ref & 0xFFFFFFFF
        n, i = read_uvarint(data, at)
        _crc(data, i, i + 1 + n, f"chunk {ref}")
        return data[i], data[i + 1:i + 1 + n]

    def check(self):
        stats = self.meta["stats"]
        samples = n_chunks = 0
        end = 0
        for labels, refs in self.index.series.values():
            for mint, maxt, ref in refs:
                encoding, payload = self.chunk(ref)
                n_chunks += 1
                need(self.meta["minTime"] <= mint and maxt < self.meta["maxTime"], "a chunk is outside the block's time:", labels)
                if encoding == 255:
                    samples += max(struct.unpack_from(">H", p)[0] for _, p in chunks.decode_aggregate(payload).values())
                    continue
                inside = chunks.decode(encoding, payload)
                samples += len(inside)
                need(inside[0][0] == mint and inside[-1][0] == maxt, "a chunk's times are not the index's:", labels)
                need(all(a[0] < b[0] for a, b in zip(inside, inside[1:])), "samples do not ascend:", labels)
                end = ref
        need(stats["numSeries"] == len(self.index.series), "meta.json says", stats["numSeries"], "series for", len(self.index.series))
        need(stats["numChunks"] == n_chunks, "meta.json says", stats["numChunks"], "chunks for", n_chunks)
        if not self.resolution:
            need(stats["numSamples"] == samples, "meta.json says", stats["numSamples"], "samples for", samples)
        return end

    @property
    def resolution(self):
        return self.meta.get("thanos", {}).get("downsample", {}).get("resolution", 0)

    @property
    def external_labels(self):
        return dict(self.meta.get("thanos", {}).get("labels") or {})

    def dump(self, tombstones=True):
        """{labels: [(t, bits or Histogram)]}, deleted samples left out."""
        out = {}
        for ref, (labels, refs) in self.index.series.items():
            samples = [s for _, _, chunk in refs for s in chunks.decode(*self.chunk(chunk))]
            if tombstones and ref in self.tombstones:
                samples = [s for s in samples if not any(a <= s[0] <= b for a, b in self.tombstones[ref])]
            if samples:
                out[labels] = samples
        return out


def blocks(directory):
    """Paths of the complete blocks in a directory, by name."""
    return sorted(os.path.dirname(p) for p in glob.glob(os.path.join(str(directory), "*", "meta.json")) if len(os.path.basename(os.path.dirname(p))) == 26)


def with_external(labels, external):
    """A series' labels as a reader of the bucket sees them: external labels win."""
    merged = dict(labels)
    merged.update(external)
    return tuple(sorted(merged.items(), key=lambda p: raw(p[0])))


def without(labels, names):
    return tuple(p for p in labels if p[0] not in names)


def merge(dumps):
    """Several {labels: samples} as one, the same sample twice being an error of whoever wrote them; use union() where overlap is meant."""
    out = defaultdict(list)
    for d in dumps:
        for labels, samples in d.items():
            out[labels] += samples
    for labels, samples in out.items():
        samples.sort(key=lambda s: s[0])
        times = [t for t, _ in samples]
        need(len(set(times)) == len(times), "a sample twice:", labels)
    return dict(out)


def dump_dir(directory, external=True):
    """Every block of a directory together; with each block's external labels on its series."""
    parts = []
    for path in blocks(directory):
        b = Block(path)
        d = b.dump()
        parts.append({with_external(k, b.external_labels): v for k, v in d.items()} if external else d)
    return merge(parts)
