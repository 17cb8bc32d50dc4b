"""The same samples in five orders, floats and histograms, some of them twice; one of the five is killed -9 in between and replays: chunks and index of the block are the same bytes."""
import os
import pathlib
import random

import pytest
from lib import procs, remote, remote2, tsdb
from lib.histograms import Maker
from lib.ledger import seeded
from lib.wire import STALE_NAN, bits, snappy

RANGE = 7_200_000
SERIES = 400 if "VARVE_FULL" in os.environ else 12  # of each kind
BATCH = 500


def floats(rng, start):
    t, out, total = start + rng.randrange(15_000), [], 0.0
    while t < start + RANGE:
        total += rng.choice((0.0, 1.0, rng.random()))
        out.append((t, STALE_NAN if rng.random() < 0.01 else bits(total if rng.random() > 0.002 else float("-inf"))))
        t += 15_000 + rng.choice((0, 0, 0, rng.randrange(-400, 400), 300_000 if rng.random() < 0.05 else 0))
    return out


def histograms(seed, start):
    m = Maker(seed)
    t, out = start + m.r.randrange(1000), []
    while t < start + RANGE:
        h = m.next()
        out.append((t, bits(float(t % 97)) if h is None else h))
        t += m.step * (20 if m.r.random() < 0.01 else 1) + m.r.choice((0, 0, 0, 7))
    return out


def samples(rng, start):
    """[(series, t, value)] in the order of time; equal ones twice."""
    out = []
    for k in range(SERIES):
        for name, some in (("f", floats(rng, start)), ("h", histograms(rng.randrange(1 << 30), start))):
            pairs = remote.labels(f"{name}{k % 7}", series=f"{k:04d}")
            out += [(pairs, t, v) for t, v in some]
    out += rng.sample(out, len(out) // 50)
    out.sort(key=lambda s: (s[1], s[0]))
    return out


def interleaved(all_samples, rng):
    """Four senders that are behind each other by a quarter, a sample of each in turn."""
    n = -(-len(all_samples) // 4)
    parts = [all_samples[i * n:(i + 1) * n] for i in range(4)]
    return [p[i] for i in range(n) for p in parts if i < len(p)]


def shuffled(all_samples, rng):
    out = list(all_samples)
    rng.shuffle(out)
    return out


ORDERS = {
    "in order": lambda s, rng: s,
    "reversed": lambda s, rng: s[::-1],
    "shuffled": shuffled,
    "interleaved": interleaved,
    "strided": lambda s, rng: [x for first in range(1000) for x in s[first::1000]],
}


def requests(ordered, rng):
    """(body, version): each sample a series of its own, as it comes; some in 1.0."""
    for i in range(0, len(ordered), BATCH):
        batch = []
        for pairs, t, v in ordered[i:i + BATCH]:
            batch.append(remote2.series(pairs, [(t, v)]) if isinstance(v, int) else remote2.series(pairs, histograms=[remote2.histogram(t, **v)]))
        if rng.random() < 0.2:
            body = b"".join(remote.pb_len(1, remote.encode_labels(s.labels) + b"".join(remote.encode_sample(*x) for x in s.samples)
                                          + b"".join(remote.pb_len(4, h) for h in s.histograms)) for s in batch)
            yield snappy(body), 1
        else:
            yield snappy(remote2.encode_request(batch)), 2


def write(server, ordered, rng, kill):
    c, n = server.client(), -(-len(ordered) // BATCH)
    kills = sorted(rng.sample(range(1, n), 3)) if kill else []
    for i, (body, version) in enumerate(requests(ordered, rng)):
        if i in kills:
            server.kill9()
            server.start()
            c = server.client()
        a = remote2.write_body(c, body) if version == 2 else c.write_body(body)
        assert a.status == 204, a.text[:500]
    return kills


@pytest.mark.timeout(1800)
def test_blocks_do_not_depend_on_the_order(varve):
    rng = seeded("orders")
    start = procs.time.time_ns() // 1_000_000 // RANGE * RANGE - RANGE
    all_samples = samples(rng, start)
    killed = rng.choice(list(ORDERS))
    found, read = {}, {}
    for name, order in ORDERS.items():
        server = varve(name=name.replace(" ", "-"), head_cut_delay="10h", head_max_age="10h", label="order=x")
        kills = write(server, order(all_samples, rng), rng, name == killed)
        read[name] = server.read()
        assert len(server.flush()) == 1
        (block,) = tsdb.blocks(server.bucket_dir)
        # The independent reader's word on what is in it, too.
        mine = {tsdb.with_external(k, {"tenant_id": "default-tenant", "order": "x"}): v for k, v in tsdb.Block(block).dump().items()}
        assert mine == read[name], name
        files = [pathlib.Path(block) / "index", *sorted((pathlib.Path(block) / "chunks").iterdir())]
        found[name] = {str(f.relative_to(block)): f.read_bytes() for f in files}
        assert server.stop() == 0
        if kills:
            print(f"{name}: killed before requests {kills}")
    n = sum(len(v) for v in read["in order"].values())
    print(f"{len(all_samples)} samples, {n} different ones, {sum(map(len, found['in order'].values()))} bytes")
    assert n == len({(s[0], s[1]) for s in all_samples})
    for name, files in found.items():
        assert read[name] == read["in order"], name
        assert files.keys() == found["in order"].keys()
        for f, content in files.items():
            assert content == found["in order"][f], f"{name}, {f}: other bytes from {next(i for i, (a, b) in enumerate(zip(content, found['in order'][f])) if a != b)}"
