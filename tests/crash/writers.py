"""Who writes while the server is killed (crash.py): one connection each, with a ledger of what it sent and what it was told.

FloatWriter speaks remote write 1.0: late samples, staleness. Writer2 speaks 2.0: the same with start timestamps. HistogramWriter: histograms of every kind and floats between
them, late ones too, and each request by another version: it is one series. AnnotatedWriter: exemplars and metadata beside samples, by both versions. Some requests hold
a part that has to be refused, alone, and every answer to 2.0 is held against exact counts.
"""
import random
import threading
import time

from lib import remote, remote2
from lib.histograms import Maker
from lib.ledger import ACKED, UNKNOWN, Ledger
from lib.wire import STALE_NAN, bits, pb_len, snappy

SERIES = 40
LATE_MS = 100_000
WINDOW_MS = 60_000
EXEMPLARS_MAX = 3000
HOUR = 3_600_000


class Request:
    """Series (remote2.series) that are to be stored, `bad` ones that are to be refused, and by which version. zeros: [(labels, start, whether it must come with its sample)];
    left_out: how many exemplars are too long."""

    def __init__(self, series, bad=(), version=1, zeros=(), left_out=0):
        self.series, self.bad, self.version, self.zeros = series, list(bad), version, list(zeros)
        self.exemplars_left_out = left_out

    def body(self):
        everything = self.series + self.bad
        if self.version == 2:
            return snappy(remote2.encode_request(everything))
        return snappy(b"".join(map(encode_1, everything)))

    def written(self):
        """What the answer has to say: refused series count nothing, whatever else they hold."""
        samples, histograms, exemplars = (sum(len(part) for part in parts) for parts in zip(*((s.samples, s.histograms, s.exemplars) for s in self.series)))
        return samples, histograms, exemplars - self.exemplars_left_out

    def values(self):
        """[(labels, [(t, value)])] for a ledger."""
        return [(s.labels, [(x[0], x[1]) for x in s.samples] + [remote._histogram(h) for h in s.histograms]) for s in self.series]


def encode_1(s):
    """A remote2.series as 1.0 has it: metadata stand beside it, by family."""
    out = remote.encode_labels(s.labels) + b"".join(remote.encode_sample(x[0], x[1]) for x in s.samples)
    out += b"".join(remote.encode_exemplar(pairs, t, value) for pairs, value, t in s.exemplars) + b"".join(pb_len(4, h) for h in s.histograms)
    kind, text, unit = s.metadata or (0, "", "")
    return pb_len(1, out) + (remote.encode_metadata(dict(s.labels)["__name__"], remote.METRIC_TYPES[kind], text, unit) if s.metadata else b"")


class Annotations:
    """The ledger of a tenant's exemplars, in the order in which its one sender sent them, and of its metadata."""

    def __init__(self):
        self.exemplars, self.metadata = {}, {}

    def record(self, request, state):
        for s in request.series:
            for pairs, value, t in s.exemplars:
                if sum(len(n) + len(v) for n, v in pairs) <= 128:
                    key = (s.labels, tuple(sorted(pairs)), value, t)
                    self.exemplars[key] = max(self.exemplars.get(key, UNKNOWN), state)
            if s.metadata:
                key = (dict(s.labels)["__name__"], *s.metadata)
                self.metadata[key] = max(self.metadata.get(key, UNKNOWN), state)

    def compare(self, exemplars, metadata, share):
        """What is wrong with these, in words. share: so many of the newest are kept, at least."""
        faults = []
        sent = list(self.exemplars)
        due = {key for key in sent[-share:] if self.exemplars[key] == ACKED}
        told = {key for key, state in self.metadata.items() if state == ACKED}
        for what, found, must, may in (("exemplar", exemplars, due, self.exemplars), ("metadata", metadata, told, self.metadata)):
            seen = set(found)
            faults += [f"a lost {what}: {key}" for key in must - seen] + [f"a phantom {what}: {key}" for key in seen if key not in may]
            if len(seen) != len(found):
                faults.append(f"{what} twice")
        return faults, len(due), len(told)


