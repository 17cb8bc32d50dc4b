#!/usr/bin/env python3
"""A sender of remote write that goes on until it is stopped, and writes down what became of each request.

    load.py --url=http://127.0.0.1:1234 --ledger=FILE --series=3000 --batch=100 --step-ms=1000 --shards=8

What it sends is a function of (series, round), see Shape, so whoever reads a sample knows whether it is right. A round is due every step, its requests spread over the step; a request's latency counts from when it
was due, so a fleet that stalls is not spared by a sender that waits. Requests are repeated as Prometheus repeats them: 5xx and no answer after 30 ms, 60 ms ... 5 s or as Retry-After says, and what follows in the same
shard waits; 429 and other refusals are final.

The ledger's first line is the shape as JSON. Then a line for each request that is over:
    ROUND BATCH OUTCOME ATTEMPTS DUE_US LATENCY_US CODES       A acknowledged, R refused, O open (it was stopped before an answer came); CODES of failed attempts, 0: no answer
"""
import argparse
import http.client
import json
import os
import pathlib
import signal
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from lib import remote  # noqa: E402  (the path comes first)
from lib.wire import pb_len, snappy, uvarint  # noqa: E402

ROUNDS_MAX = 1 << 20
BACKOFF_S, BACKOFF_MAX_S = 0.03, 5.0


class Shape:
    """Series 0 .. series-1, in batches; sample k of series i is at start_ms + k * step_ms and has the value i * 2^20 + k + 1."""

    KEYS = ("name", "series", "batch", "start_ms", "step_ms", "tenant")

    def __init__(self, name="load", series=3000, batch=100, start_ms=0, step_ms=1000, tenant=None):
        self.name, self.series, self.batch, self.start_ms, self.step_ms, self.tenant = name, series, batch, start_ms, step_ms, tenant
        self.batches = (series + batch - 1) // batch

    def to_json(self):
        return json.dumps({k: getattr(self, k) for k in self.KEYS})

    def members(self, b):
        return range(b * self.batch, min((b + 1) * self.batch, self.series))

    def labels(self, i):
        return remote.labels(f"ring_load_{i % 7}", sender=self.name, batch=f"{i // self.batch:04d}", idx=f"{i:06d}", instance=f"10.1.{i % 50}.{i % 7}:9100", job=f"job-{i % 5}")

    @staticmethod
    def value(i, k):
        return float(i * ROUNDS_MAX + k + 1)

    def time(self, k):
        return self.start_ms + k * self.step_ms


class Bodies:
    """Requests of a shape. All of a series but its value and time is made once."""

    def __init__(self, shape):
        self.shape, self.heads = shape, {}

    def _heads(self, b):
        if b not in self.heads:
            n = 11 + len(uvarint(self.shape.time(0)))  # of the sample's field behind its tag and length; a time has as many bytes for the next eighty years
            out = []
            for i in self.shape.members(b):
                labels = remote.encode_labels(self.shape.labels(i))
                out.append((b"\x0a" + uvarint(len(labels) + n + 1) + labels + b"\x12" + uvarint(n - 1) + b"\x09", i * ROUNDS_MAX + 1))
            self.heads[b] = out
        return self.heads[b]

    def make(self, k, b):
        pack = struct.Struct("<d").pack
        tail = b"\x10" + uvarint(self.shape.time(k))
        return snappy(b"".join([head + pack(base + k) + tail for head, base in self._heads(b)]))


def check_bodies():
    """Once, against the slow and obvious way."""
    shape = Shape(series=3, batch=2, start_ms=1_790_000_000_000)
    for k, b in ((0, 0), (5, 1)):
        plain = remote.encode_request([(shape.labels(i), [(shape.time(k), struct.unpack("<Q", struct.pack("<d", shape.value(i, k)))[0])]) for i in shape.members(b)])
        assert Bodies(shape).make(k, b) == snappy(plain), "a body is not what it should be"
    assert pb_len(1, b"") == b"\x0a\x00"


