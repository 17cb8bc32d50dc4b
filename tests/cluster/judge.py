#!/usr/bin/env python3
"""What a fleet has against what it acknowledged: nothing lost, wrong, twice, or never sent.

    Book(path)                      a ledger of load.py, also while it is written
    check_all(book, url)            everything, batch by batch, through one node
    held(url, book)                 what one node alone holds (scope=local): to hold replicas against each other
    judge.py --ledger=F --urls=...  reads back while the load runs: what was acknowledged before a read began has to be in its answer
"""
import argparse
import http.client
import json
import pathlib
import random
import signal
import struct
import sys
import time
from collections import Counter, namedtuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from load import Shape  # noqa: E402  (the path comes first)
from lib import remote  # noqa: E402
from lib.wire import pb_fields, read_uvarint, snappy, text, unsnappy  # noqa: E402

OWN_LABELS = ("tenant_id", "varve_node")  # that varve adds to what it reads: whose it is, and on one node alone: which

Request = namedtuple("Request", "round batch outcome attempts due_us latency_us codes")


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def p99_ms(book, spans):
    """Of the requests that were due in any of these times, [(since_us, until_us)]."""
    return quantile([r.latency_us / 1000 for s, u in spans for r in book.between(s, u) if r.outcome == "A"], 0.99)


class Book:
    """A ledger: refresh() reads on."""

    def __init__(self, path):
        self.path, self.at, self.shape = pathlib.Path(path), 0, None
        self.requests = []
        self.acked = {}  # batch: rounds
        self.refresh()

    def refresh(self):
        if not self.path.exists():
            return self
        with open(self.path, "rb") as f:
            f.seek(self.at)
            data = f.read()
        whole = data[:data.rfind(b"\n") + 1]
        self.at += len(whole)
        lines = whole.decode().splitlines()
        if lines and self.shape is None:
            self.shape = Shape(**json.loads(lines.pop(0)))
            self.acked = {b: set() for b in range(self.shape.batches)}
        for line in lines:
            k, b, outcome, attempts, due, latency, codes = line.split()
            r = Request(int(k), int(b), outcome, int(attempts), int(due), int(latency), [] if codes == "-" else [int(c) for c in codes.split(",")])
            self.requests.append(r)
            if outcome == "A":
                self.acked[r.batch].add(r.round)
        return self

    def last_round(self):
        return max((r.round for r in self.requests), default=-1)

    def samples(self):
        return sum(len(rounds) * len(self.shape.members(b)) for b, rounds in self.acked.items())

    def between(self, since_us, until_us):
        """Requests that were due then."""
        return [r for r in self.requests if since_us <= r.due_us < until_us]

    def summary(self, since_us=0, until_us=1 << 62):
        rs = self.between(since_us, until_us)
        ms = [r.latency_us / 1000 for r in rs if r.outcome == "A"]
        attempts = sum(r.attempts for r in rs)
        codes = Counter(c for r in rs for c in r.codes)
        return {"requests": len(rs), "attempts": attempts, "errors": sum(codes.values()), "codes": dict(codes), "refused": sum(r.outcome == "R" for r in rs),
                "open": sum(r.outcome == "O" for r in rs), "p50_ms": quantile(ms, 0.5), "p99_ms": quantile(ms, 0.99), "max_ms": max(ms, default=0.0)}


class Findings:
    KINDS = ("lost", "wrong", "phantom", "duplicate")

    def __init__(self):
        self.read = self.expected = 0
        self.counts, self.first = Counter(), {}

    def add(self, kind, what):
        self.counts[kind] += 1
        self.first.setdefault(kind, what)

    def merge(self, other):
        self.read += other.read
        self.expected += other.expected
        self.counts += other.counts
        self.first = {**other.first, **self.first}
        return self

    @property
    def clean(self):
        return not any(self.counts.values())

    def __str__(self):
        return f"{self.expected} acknowledged, {self.read} read, " + ", ".join(f"{self.counts[k]} {k}" for k in self.KINDS) + (f"; first: {self.first}" if self.first else "")


# ---- reading ----

ROW = struct.Struct("<BBBdB6s")  # a sample as load.py sends it and most servers answer it: 12 10 09 <value> 10 <time>


def rows(rest):
    """[(time as LEB128, value)] of a series' samples."""
    if len(rest) % ROW.size == 0:
        out = [(t, v) for a, n, f, v, g, t in ROW.iter_unpack(rest) if (a, n, f, g) == (0x12, 0x10, 0x09, 0x10)]
        if len(out) == len(rest) // ROW.size:
            return out
    out = []
    for field, _, content in pb_fields(rest):
        if field != 2:
            raise ValueError(f"field {field} among samples")
        value, t = 0.0, b"\0"
        for f, _, x in pb_fields(content):
            if f == 1:
                value = struct.unpack("<d", struct.pack("<Q", x))[0]
            else:
                t = remote.uvarint(x)
        out.append((t, value))
    return out


def parse(body):
    """[(labels, samples)] of an answer with SAMPLES to one query."""
    out = []
    for field, _, result in pb_fields(unsnappy(body)):
        for f, _, series in pb_fields(result) if field == 1 else ():
            if f != 1:
                continue
            series, at, labels = bytes(series), 0, {}
            while at < len(series) and series[at] == 0x0A:
                n, begin = read_uvarint(series, at + 1)
                at = begin + n
                pair = {k: text(v) for k, _, v in pb_fields(series[begin:at])}
                labels[pair.get(1, "")] = pair.get(2, "")
            out.append((labels, rows(series[at:])))
    return out


