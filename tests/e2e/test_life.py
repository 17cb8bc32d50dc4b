"""Start, stop, flush, reload, locks, versions, wrong flags: what an operator sees."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest
from lib import gen, procs, remote
from lib.remote import labels
from lib.wire import bits


def now():
    return int(time.time() * 1000)


def fails_to_start(server, code=1, within=15, **more):
    server.start(wait=False, **more)
    assert server.wait(within) == code, server.log_tail()
    return server.log()


def one_sentence(log, *words):
    """The line for people, which starts with the program's name."""
    lines = [line for line in log.splitlines() if line.startswith("varve: ")]
    assert len(lines) >= 1, log
    for w in words:
        assert w in lines[-1], lines[-1]
    return lines[-1]


def test_ready_and_healthy(varve):
    server = varve()
    for path in ("/-/healthy", "/-/ready"):
        status, text = procs.http_get(server.url + path)
        assert status == 200 and text.endswith("\n")
    assert json.loads(procs.http_get(server.url + "/api/v1/status/walreplay")[1])["data"]["state"] == "done"
    assert procs.http_get(server.url + "/no/such/path")[0] == 404


def test_everything_by_default_is_below_data(spawn):
    server = spawn(procs.Varve)
    server.spawn([procs.varve_binary(), f"--http.address=127.0.0.1:{server.port}"], cwd=server.dir)
    server.wait_url(server.url + "/-/ready")
    assert server.client().write([(labels("up"), [(now(), bits(1.0))])]).status == 204
    server.flush()
    assert {p.name for p in server.dir.iterdir()} == {"data", "varve.log"}
    assert (server.dir / "data" / "bucket").is_dir() and (server.dir / "data" / "catalog.sqlite").is_file()
    assert server.stop() == 0


def test_flush_answers_the_live_blocks(varve):
    server = varve(label=["region=eu", 'replica="a"'])
    samples = gen.Samples(2, 30, now() // 7_200_000 * 7_200_000 - 3 * 7_200_000)
    for tenant in ("one", "two"):
        c = server.client(tenant)
        for k in range(900):
            assert c.write(samples.batch(k)).status == 204
    blocks = server.flush()
    assert {b["tenant"] for b in blocks} == {"one", "two"}
    for b in blocks:
        assert set(b) >= {"ulid", "tenant", "min_time", "max_time", "resolution", "level", "state", "labels", "samples", "series", "bytes"}
        assert b["state"] == "live" and b["resolution"] == 0 and b["level"] == 1 and b["bytes"] > 0
        assert b["labels"] == {"region": "eu", "replica": "a", "tenant_id": b["tenant"]}
        assert b["min_time"] // 7_200_000 == (b["max_time"] - 1) // 7_200_000
        for f in ("meta.json", "index", "chunks/000001"):
            assert (server.bucket_dir / b["ulid"] / f).is_file()
    total = sum(len(v) for v in samples.all(900).values())
    assert sum(b["samples"] for b in blocks) == 2 * total
    assert sorted(b["ulid"] for b in server.flush()) == sorted(b["ulid"] for b in blocks)  # nothing new
    listed = server.bucket_ls()
    assert sorted(listed, key=lambda b: b["ulid"]) == sorted(blocks, key=lambda b: b["ulid"])
    server.stop()
    assert sorted(b["ulid"] for b in server.bucket_ls()) == sorted(b["ulid"] for b in blocks)  # without a server, too


def test_sigterm_keeps_the_log_and_cuts_no_tiny_block(varve):
    server = varve()
    samples = gen.Samples(4, 100, now() - 600_000)
    c = server.client()
    for k in range(30):
        assert c.write(samples.batch(k)).status == 204
    start = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - start < 10
    assert not list((server.data / "blocks").glob("*/meta.json")) and not list((server.data / "bucket").glob("*/meta.json"))
    server.start()
    assert {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read().items()} == samples.all(30)


def test_samples_survive_kill_dash_nine(varve):
    server = varve()
    samples = gen.Samples(5, 100, now() - 600_000)
    for k in range(30):
        assert server.client().write(samples.batch(k)).status == 204
        if k % 10 == 9:
            server.kill9()
            server.start()
    assert {tuple(p for p in k if p[0] != "tenant_id"): v for k, v in server.read().items()} == samples.all(30)
    assert sum(b["samples"] for b in server.flush()) == sum(len(v) for v in samples.all(30).values())


def test_reload_by_signal_and_by_request(varve):
    server = varve()
    server.signal(signal.SIGHUP)
    time.sleep(0.3)
    assert server.running() and server.client().request("POST", "/-/reload", b"").status == 200
    assert server.client().get("/-/reload").status == 405


def test_a_second_process_on_the_same_data_is_refused_in_words(varve, spawn):
    first = varve()
    second = spawn(procs.Varve, name="second")
    second.data = first.data
    sentence = one_sentence(fails_to_start(second), str(first.data))
    assert "data-dir" in sentence or "stop" in sentence
    assert first.client().write([(labels("up"), [(now(), bits(1.0))])]).status == 204


def test_a_newer_data_directory_is_refused_and_not_touched(varve):
    server = varve()
    server.stop()
    version = server.data / "format"
    text = version.read_text()
    import re

    newer = re.sub(r"\d+", lambda m: str(int(m[0]) + 1000), text, count=1)
    assert newer != text
    version.write_text(newer)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in server.data.rglob("*") if p.is_file()}
    sentence = one_sentence(fails_to_start(server), "format")
    assert "newer" in sentence or "version" in sentence
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in server.data.rglob("*") if p.is_file()}
    assert after == before


