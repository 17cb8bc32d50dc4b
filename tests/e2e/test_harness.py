"""The tests' own readers, senders and ledger are right: golden vectors, and files that Prometheus wrote."""
import json
import random
import struct

from lib import chunks, gen, ledger, procs, remote, tsdb, wire


def test_xor_golden():
    got = chunks.decode(1, bytes.fromhex("0004d00f3ff00000000000009875309bffd8001c00c0"))
    assert [(t, wire.unbits(v)) for t, v in got] == [(1000, 1.0), (16000, 1.0), (31000, 2.5), (46001, -2.5)]


def test_histogram_golden():
    got = chunks.decode(2, bytes.fromhex("000300ff3f50624dd2f1a9fc8c6478fa29100000000000000008c7e0ea622c26c005110010"))
    assert [t for t, _ in got] == [1000, 16000, 31000]
    for i, (_, h) in enumerate(got):
        assert (h.kind, h.schema, h.zero_threshold, h.zero_count, h.count, wire.unbits(h.sum)) == ("int", 1, 0.001, 1, 4 + i, 2.5 * i)
        assert dict(h.positive) == {0: 1, 1: 2 + i} and not h.negative


def test_float_histogram_golden():
    got = chunks.decode(3, bytes.fromhex("000200" "74465178fa10020000000000000ff800000000000000000000000000000ffc000000000000"
                                         "0ffe0000000000003e0ea63585b09b001c25fff0"))
    assert [t for t, _ in got] == [1000, 16000]
    for i, (_, h) in enumerate(got):
        assert (h.kind, h.schema, h.zero_threshold, h.zero_count, h.count, wire.unbits(h.sum)) == ("float", 0, 2.0**-128, 0.5, 3.0 + i, 2.5 * i)
        assert dict(h.positive) == {1: 1.0 + i, 2: 1.5}


def test_custom_bounds_golden():
    (t, h), = chunks.decode(2, bytes.fromhex("000100" "00ee5c644f8cbdf51feaaaaaaaaaaaaaf8fa263ff000000000000095c0"))
    assert t == 1000 and h.schema == -53 and h.custom == (0.1, 0.5, 1 / 3) and dict(h.positive) == {0: 2, 1: 1}


def test_crc_and_snappy_agree_with_plain_python():
    rng = random.Random(1)
    for n in (0, 1, 59, 60, 61, 65536, 65537, 200000):
        data = bytes(rng.getrandbits(8) >> 5 for _ in range(n))
        assert wire.crc32c(data) == wire._crc32c_plain(data)
        for packed in (wire.snappy(data), wire.snappy_literal(data)):
            assert wire.unsnappy(packed) == wire._snappy_decode_plain(packed) == data


def test_blocks_of_thanos_read_clean(golden):
    found = [tsdb.Block(p) for d in sorted((golden / "blocks").iterdir()) for p in tsdb.blocks(d)]
    assert len(found) == 27
    assert sorted({b.resolution for b in found}) == [0, 300000, 3600000]
    raw = [b for b in found if not b.resolution]
    assert sum(len(v) for b in raw for v in b.dump().values()) == sum(b.meta["stats"]["numSamples"] for b in raw)


def test_a_flipped_byte_of_a_block_is_seen(golden, tmp_path):
    source = next(p for d in sorted((golden / "blocks").iterdir()) for p in tsdb.blocks(d) if not tsdb.Block(p, check=False).resolution)
    rng = ledger.seeded("flips")
    for name in ("index", "chunks/000001"):
        data = bytearray(open(f"{source}/{name}", "rb").read())
        for at in [rng.randrange(len(data)) for _ in range(40)]:
            copy = tmp_path / source[-26:]
            (copy / "chunks").mkdir(parents=True, exist_ok=True)
            for f in ("meta.json", "index", "chunks/000001"):
                (copy / f).write_bytes(open(f"{source}/{f}", "rb").read())
            data[at] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(data)
            try:
                block = tsdb.Block(copy)
                assert block.dump() == tsdb.Block(source).dump(), f"{name} byte {at}: read without complaint, and different"
            except (tsdb.Damaged, ValueError, IndexError, KeyError, struct.error, UnicodeError):
                pass
            data = bytearray(open(f"{source}/{name}", "rb").read())


