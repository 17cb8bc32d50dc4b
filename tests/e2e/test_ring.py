"""`varve ring`: what a hashring file means, before anybody is given it. The answers are held against a real Thanos Receive's (tests/golden/hashring.json)."""
import json
import subprocess
import time

import pytest
from lib import procs

GROUPS = json.loads((procs.ROOT / "tests" / "golden" / "hashring.json").read_text("utf-8"))
REFUSED = {  # groups that varve does not take, and the words of why
    "too few endpoints": "2 endpoints, fewer than the replication factor of 3",
    "zones with hashmod": "hashmod knows no zones",
    "duplicate endpoint, hashmod": '"a:1" stands there twice',
    "duplicate endpoint, ketama": '"a:1" stands there twice',
    "unknown algorithm": "algorithm",
}


@pytest.fixture
def ring(tmp_path):
    """ring("show", rings, "--flag"): lists are written to files. The finished process; stdin=... for its input."""

    def run(*args, stdin=None):
        words = []
        for i, a in enumerate(args):
            if not isinstance(a, str):
                path = tmp_path / f"{i}.json"
                path.write_text(json.dumps(a, indent=1), "utf-8")
                a = str(path)
            words.append(a)
        return subprocess.run([procs.varve_binary(), "ring", *words], input=stdin, capture_output=True, text=True, timeout=120)

    return run


def ok(p):
    assert p.returncode == 0, p.stderr
    return p.stdout


def refused(p, *words):
    assert p.returncode == 1, (p.returncode, p.stdout)
    assert p.stdout == ""
    for w in words:
        assert w in p.stderr, p.stderr


def flags(group):
    return [f"--replication-factor={group['replication_factor']}", f"--hashrings.algorithm={group['default_algorithm']}"]


def case_lines(cases):
    return "".join(json.dumps({"tenant": c["tenant"], "labels": c["labels"]}, ensure_ascii=i % 2 == 0) + "\n" for i, c in enumerate(cases))


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g["name"])
def test_series_are_where_thanos_puts_them(ring, tmp_path, group):
    if group["name"] in REFUSED:
        refused(ring("check", group["hashrings"], *flags(group)), REFUSED[group["name"]])
        return
    cases = group["cases"]
    want = [[] if c.get("error") else c["replicas"] for c in cases]
    (tmp_path / "cases").write_text(case_lines(cases), "utf-8")
    from_file = ok(ring("where", group["hashrings"], *flags(group), f"--cases={tmp_path / 'cases'}"))
    assert [json.loads(line) for line in from_file.splitlines()] == want
    from_stdin = ok(ring("where", group["hashrings"], *flags(group), "--cases", "-", stdin=case_lines(cases)))
    assert from_stdin == from_file
    one = cases[0]
    series = "{" + ",".join(f'"{n}"={json.dumps(v, ensure_ascii=False)}' for n, v in one["labels"]) + "}"
    assert json.loads(ok(ring("where", group["hashrings"], *flags(group), "--tenant", one["tenant"], "--labels", series))) == want[0]


def test_a_hundred_thousand_series_take_seconds(ring, tmp_path):
    rings = [{"endpoints": [f"node-{i}:1" for i in range(200)]}]
    cases = [{"tenant": f"t{i % 50}", "labels": [["__name__", "m"], ["i", str(i)]]} for i in range(100_000)]
    begin = time.monotonic()
    answers = [json.loads(line) for line in ok(ring("where", rings, "--replication-factor=3", "--cases=-", stdin=case_lines(cases))).splitlines()]
    assert time.monotonic() - begin < 20
    assert len(answers) == len(cases) and all(len(set(a)) == 3 for a in answers)
    shares = {n["address"]: n["share"] for n in json.loads(ok(ring("show", rings, "--replication-factor=3", "--output=json")))["rings"][0]["nodes"]}
    counted = dict.fromkeys(shares, 0)
    for a in answers:
        for n in a:
            counted[n] += 1
    assert all(abs(counted[n] / 300_000 - shares[n]) < 0.002 for n in shares)