class Writer(threading.Thread):
    """One connection of one tenant. Its series are its own, so its ledger needs no lock."""

    kind = "crash"

    def __init__(self, url, tenant, number, seed, annotations=None):
        super().__init__(daemon=True)
        self.url, self.tenant, self.number = url, tenant, number
        self.rng = random.Random(f"{seed}/{self.kind}/{tenant}/{number}")
        self.ledger, self.annotations = Ledger(), annotations
        self.stop = threading.Event()
        self.sent = self.retried = self.refused = self.zeros = 0
        self.last_t = {}
        self.old = []
        self.error = None

    def labels(self, i):
        return remote.labels(f"{self.kind}_{i % 5}", writer=str(self.number), idx=str(i), zone="å" if i % 7 == 0 else "z")

    # ---- what is sent ----

    def next_t(self, i, now):
        return max(now - self.rng.randrange(3000), self.last_t.get(i, 0) + 1)

    def floats(self, i, now):
        t, out = self.next_t(i, now), []
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            out.append((t, self.rng.choice((bits(float(t % 1000)), bits(self.rng.random()), 0, bits(float("inf")), STALE_NAN))))
            t += self.rng.randrange(1, 40)
        self.last_t[i] = out[-1][0]
        return out

    def late_t(self, i, now):
        """Some into windows that are blocks already; None where the series has a sample."""
        t = now - self.rng.randrange(1000, LATE_MS)
        return None if (self.tenant, tuple(sorted(self.labels(i))), t) in self.ledger.tries else t

    def fresh(self, now):
        raise NotImplementedError

    def bad(self, series, now):
        """A series that has to be refused beside those of the request."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return remote2.series(remote.labels(job="nameless"), [(now, bits(1.0))])
        if kind == 1:
            return remote2.series(self.labels(0), [(now - 2 * HOUR, bits(1.0))])
        if kind == 2:
            return remote2.series(self.labels(0), histograms=[remote2.histogram(now - LATE_MS - 1, count=4, pos=[1, 2])])
        # Another value at a time that the request itself has: the first one stands.
        s = self.rng.choice(series)
        if not s.samples:
            return remote2.series(self.labels(0), [(now + HOUR, bits(1.0))])
        return remote2.series(s.labels, [(s.samples[0][0], bits(-7.5))])

    def make(self):
        """(a request, whether it is new)"""
        now = int(time.time() * 1000)
        if self.old and self.rng.random() < 0.1:
            return self.rng.choice(self.old), False  # a retry of something long answered
        request = self.fresh(now)
        if self.rng.random() < 0.05:
            request.bad.append(self.bad(request.series, now))
        return request, True

    # ---- what comes back ----

    def post(self, client, request, body):
        try:
            return remote2.write_body(client, body) if request.version == 2 else client.write_body(body)
        except (OSError, remote.http.client.HTTPException):
            return None

    def judge(self, request, answer):
        """Whether it is stored; a fault when the answer can't be right."""
        where = f"{self.kind}, tenant {self.tenant}"
        counts = remote2.written(answer)
        if 500 <= answer.status < 600:
            if counts not in (None, (0, 0, 0)):
                raise AssertionError(f"{where}: {answer.status} with {counts} written")
            return False
        if (answer.status == 400) != bool(request.bad) or answer.status not in (204, 400):
            raise AssertionError(f"{where}: a request with {len(request.bad)} bad series was answered {answer.status} {answer.text[:500]}")
        if counts != (request.written() if request.version == 2 else None):
            raise AssertionError(f"{where}: {request.written()} were to be written, the answer to version {request.version} says {counts}: {answer.text[:500]}")
        self.refused += len(request.bad)
        return True

    def record(self, request, state):
        self.ledger.record(self.tenant, request.values(), state)
        # A zero may come with its sample; it must where sample and start share a window and nothing was there before.
        for labels, t, must in request.zeros:
            self.ledger.record(self.tenant, [(labels, [(t, 0)])], state if must else UNKNOWN)
            self.zeros += must and state == ACKED
        if self.annotations:
            self.annotations.record(request, state)

    def remember(self, request):
        """Without its exemplars: newer ones of their series have come."""
        self.old.append(Request([s._replace(exemplars=()) for s in request.series], version=request.version, zeros=[(*z[:2], False) for z in request.zeros]))
        self.old = self.old[-20:]

    def run(self):
        client = remote.Client(self.url, self.tenant, timeout=20)
        try:
            while not self.stop.is_set():
                request, fresh = self.make()
                body = request.body()
                # Before the first byte leaves: a kill may come between the server's log and our knowing.
                self.record(request, UNKNOWN)
                for attempt in range(200):
                    answer = self.post(client, request, body)
                    if answer is not None and self.judge(request, answer):
                        self.record(request, ACKED)
                        break
                    self.retried += 1
                    if self.stop.is_set() or (not fresh and attempt > 2):
                        break
                    time.sleep(0.02)
                self.sent += 1
                if fresh and self.rng.random() < 0.1:
                    self.remember(request)
                time.sleep(self.rng.random() * 0.01)
        except Exception as e:  # whatever it is, the run must not go on without this writer
            self.error = f"{type(e).__name__}: {e}"
        finally:
            client.close()


