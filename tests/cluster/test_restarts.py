"""Each of three nodes restarted, killed, and stopped for a while, one after the other, under load with factor 3: no client sees an error, and in the end the three heads hold the same samples."""
import json
import shutil
import time

import pytest
from fleet import LONG, end_load, go_on, judge, pause, procs

AWAY_S = 20 if LONG else 5


def all_agree(f, book, text=None):
    """Hints are delivered; then by our own eyes, and by `varve digest`."""
    took = f.wait_hints(120)
    missing = f.replicas_agree(book, text)
    assert not missing, f"{len(missing)} of the replicas lack samples; first: {missing[:3]}"
    p = f.nodes[0].run("digest", *(n.url for n in f.nodes))
    assert p.returncode == 0, f"varve digest: {p.returncode}\n{p.stdout}\n{p.stderr}"
    return took


def no_client_noticed(book):
    s = book.summary()
    print(s)
    assert s["errors"] == s["refused"] == s["open"] == 0, s


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["restart", "kill"])
def test_each_of_three_in_turn(fleet, how):
    f = fleet(3)
    router = f.three()
    load = f.load(router, series=1500, batch=100)
    reader = f.reader(load, [f.querier()])
    load.wait_rounds(4)
    for n in list(f.nodes):
        if how == "restart":
            assert n.stop() == 0
        else:
            n.kill9()
        time.sleep(AWAY_S)
        n.start()
        load.wait_rounds(4)
        print(f"{n.name} is back; hints after {f.wait_hints(60):.1f} s")
    read = reader.end()
    book, found = end_load(load, f)
    print(found, read)
    no_client_noticed(book)
    assert read["refused"] == 0 and not any(read[k] for k in judge.Findings.KINDS), read
    all_agree(f, book)


@pytest.mark.timeout(300)
def test_a_node_that_stands_still(fleet):
    """SIGSTOP: it takes connections and answers nothing. The router's memory stays as it is (Thanos' grew from 96 to 560 MiB in 30 s)."""
    f = fleet(3)
    router = f.three()
    load = f.load(router, series=1500, batch=100)
    load.wait_rounds(6)
    rss = router.rss()
    pause(f.nodes[1])
    time.sleep(30 if LONG else 12)
    grown = router.rss() - rss
    go_on(f.nodes[1])
    load.wait_rounds(4)
    book, _ = end_load(load, f)
    no_client_noticed(book)
    print(f"the router grew by {grown / 1048576:.1f} MiB")
    assert grown <= 64 << 20
    all_agree(f, book)


@pytest.mark.timeout(1200)
def test_a_node_that_comes_back_without_its_disk(fleet):
    """Refilled from hints or from its peers' open windows; and it says what it could not get."""
    f = fleet(3)
    router = f.three()
    load = f.load(router, series=1000, batch=100)
    load.wait_rounds(5)
    lost = f.nodes[2]
    lost.kill9()
    shutil.rmtree(lost.data)
    time.sleep(600 if LONG else 8)
    lost.start()
    load.wait_rounds(5)
    book, _ = end_load(load, f)
    no_client_noticed(book)
    end = time.monotonic() + 120
    while (missing := f.replicas_agree(book)) and time.monotonic() < end:
        time.sleep(1)
    status, text = procs.http_get(lost.url + "/-/repair")
    assert not missing, f"{len(missing)} of the replicas lack samples; first: {missing[:3]}; repair says {text[:1000]}"
    all_agree(f, book)
    assert status == 200 and isinstance(json.loads(text), dict), text
    print(text[:500])


@pytest.mark.timeout(300)
def test_majority_down(fleet):
    """503 with Retry-After within a second; and nothing that was answered so is counted as stored."""
    f = fleet(3)
    router = f.three()
    shape = judge.Shape("quick", series=100, batch=100, start_ms=int(time.time() * 1000), step_ms=10)
    bodies = judge_bodies(shape)
    client = router.client()
    assert client.write_body(bodies.make(0, 0)).status == 204
    for n in f.nodes[1:]:
        n.kill9()
    slowest = 0
    for k in range(1, 21):
        began = time.monotonic()
        a = client.write_body(bodies.make(k, 0))
        slowest = max(slowest, time.monotonic() - began)
        assert a.status == 503 and a.headers.get("Retry-After", "").isdigit() and a.id, (a.status, a.text)
    print(f"slowest answer {slowest * 1000:.0f} ms")
    assert slowest <= 1
    assert f.sum("varve_forward_series_total", [router]) >= 2100
    stored = sum(v for k, v in router.metrics().items() if k.startswith("varve_forward_series_total") and "stored" in k)
    assert stored == 100, "only the first request was stored by a quorum"
    for n in f.nodes[1:]:
        n.start()

    def writes_again():
        return client.write_body(bodies.make(21, 0)).status == 204
    procs.wait_for(writes_again, 15, "writes go on when the majority is back", 0.2)
    found = judge.check(shape, judge.ask(f.nodes[0].url, None, judge.matchers_of(shape), shape.time(0), shape.time(30)), [0], {0: {0, 21}})
    assert found.clean, str(found)


def judge_bodies(shape):
    from load import Bodies
    return Bodies(shape)


@pytest.mark.timeout(300)
def test_killed_while_it_drains(fleet):
    """It leaves the ring, drains, is killed in the middle, comes back, and drains to its end: nothing is lost on the way."""
    f = fleet(3, **{"head.block-range": "1m"})
    router = f.three(4)
    load = f.load(router, series=1000, batch=100)
    reader = f.reader(load, [f.querier()])
    load.wait_rounds(8)
    leaver = f.nodes[3]
    f.publish(f.nodes[:3])
    f.settle()
    secret = {"Authorization": f"Bearer {f.secret.read_text().strip()}"}
    a = leaver.client().request("POST", "/-/drain", b"", secret)
    assert 200 <= a.status < 300 and a.json()["state"] in ("draining", "drained"), a.text
    time.sleep(0.3)
    leaver.kill9()
    load.wait_rounds(2)
    leaver.start()
    took = f.drain(leaver)
    load.wait_rounds(3)
    read = reader.end()
    book, found = end_load(load, f)
    print(f"drained in {took:.1f} s; {found}; {read}")
    no_client_noticed(book)
    assert not any(read[k] for k in judge.Findings.KINDS), read
    # While it is away, killed, its samples are with the two others that took them: a quorum's worth, so nobody had to be refused.
    assert read["refused"] == 0, read