def test_a_wrong_file_is_refused_with_line_and_reason(ring, tmp_path):
    def text(t):
        (tmp_path / "wrong.json").write_text(t, "utf-8")
        return str(tmp_path / "wrong.json")

    good = '[\n {"endpoints": ["a:1", "b:1"]}\n]\n'
    refused(ring("check", text("")), "wrong.json:1: the hashring file is empty")
    refused(ring("check", text(good[:20])), "wrong.json:2: the text ends")
    refused(ring("check", text(good.replace("b:1", "a:1"))), "wrong.json:2: ", "twice")
    refused(ring("check", text(good), "--replication-factor=3"), "fewer than the replication factor of 3")
    refused(ring("check", text(good.replace("endpoints", "endpoint"))), 'did you mean "endpoints"?')
    refused(ring("check", text(good.replace('{"', '{"algorithm": "md5", "'))), 'must be "ketama" or "hashmod", not "md5"')
    for command in (["show"], ["where", "--labels={a=\"b\"}"], ["check", "--output=json"]):
        refused(ring(command[0], text(good[:9]), *command[1:]), "wrong.json:")
    refused(ring("diff", text(good), str(tmp_path / "none.json")), "none.json")
    p = ring("check", text(good), "--output=json")
    assert json.loads(ok(p))["valid"] is True


def test_what_is_asked_wrongly_is_said(ring):
    rings = [{"endpoints": ["a:1"]}]
    refused(ring("where", rings), "--cases=FILE")
    refused(ring("where", rings, "--labels={a=\"b\"}", "--cases=-"), "--cases=FILE")
    refused(ring("where", rings, "--cases=-", "--tenant=x"), "each line has its own")
    refused(ring("where", rings, "--labels={a=~\"b\"}"), "no patterns")
    refused(ring("where", rings, "--cases=/none"), "/none")
    refused(ring("show", rings, "--replication-factor=0"), "--replication-factor=0")
    refused(ring("show", rings, "--replication-factor=99"), "--replication-factor=99")
    refused(ring("show", rings, "--hashrings.algorithm=crc"), "hashrings.algorithm")
    refused(ring("diff", rings), "usage")
    refused(ring("shew", rings), "usage")
    for line, words in (("{", "stdin:2"), ("[]", "not a JSON object"), ('{"tenant": "a"}', "labels"), ('{"tenant": 1, "labels": []}', "tenant"),
                        ('{"tenant": "a", "labels": [["x"]]}', "label 1"), ('{"tenant": "a", "labels": [["x", 1]]}', "label 1")):
        p = ring("where", rings, "--cases=-", stdin='{"tenant": "a", "labels": []}\n' + line + "\n")
        assert p.returncode == 1 and words in p.stderr and p.stdout == '["a:1"]\n', (line, p.stdout, p.stderr)


def test_show_says_who_has_how_much(ring):
    rings = [
        {"hashring": "a", "tenants": ["x-*"], "tenant_matcher_type": "glob", "endpoints": [{"address": f"a{i}:1", "az": f"z{i % 3}"} for i in range(9)],
         "shuffle_sharding_config": {"shard_size": 3}},
        {"hashring": "b", "endpoints": ["b0:1", "b1:1", "b2:1", "b3:1"], "algorithm": "hashmod"},
    ]
    table = ok(ring("show", rings, "--replication-factor=2"))
    assert 'ring "a": ketama, 9 nodes in 3 zones, shards of 3, tenants like x-*' in table and 'ring "b": hashmod, 4 nodes, all tenants' in table
    told = json.loads(ok(ring("show", rings, "--replication-factor=2", "--output=json")))
    assert told["nodes"] == 13 and [r["name"] for r in told["rings"]] == ["a", "b"] and told["epoch"] in table
    assert [n["share"] for n in told["rings"][1]["nodes"]] == [0.25] * 4
    assert abs(sum(n["share"] for n in told["rings"][0]["nodes"]) - 1) < 1e-6
    mine = json.loads(ok(ring("show", rings, "--replication-factor=2", "--tenant=x-1", "--output=json")))["rings"]
    assert len(mine) == 1 and len(mine[0]["nodes"]) == 3 and {n["az"] for n in mine[0]["nodes"]} == {"z0", "z1", "z2"}
    refused(ring("show", rings[:1], "--tenant=y"), "no ring serves tenant y")
    remarks = json.loads(ok(ring("check", rings + rings[1:], "--output=json")))["remarks"]
    assert len(remarks) == 1 and "is never used" in remarks[0]