def once_each(series):
    """A series stands once in a request, with its samples in order: as senders send."""
    merged = {}
    for labels, samples in series:
        merged.setdefault(labels, {}).update(samples)
    return [(labels, sorted(samples.items())) for labels, samples in merged.items()]


class FloatWriter(Writer):
    version = 1

    def fresh(self, now):
        series = [(self.labels(i), self.floats(i, now)) for i in self.rng.sample(range(SERIES), self.rng.randrange(1, SERIES))]
        if self.rng.random() < 0.2:
            i = self.rng.randrange(SERIES)
            t = self.late_t(i, now)
            if t is not None:
                series.append((self.labels(i), [(t, bits(self.rng.random()))]))
        return Request([remote2.series(labels, samples) for labels, samples in once_each(series)], version=self.version)


class Writer2(FloatWriter):
    """And says when its series began: both ways to say it."""

    kind, version = "crash2", 2

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.born = 0

    def begin(self, now):
        """A series that nobody saw before, with its start: (series, zero)."""
        self.born += 1
        pairs = remote.labels("crash_born", writer=str(self.number), n=str(self.born))
        start = now - self.rng.randrange(1, 30_000)
        samples = [(now, bits(5.0), start)] if self.born % 2 else [(now, bits(6.0))]
        return remote2.series(pairs, samples, created=0 if self.born % 2 else start), (pairs, start, start // WINDOW_MS == now // WINDOW_MS)

    def fresh(self, now):
        request = super().fresh(now)
        for _ in range(self.rng.choice((0, 0, 0, 1, 4))):
            series, zero = self.begin(now)
            request.series.append(series)
            if self.created_zero:
                request.zeros.append(zero)
        return request


class HistogramWriter(Writer):
    kind = "crash_h"

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.makers = [Maker(self.rng.randrange(1 << 30)) for _ in range(SERIES)]

    def fresh(self, now):
        series = []
        for i in self.rng.sample(range(SERIES), self.rng.randrange(1, SERIES // 2)):
            times = [self.next_t(i, now)]
            for _ in range(self.rng.choice((0, 0, 0, 1, 4))):
                times.append(times[-1] + self.rng.randrange(1, 40))
            self.last_t[i] = times[-1]
            late = self.late_t(i, now) if self.rng.random() < 0.05 else None
            floats, histograms = [], []
            for t in ([late] if late is not None else []) + times:
                h = self.makers[i].next()
                if h is None:
                    floats.append((t, bits(float(t % 1000))))
                else:
                    histograms.append(remote2.histogram(t, **h))
            series.append(remote2.series(self.labels(i), floats, histograms))
        return Request(series, version=self.rng.choice((1, 2)))


class AnnotatedWriter(Writer):
    """The only one of its tenant that sends exemplars: so their order is known, and which ones a bounded ring has to keep."""

    kind = "crash_x"

    def fresh(self, now):
        version, series, left_out = self.rng.choice((1, 2)), [], 0
        for i in self.rng.sample(range(SERIES), self.rng.randrange(1, SERIES // 2)):
            samples = self.floats(i, now)
            exemplars = []
            if self.rng.random() < 0.7:
                exemplars = [(remote.labels(trace_id=f"{self.rng.getrandbits(64):016x}") if self.rng.random() < 0.8 else (), value if value != STALE_NAN else 0, t)
                             for t, value in samples]
            if self.rng.random() < 0.03:
                exemplars.append((remote.labels(trace_id="x" * 200), 0, samples[-1][0]))
                left_out += 1
            metadata = (1 + i % 7, f"Help of {i % 5}, told by {self.number}, \"{self.rng.randrange(2)}\"", "s") if self.rng.random() < 0.2 else None
            series.append(remote2.series(self.labels(i), samples, exemplars=exemplars, metadata=metadata))
        return Request(series, version=version, left_out=left_out)

    def labels(self, i):
        # A family a writer: one holds at most 16 texts.
        return remote.labels(f"{self.kind}_{i % 5}_{self.number}", idx=str(i))