class ReadRefused(Exception):
    pass


def ask(url, tenant, matchers, start, end, scope=None, timeout=30):
    c = remote.Client(url, tenant, timeout=timeout)
    try:
        a = c.request("POST", "/api/v1/read" + (f"?scope={scope}" if scope else ""), snappy(remote.encode_read([(start, end, matchers)])),
                      {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Read-Version": "0.1.0"})
    except (OSError, http.client.HTTPException) as e:
        raise ReadRefused(f"{url}: {e!r}") from None
    finally:
        c.close()
    if a.status != 200:
        raise ReadRefused(f"{url}: {a.status} {a.text[:300].strip()}")
    return parse(a.body)


def matchers_of(shape, batch=None):
    return [("=", "sender", shape.name)] + ([("=", "batch", f"{batch:04d}")] if batch is not None else [])


# ---- judging ----

class Times:
    """LEB128 of a time to its round; None: no time of the shape."""

    def __init__(self, shape):
        self.shape, self.known = shape, {}

    def __getitem__(self, raw):
        if raw not in self.known:
            t, _ = read_uvarint(raw, 0)
            k, rest = divmod(t - self.shape.start_ms, self.shape.step_ms)
            self.known[raw] = k if rest == 0 and k >= 0 else None
        return self.known[raw]


def check(shape, found, batches, must, first=0, last=1 << 40):
    """found, an answer about these batches in rounds first .. last, against must: {batch: acknowledged rounds}."""
    out, times, seen = Findings(), Times(shape), {}
    wanted = {i for b in batches for i in shape.members(b)}
    for labels, samples in found:
        own = tuple(sorted((n, v) for n, v in labels.items() if n not in OWN_LABELS))
        i = int(labels["idx"]) if labels.get("idx", "").isdigit() else -1
        if i not in wanted or own != shape.labels(i):
            out.add("phantom", labels)
            continue
        have, base = seen.setdefault(i, set()), shape.value(i, 0)
        for raw, value in samples:
            k = times[raw]
            out.read += 1
            if k is None or not first <= k <= last:
                out.add("phantom", (labels, raw.hex(), value))
            elif k in have:
                out.add("duplicate", (i, k))
            else:
                have.add(k)
                if value != base + k:
                    out.add("wrong", (i, k, value))
    for b in batches:
        due = {k for k in must.get(b, ()) if first <= k <= last}
        for i in shape.members(b):
            out.expected += len(due)
            for k in due - seen.get(i, set()):
                out.add("lost", (i, k))
    return out


def check_all(book, url, batches=None, timeout=60):
    """Everything that was acknowledged so far, through this node."""
    shape, out = book.shape, Findings()
    end = shape.time(book.last_round() + 1000)
    for b in batches if batches is not None else range(shape.batches):
        out.merge(check(shape, ask(url, shape.tenant, matchers_of(shape, b), shape.start_ms - 3_600_000, end, timeout=timeout), [b], book.acked))
    return out


def held(url, book, first=0, last=1 << 30):
    """{series: rounds} that this node alone has; whatever is wrong with them raises."""
    shape, times, out = book.shape, Times(book.shape), {}
    for labels, samples in ask(url, shape.tenant, matchers_of(shape), shape.time(first), shape.time(min(last, first + (1 << 20))), scope="local", timeout=120):
        i = int(labels["idx"])
        for raw, value in samples:
            k = times[raw]
            assert k is not None and value == shape.value(i, k), (url, labels, raw, value)
            out.setdefault(i, set()).add(k)
    return out


# ---- reading back while the load runs ----

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ledger", required=True)
    p.add_argument("--urls", required=True, help="a file with a URL a line, read again before every question")
    p.add_argument("--out", required=True)
    p.add_argument("--every", type=float, default=0.5)
    p.add_argument("--rounds", type=int, default=30, help="how far back")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    rng, findings, reads, slowest, refused = random.Random(args.seed), Findings(), 0, 0.0, []
    book = Book(args.ledger)
    while not stop:
        time.sleep(args.every)
        urls = pathlib.Path(args.urls).read_text("utf-8").split()
        if book.refresh().shape is None or book.last_round() < 0 or not urls:
            continue
        shape, last = book.shape, book.last_round()
        b, url, first = rng.randrange(shape.batches), rng.choice(urls), max(0, last - args.rounds)
        began = time.monotonic()
        try:
            found = ask(url, shape.tenant, matchers_of(shape, b), shape.time(first), shape.time(last), timeout=30)
            one = check(shape, found, [b], book.acked, first, last)
            if not one.clean:
                print(f"{time.time():.3f} {url} batch {b} rounds {first}..{last}: {one}", flush=True)
            findings.merge(one)
        except ReadRefused as e:
            refused.append(str(e))
            print(f"{time.time():.3f} {e}", flush=True)
        reads += 1
        slowest = max(slowest, time.monotonic() - began)
    result = {"reads": reads, "refused": len(refused), "first_refused": refused[:1], "slowest_s": slowest, "read": findings.read, "expected": findings.expected,
              **{k: findings.counts[k] for k in Findings.KINDS}, "first": {k: repr(v) for k, v in findings.first.items()}}
    pathlib.Path(args.out).write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