@pytest.mark.parametrize("before, after", [(3, 5), (5, 9), (9, 5), (5, 3), (20, 21), (200, 201)])
def test_diff_says_what_moves(ring, before, after):
    def nodes(n):
        return [{"endpoints": [f"varve-{i}.varve.monitoring.svc.cluster.local:19291" for i in range(n)]}]

    told = json.loads(ok(ring("diff", nodes(before), nodes(after), "--replication-factor=3", "--output=json")))
    r = told["rings"][0]
    assert (r["added"], r["removed"]) == (max(0, after - before), max(0, before - after))
    assert len(told["added"]) == r["added"] and len(told["removed"]) == r["removed"]
    assert 0.9 * r["ideal"] <= r["moved"] <= 1.2 * r["ideal"]
    assert r["max_over_mean_new"] <= 1.12
    cases = case_lines({"tenant": "t", "labels": [["i", str(i)]]} for i in range(20_000))
    was, now = (
        [json.loads(line) for line in ok(ring("where", nodes(n), "--replication-factor=3", "--cases=-", stdin=cases)).splitlines()] for n in (before, after))
    moved = sum(len(set(b) - set(a)) for a, b in zip(was, now)) / (3 * len(now))
    assert abs(moved - r["moved"]) < 0.01


def test_the_epoch_is_of_the_content(ring):
    def epoch(rings, *more):
        return json.loads(ok(ring("check", rings, "--output=json", *more)))["epoch"]

    a = [{"hashring": "h", "endpoints": ["a:1", "b:1"], "tenants": ["x", "y"]}]
    assert epoch(a) == epoch([{"tenants": ["y", "x"], "endpoints": [{"address": "b:1"}, "a:1"], "hashring": "h", "algorithm": "ketama"}])
    assert epoch(a) != epoch(a, "--replication-factor=2") and epoch(a) != epoch(a, "--hashrings.algorithm=hashmod")


def test_simulate_says_what_growing_costs(ring):
    """Its figures are those of show and diff for the same addresses; and what is counted, series by series, is what the arcs say."""
    told = json.loads(ok(ring("simulate", "--nodes=3,5,9,5", "--replication-factor=3", "--series=300000", "--output=json")))
    nodes = [[{"endpoints": [f"varve-{i}.varve.monitoring.svc.cluster.local:19291" for i in range(n)]}] for n in (3, 5, 9, 5)]
    assert [s["nodes"] for s in told["steps"]] == [3, 5, 9, 5] and told["series"] == 300_000
    for i, s in enumerate(told["steps"]):
        shown = json.loads(ok(ring("show", nodes[i], "--replication-factor=3", "--output=json")))["rings"][0]
        assert (s["max_over_mean"], s["min_over_mean"]) == (shown["max_over_mean"], shown["min_over_mean"])
        assert abs(s["counted"]["max_over_mean"] - s["max_over_mean"]) < 0.01 and s["counted"]["series_of_fullest"] <= 300_000
        if i:
            r = json.loads(ok(ring("diff", nodes[i - 1], nodes[i], "--replication-factor=3", "--output=json")))["rings"][0]
            assert (s["moved"], s["ideal"]) == (r["moved"], r["ideal"])
            assert abs(s["counted"]["moved"] - s["moved"]) < 0.005
    table = ok(ring("simulate", "--nodes=6,12", "--zones=3", "--replication-factor=3", "--endpoint=a{}.example:1"))
    assert table.splitlines()[2].split() == ["nodes", "fullest/mean", "emptiest/mean", "moved", "ideal"] and len(table.splitlines()) == 5
    for wrong, words in (("--nodes=2", "--nodes=2"), ("--nodes=3,", "comma"), ("--nodes=", "--nodes"), ("--nodes=3,x", "3,x"), ("--nodes=5000", "2000"), ("--endpoint=a:1", "{}"),
                         ("--endpoint={}", "port"), ("--zones=0", "zones")):
        refused(ring("simulate", "--replication-factor=3", wrong), words)


def test_two_hundred_nodes_are_as_even_as_the_reference(ring):
    """The placement's own balance: no node has more than 1.12 of the mean, and what moves is near the least that has to."""
    for zones in (1, 3):
        told = json.loads(ok(ring("simulate", "--nodes=3,6,9,21,51,99,150,201", f"--zones={zones}", "--replication-factor=3", "--output=json")))
        for s in told["steps"]:
            assert s["max_over_mean"] <= 1.12, (zones, s)
        for s in told["steps"][1:]:
            assert s["moved"] <= 1.2 * s["ideal"], (zones, s)
