"""What was sent, what was answered, and whether what is read back can be true.

Every (tenant, series, time) remembers each value that was tried and the best answer it got:
ACKED - a 2xx; REFUSED - told that it is not stored; UNKNOWN - no answer, or one that leaves it open (5xx, connection gone).
"""
import random
from collections import defaultdict

from .wire import raw

REFUSED, UNKNOWN, ACKED = 0, 1, 2


def seeded(name, seed=None):
    """A random generator whose seed is printed; VARVE_SEED repeats a run."""
    import os

    seed = seed if seed is not None else int(os.environ.get("VARVE_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: VARVE_SEED={seed}")
    return random.Random(seed)


class Report:
    def __init__(self):
        self.acked = self.read = 0
        self.lost, self.wrong, self.phantom, self.duplicate, self.cross_tenant = [], [], [], [], []

    @property
    def clean(self):
        return not (self.lost or self.wrong or self.phantom or self.duplicate or self.cross_tenant)

    def __str__(self):
        counts = {k: len(getattr(self, k)) for k in ("lost", "wrong", "phantom", "duplicate", "cross_tenant")}
        first = {k: getattr(self, k)[0] for k in counts if counts[k]}
        return f"{self.acked} acknowledged, {self.read} read, " + ", ".join(f"{n} {k}" for k, n in counts.items()) + (f"; first: {first}" if first else "")


class Ledger:
    def __init__(self):
        self.tries = defaultdict(dict)  # (tenant, labels, t) -> {value: state}

    def record(self, tenant, series, state):
        """series as given to Client.write; state for all its samples."""
        for labels, samples in series:
            labels = tuple(sorted(labels, key=lambda p: raw(p[0])))
            for t, value in samples:
                values = self.tries[(tenant, labels, t)]
                values[value] = max(values.get(value, REFUSED), state)

    def record_answer(self, tenant, series, status):
        """By HTTP status; None: no answer came. A 400 refuses all: for partly bad requests use record() with what should have become of each part."""
        self.record(tenant, series, ACKED if status is not None and 200 <= status < 300 else REFUSED if status is not None and 400 <= status < 500 else UNKNOWN)

    def samples(self, state=ACKED):
        return sum(1 for values in self.tries.values() if max(values.values()) == state)

    def compare(self, found):
        """found: {tenant: {labels: [(t, value), ...]}} with the labels as they were sent."""
        report = Report()
        report.acked = self.samples()
        seen = set()
        for tenant, series in found.items():
            for labels, samples in series.items():
                labels = tuple(sorted(labels, key=lambda p: raw(p[0])))
                for t, value in samples:
                    report.read += 1
                    key = (tenant, labels, t)
                    if key in seen:
                        report.duplicate.append(key)
                        continue
                    seen.add(key)
                    values = self.tries.get(key)
                    if values is None:
                        if any((other, labels, t) in self.tries for other in found if other != tenant):
                            report.cross_tenant.append(key)
                        else:
                            report.phantom.append((*key, value))
                    elif values.get(value, REFUSED) == REFUSED:
                        (report.wrong if ACKED in values.values() else report.phantom).append((*key, value, values))
        for key, values in self.tries.items():
            if ACKED in values.values() and key not in seen:
                report.lost.append((*key, values))
        return report