def test_a_taken_port_is_said(varve, spawn):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        server = spawn(procs.Varve, name="taken")
        server.port = s.getsockname()[1]
        one_sentence(fails_to_start(server), str(server.port))


@pytest.mark.parametrize("flag, suggestion", [("--wal.sinc=ack", "--wal.sync"), ("--data-dri=x", "--data-dir"), ("--http.adress=x", "--http.address"),
                                              ("--head.blockrange=2h", "--head.block-range")])
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(tmp_path, flag, suggestion):
    r = subprocess.run([procs.varve_binary(), flag], capture_output=True, text=True, timeout=10, cwd=tmp_path, check=False)
    assert r.returncode == 1 and suggestion in r.stderr and "did you mean" in r.stderr.lower(), r.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--wal.sync=always", "--head.block-range=10s", "--head.block-range=soon", "--ingest.max-body=lots", "--label=x",
                                  "--label=tenant_id=a", "--label=__name__=a", "--wal.max-size=1MiB", "--ingest.max-inflight=0",
                                  "--data-dir=", "--data-dir=/etc/passwd", "--data-dir=/etc/passwd/below", "extra"])
def test_a_wrong_value_is_refused_with_its_name(tmp_path, flag):
    r = subprocess.run([procs.varve_binary(), flag], capture_output=True, text=True, timeout=10, cwd=tmp_path, check=False)
    assert r.returncode == 1 and flag.split("=")[0] in r.stderr, r.stderr
    assert not list(tmp_path.iterdir())


def test_help_fits_two_screens(tmp_path):
    run = lambda *a: subprocess.run([procs.varve_binary(), *a], capture_output=True, text=True, timeout=10, cwd=tmp_path, check=False)
    short, long = run("--help"), run("--help-all")
    assert short.returncode == long.returncode == 0
    flags = [line for line in short.stdout.splitlines() if line.strip().startswith("--")]
    assert 10 <= len(flags) <= 40 and len(short.stdout.splitlines()) <= 110
    assert len(long.stdout) > len(short.stdout)
    assert "varve" in run("--version").stdout


@pytest.mark.parametrize("yaml, words", [
    ("type: GCS\nconfig: {}\n", ["S3", "FILESYSTEM"]), ("type: S3\nconfig:\n  bukket: x\n", ["bukket", "bucket"]), ("type: [\n", ["objstore"]),
    ("type: FILESYSTEM\nconfig:\n  directory: ${VARVE_TEST_NOT_SET}\n", ["VARVE_TEST_NOT_SET"]), ("", [])])
def test_a_wrong_object_store_file_is_refused_in_words(spawn, yaml, words):
    server = spawn(procs.Varve)
    path = server.dir / "objstore.yml"
    path.write_text(yaml)
    server.flags["objstore.config-file"] = path
    one_sentence(fails_to_start(server), *words)


def test_an_unreadable_object_store_file_is_named(spawn):
    server = spawn(procs.Varve)
    server.flags["objstore.config-file"] = server.dir / "nowhere.yml"
    one_sentence(fails_to_start(server), "nowhere.yml")