class Shard(threading.Thread):
    """One connection, and what is sent on it in its order."""

    def __init__(self, args, shape, number, ledger, stopping, begin):
        super().__init__(daemon=True)
        self.args, self.shape, self.number, self.ledger, self.stopping, self.begin = args, shape, number, ledger, stopping, begin
        self.bodies = Bodies(shape)
        self.client = remote.Client(args.url, args.tenant, timeout=args.timeout)
        self.error = None

    def post(self, body):
        """(status, seconds that the answer asks to wait or None)"""
        try:
            answer = self.client.write_body(body)
        except (OSError, http.client.HTTPException) as e:
            print(f"shard {self.number}: {e!r}", flush=True)
            return 0, None
        if answer.status // 100 != 2:
            print(f"shard {self.number}: {answer.status} {answer.text[:300].strip()}", flush=True)
        after = answer.headers.get("Retry-After", "")
        return answer.status, int(after) if after.isdigit() else None

    def send(self, k, b, due):
        body, codes, pause, outcome, give_up = self.bodies.make(k, b), [], BACKOFF_S, "O", None
        while True:
            status, after = self.post(body)
            if status // 100 == 2:
                outcome = "A"
                break
            codes.append(status)
            if status and status // 100 != 5:
                outcome = "R"
                break
            if self.stopping.is_set():
                give_up = give_up or time.monotonic() + self.args.finish
                if time.monotonic() > give_up:
                    break
            time.sleep(after if after is not None else pause)
            pause = min(2 * pause, BACKOFF_MAX_S)
        now = time.monotonic()
        due_us = int((time.time() - (now - due)) * 1e6)
        attempts = len(codes) + (outcome == "A")
        line = f"{k} {b} {outcome} {attempts} {due_us} {int((now - due) * 1e6)} {','.join(map(str, codes)) or '-'}\n"
        os.write(self.ledger, line.encode())

    def run(self):
        try:
            step, n = self.shape.step_ms / 1000, self.shape.batches
            for k in range(self.args.rounds):
                for b in range(self.number, n, self.args.shards):
                    due = self.begin + (k + b / n) * step
                    if self.stopping.wait(max(0, due - time.monotonic())):
                        return
                    self.send(k, b, due)
        except Exception as e:  # whatever it is, nobody may take silence for success
            self.error = e
            self.stopping.set()
            raise


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", required=True)
    p.add_argument("--ledger", required=True)
    p.add_argument("--name", default="load")
    p.add_argument("--tenant")
    p.add_argument("--series", type=int, default=3000)
    p.add_argument("--batch", type=int, default=100)
    p.add_argument("--step-ms", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=ROUNDS_MAX - 1)
    p.add_argument("--shards", type=int, default=8)
    p.add_argument("--clock-ms", type=int, default=0, help="this sender's clock is so far ahead (behind: negative)")
    p.add_argument("--timeout", type=float, default=30, help="seconds for an answer")
    p.add_argument("--finish", type=float, default=60, help="seconds that an unanswered request is repeated after SIGTERM")
    args = p.parse_args()
    check_bodies()

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    shape = Shape(args.name, args.series, args.batch, int(time.time() * 1000) + args.clock_ms, args.step_ms, args.tenant)
    assert len(uvarint(shape.time(0))) == len(uvarint(shape.time(ROUNDS_MAX))), "times of one length"
    ledger = os.open(args.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(ledger, (shape.to_json() + "\n").encode())
    shards = [Shard(args, shape, i, ledger, stopping, time.monotonic()) for i in range(min(args.shards, shape.batches))]
    for s in shards:
        s.start()
    for s in shards:
        while s.is_alive():  # in pieces, so that the signal is heard
            s.join(0.2)
    return 1 if any(s.error for s in shards) else 0


if __name__ == "__main__":
    sys.exit(main())
