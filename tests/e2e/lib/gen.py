"""Metrics as they come from real systems, the same for the same seed: counters with resets, gauges, constants, NaN, infinities, staleness, UTF-8.

Samples(seed, n) makes series and their values for remote write; Target serves a page of them for a real Prometheus to scrape.
"""
import http.server
import random
import threading

from .remote import labels
from .wire import NORMAL_NAN, STALE_NAN, bits

UTF8 = ["plain", "größe", "日本語", "emoji 🪨", 'quote " backslash \\', "tab\tnewline\n", "a=b,c", "ends with space "]
KINDS = ["counter", "counter", "counter", "gauge", "gauge", "constant", "constant", "integer", "special", "flapping"]


class Samples:
    """n series; value(i, k) is series i at step k: a pure function, so any part can be made again."""

    def __init__(self, seed, n, start_ms, step_ms=15000, prefix="gen"):
        self.seed, self.n, self.start_ms, self.step_ms = seed, n, start_ms, step_ms
        rng = random.Random(seed)
        self.series, self.kinds, self.salt = [], [], []
        for i in range(n):
            kind = KINDS[i % len(KINDS)]
            suffix = {"counter": "_total", "special": "_ratio"}.get(kind, "")
            self.series.append(labels(f"{prefix}_{kind}_{i % 37:02d}{suffix}", instance=f"10.0.{i % 50}.{i % 7}:9100", job=f"job-{i % 5}", id=f"{i:06d}",
                                      cluster="test", namespace=f"ns-{i % 11}", note=UTF8[i % len(UTF8)]))
            self.kinds.append(kind)
            self.salt.append(rng.getrandbits(32))

    def time(self, k):
        return self.start_ms + k * self.step_ms

    def _noise(self, i, k):
        x = (self.salt[i] * 0x9E3779B97F4A7C15 + k * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        return x ^ x >> 31

    def value(self, i, k):
        """Bits, or None where the series has a gap."""
        kind, noise = self.kinds[i], self._noise(i, k)
        if kind == "counter":
            period = 400 + self.salt[i] % 800
            return bits(float((k % period) * (self.salt[i] % 97 + 1) + noise % 13))
        if kind == "constant":
            return bits(float(self.salt[i] % 5))
        if kind == "integer":
            return bits(float(noise % 1000))
        if kind == "special":
            return (bits(float("inf")), bits(float("-inf")), NORMAL_NAN, bits(-0.0), bits(5e-324), bits(noise / 2**64))[noise % 6]
        if kind == "flapping":
            phase = (k + self.salt[i]) % 20
            return None if phase > 15 else STALE_NAN if phase == 15 else bits(float(noise % 100))
        return bits(20.0 + (noise >> 11) / 2**53)

    def batch(self, k, first=0, count=None):
        """Step k of series [first, first + count) as Client.write takes it."""
        last = self.n if count is None else min(first + count, self.n)
        out = []
        for i in range(first, last):
            v = self.value(i, k)
            if v is not None:
                out.append((self.series[i], [(self.time(k), v)]))
        return out

    def all(self, steps):
        """{labels: [(t, bits)]} of steps 0 .. steps-1."""
        out = {}
        for i, name in enumerate(self.series):
            got = [(self.time(k), v) for k in range(steps) if (v := self.value(i, k)) is not None]
            if got:
                out[name] = got
        return out


def _escape(s):
    return s.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(b):
    from .wire import unbits

    if b == NORMAL_NAN:
        return "NaN"
    v = unbits(b)
    return "+Inf" if v == float("inf") else "-Inf" if v == float("-inf") else repr(v)


class Target:
    """An HTTP page that a Prometheus scrapes; each scrape is one step. A series with a gap is left out, so Prometheus makes the stale marker."""

    def __init__(self, seed, n):
        self.samples = Samples(seed, n, 0, 1)
        self.scrapes = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = owner.page(owner.scrapes).encode()
                owner.scrapes += 1
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def page(self, k):
        lines = []
        for i, pairs in enumerate(self.samples.series):
            v = self.samples.value(i, k)
            if v is None or v == STALE_NAN:
                continue
            name = dict(pairs)["__name__"]
            inner = ",".join(f'{n}="{_escape(t)}"' for n, t in pairs if n not in ("__name__", "job", "instance"))
            lines.append((name, f"{name}{{{inner}}} {_number(v)}"))
        return "\n".join(line for _, line in sorted(lines)) + "\n"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