def test_environment_variables_in_the_object_store_file(spawn):
    server = spawn(procs.Varve, env={"WHERE": "elsewhere"})
    path = server.dir / "objstore.yml"
    path.write_text(f"type: FILESYSTEM\nconfig:\n  directory: {server.dir}/${{WHERE}}\n")
    server.flags["objstore.config-file"] = path
    server.start()
    assert server.client().write([(labels("up"), [(now(), bits(1.0))])]).status == 204
    (block,) = server.flush()
    assert (server.dir / "elsewhere" / block["ulid"] / "meta.json").is_file()


def test_the_metrics_page_is_valid_and_documented(varve):
    server = varve()
    assert server.client().write([(labels("up"), [(now(), bits(1.0))])]).status == 204
    server.flush()
    status, page = procs.http_get(server.url + "/metrics")
    assert status == 200
    r = subprocess.run([procs.promtool_binary(), "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert r.returncode == 0, r.stdout + r.stderr
    m = server.metrics()
    for name in ("varve_wal_frames_lost_total", "varve_wal_samples_lost_total", "varve_wal_fsyncs_total"):
        assert name in m
    assert m["varve_wal_fsyncs_total"] >= 1
    docs = procs.ROOT / "docs" / "metrics.md"
    if docs.exists():
        text = docs.read_text()
        for name in {k.split("{")[0] for k in m if k.startswith("varve_")}:
            base = name
            for suffix in ("_bucket", "_sum", "_count"):
                base = base[:-len(suffix)] if base.endswith(suffix) and base[:-len(suffix)] in text else base
            assert base in text, f"{name} is not in docs/metrics.md"


def test_log_lines_are_logfmt_or_json(varve):
    plain, as_json = varve("plain"), varve("json", log_format="json")
    for s in (plain, as_json):
        s.client().write([(labels("up"), [(now(), bits(1.0))])])
        assert s.stop() == 0
    for line in as_json.log().splitlines()[1:]:
        assert "level" in json.loads(line)
    assert all("level=" in line for line in plain.log().splitlines()[1:])


def test_a_slow_client_does_not_stop_the_others(varve):
    server = varve(http_idle_timeout="1s")
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
        assert server.client().write([(labels("up"), [(now(), bits(1.0))])]).status == 204
        s.settimeout(20)
        while s.recv(4096):
            pass  # an answer or nothing, then the end
    assert server.running()


def test_answers_are_gzipped_when_asked(varve):
    import gzip

    server = varve()
    plain = server.client().get("/metrics")
    packed = server.client().get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip" and len(packed.body) < len(plain.body) / 2
    assert b"varve_" in gzip.decompress(packed.body)
    assert plain.headers.get("Content-Encoding") is None and plain.headers.get("X-Request-Id")


def test_basic_auth_from_a_web_config_file(spawn):
    import base64
    import crypt  # noqa: F401  (bcrypt of glibc's libcrypt, as Prometheus' file has it)

    server = spawn(procs.Varve)
    path = server.dir / "web.yml"
    hashed = crypt.crypt("geheim", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 4))
    path.write_text(f"basic_auth_users:\n  anna: {hashed}\n")
    server.flags["web.config.file"] = path
    server.start(wait=False)
    procs.wait_for(lambda: procs.http_get(server.url + "/-/healthy")[0] in (200, 401), 20, "a listening server")
    token = "Basic " + base64.b64encode(b"anna:geheim").decode()
    right = remote.Client(server.url, headers={"Authorization": token})
    procs.wait_for(lambda: right.write([(labels("up"), [(now(), bits(1.0))])]).status == 204, 20, "a write with the password")
    wrong = remote.Client(server.url, headers={"Authorization": "Basic " + base64.b64encode(b"anna:falsch").decode()})
    for c in (server.client(), wrong):
        a = c.write([(labels("up"), [(now(), bits(1.0))])])
        assert a.status == 401 and "Basic" in a.headers["WWW-Authenticate"]


def test_a_relative_data_directory_is_as_good(spawn):
    server = spawn(procs.Varve)
    server.data = pathlib.Path("some/where")
    server.start()
    assert (server.dir / "some" / "where" / "lock").exists() and os.access(server.dir / "some" / "where", os.W_OK)
