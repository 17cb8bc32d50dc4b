"""Native histograms as random series have them: counters that are reset and gain buckets, gauges, custom bounds, changes of schema and threshold, staleness, floats in between."""
import random

from .wire import STALE_NAN

RESET, GAUGE = 1, 3


class Maker:
    """One series of histograms; the same for the same seed. next() is what remote2.histogram() takes."""

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.steady = seed % 3 == 0
        self.mixed = seed % 11 == 10
        self.step = self.r.choice((5_000, 15_000, 30_000))
        self.fresh()

    def fresh(self):
        r = self.r
        self.is_float, self.gauge = r.random() < 0.5, r.random() < 0.2
        self.custom = []
        if r.random() < 0.2:
            self.schema, self.threshold = -53, 0.0
            self.custom = sorted({round(r.uniform(0, 10), r.choice((1, 3, 9))) + 0.001 for _ in range(r.randint(1, 15))})
        else:
            self.schema, self.threshold = r.randint(-4, 8), r.choice((0.0, 2.0 ** -128, 0.001, 1e-6))
        self.zero, self.total = 0, 0.0
        self.sides = [{}, {}]
        self.around = r.randint(-20, 20)
        self.noise = r.choice((1, 1, 1, 1000))  # large changes: large chunks

    def next(self):
        """The fields of a histogram, or None for a float."""
        r = self.r
        if self.mixed and r.random() < 0.05:
            return None
        if not self.steady:
            if r.random() < 1 / 60:
                self.fresh()
            if r.random() < 1 / 40:
                self.zero, self.sides = 0, [{}, {}]
            if r.random() < 1 / 60 and not self.custom:
                self.threshold *= 2
        if self.custom:
            places = [range(len(self.custom) + 1), ()]
        else:
            places = [range(self.around, self.around + r.choice((4, 4, 4, 30)))] * 2
        for _ in range(r.randint(0, 6)):
            side = int(r.random() < 0.25)
            if places[side]:
                i = r.choice(places[side])
                self.sides[side][i] = self.sides[side].get(i, 0) + r.randint(0, 9 * self.noise)
        if self.gauge and r.random() < 0.5:
            for side in self.sides:
                for i in side:
                    side[i] = max(0, side[i] - r.randint(0, 5))
        if not self.custom:
            self.zero += r.randint(0, 2)
        self.total += r.uniform(0, 100)
        hint = GAUGE if self.gauge else RESET if not self.steady and r.random() < 1 / 80 else r.choice((0, 0, 2))
        if not self.steady and r.random() < 1 / 40:
            return {"is_float": self.is_float, "threshold": 0, "sum_bits": STALE_NAN}  # of a gauge with its hint, Prometheus 3.5 can't write its own chunk again
        sides = []
        for side in self.sides:
            # No empty ones: Prometheus 3.5 may put the counts behind them into other buckets (its issue 16893).
            indexes = sorted(i for i in side if side[i])
            spans, behind = [], 0
            for i in indexes:
                if spans and i == behind:
                    spans[-1][1] += 1
                else:
                    spans.append([i - behind if spans else i, 1])
                behind = i + 1
            sides.append((spans, [side.get(i, 0) for i in indexes]))
        scale = 0.5 if self.is_float and self.schema % 2 else 1
        counts = [[c * scale for c in v] if self.is_float else v for _, v in sides]
        return {"is_float": self.is_float, "schema": self.schema, "threshold": self.threshold, "zero": self.zero, "total": self.total, "hint": hint,
                "count": sum(map(sum, counts)) + self.zero, "pos": counts[0], "neg": counts[1], "pos_spans": sides[0][0], "neg_spans": sides[1][0],
                "custom": self.custom}