def test_blocks_of_promtool_hold_what_it_was_given(tmp_path):
    samples = gen.Samples(7, 40, 1_700_000_000_000)
    want, lines = {}, []
    for labels, got in sorted(samples.all(300).items()):
        keep = [(t, v) for t, v in got if v != wire.STALE_NAN]
        want[labels] = keep
        d = dict(labels)
        inner = ",".join(f'{k}="{gen._escape(v)}"' for k, v in labels if k != "__name__")
        lines += [f"{d['__name__']}{{{inner}}} {gen._number(v)} {t / 1000}" for t, v in keep]
    page = tmp_path / "page.txt"
    lines.sort(key=lambda s: s.split("{")[0])
    page.write_text("\n".join(lines) + "\n# EOF\n", "utf-8")
    r = procs.promtool("tsdb", "create-blocks-from", "openmetrics", page, tmp_path / "out")
    assert r.returncode == 0, r.stderr
    assert tsdb.dump_dir(tmp_path / "out") == want


def test_a_real_prometheus_takes_what_we_send_and_answers_what_we_read(spawn):
    """The sender and both read clients, against the reference."""
    p = spawn(procs.Prometheus, flags=["--web.enable-remote-write-receiver"]).start()
    samples = gen.Samples(3, 60, 1_700_000_000_000)
    c = remote.Client(p.url)
    for k in range(200):
        a = c.write(samples.batch(k))
        assert a.status == 204, a.text
    want = samples.all(200)
    assert c.read([(*remote.EVER, remote.ALL)], (remote.STREAMED,))[0] == want
    # The reference's encoder leaves a field out that equals 0, so a -0 comes back as 0 from SAMPLES.
    minus, unsigned = wire.bits(-0.0), {k: [(t, 0 if v == wire.bits(-0.0) else v) for t, v in s] for k, s in want.items()}
    assert any(v == minus for s in want.values() for _, v in s)
    assert c.read([(*remote.EVER, remote.ALL)], (remote.SAMPLES,))[0] == unsigned
    want = unsigned
    first, second = c.read([(1_700_000_000_000, 1_700_000_600_000, [("=", "job", "job-1")]), (*remote.EVER, [("=", "job", "nothing")])])
    assert second == {} and first == {k: [s for s in v if s[0] <= 1_700_000_600_000] for k, v in want.items() if dict(k)["job"] == "job-1"}
    p.stop()


def test_the_ledger_tells_apart():
    a, b = remote.labels("a"), remote.labels("b")
    book = ledger.Ledger()
    book.record("one", [(a, [(1, 10), (2, 20), (3, 30)])], ledger.ACKED)
    book.record("one", [(a, [(4, 40)])], ledger.UNKNOWN)
    book.record("one", [(a, [(2, 21), (5, 50)])], ledger.REFUSED)
    book.record("two", [(b, [(1, 10)])], ledger.ACKED)
    good = {"one": {a: [(1, 10), (2, 20), (3, 30)]}, "two": {b: [(1, 10)]}}
    assert book.compare(good).clean
    assert book.compare({**good, "one": {a: good["one"][a] + [(4, 40)]}}).clean  # unknown may be there

    def faults(**found):
        r = book.compare({**good, **found})
        return {k for k in ("lost", "wrong", "phantom", "duplicate", "cross_tenant") if getattr(r, k)}

    assert faults(one={a: [(1, 10), (2, 20)]}) == {"lost"}
    assert faults(one={a: [(1, 10), (2, 21), (3, 30)]}) == {"wrong"}
    assert faults(one={a: [(1, 11), (2, 20), (3, 30)]}) == {"wrong"}
    assert faults(one={a: good["one"][a] + [(5, 50)]}) == {"phantom"}
    assert faults(one={a: good["one"][a] + [(6, 60)]}) == {"phantom"}
    assert faults(one={a: good["one"][a] + [(3, 30)]}) == {"duplicate"}
    assert faults(two={b: [(1, 10)], a: [(1, 10)]}) == {"cross_tenant"}


def test_generated_pages_are_valid_exposition():
    import subprocess

    t = gen.Target(1, 500)
    try:
        status, page = procs.http_get(f"http://127.0.0.1:{t.port}/metrics")
        assert status == 200 and page.count("\n") > 450
        r = subprocess.run([procs.promtool_binary(), "check", "metrics"], input=page.encode(), capture_output=True, check=False)
        assert b"error while linting" not in r.stderr, r.stderr[:500]
        assert json.dumps(page)
    finally:
        t.stop()
