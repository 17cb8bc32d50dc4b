#!/usr/bin/env python3
"""The main job on the terminal, in a minute: six hours of metrics into varve, a kill -9 in the middle, blocks in the bucket, everything read back.

Called by `make demo` and `make demo BUCKET=minio`, which build and install what it needs. Everything it starts it stops, by process id.
"""
import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

SERIES, STEP, HOURS = 5000, 30, 6
ROUNDS = HOURS * 3600 // STEP
BOLD, DIM, GREEN, RED, END = ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("",) * 5


def say(text=""):
    print(text, flush=True)


def step(n, text):
    say(f"\n{BOLD}{n}. {text}{END}")


def size(n):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024


def fail(text):
    say(f"\n{RED}{text}{END}")
    sys.exit(1)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Demo:
    def __init__(self, args):
        self.args = args
        self.varve = os.environ.get("VARVE_BIN", "build/varve")
        self.check = os.path.join(os.path.dirname(self.varve), "bench", "query_check")
        self.url = "http://127.0.0.1:19291"
        self.children = []
        self.log = open("build/demo-varve.log", "w")
        self.flags = []
        self.start_ms = (int(time.time()) // STEP * STEP - HOURS * 3600) * 1000

    # ---- processes ----

    def spawn(self, argv, **more):
        p = subprocess.Popen(argv, **more)
        self.children.append(p)
        return p

    def stop_all(self):
        for p in self.children:
            if p.poll() is None:
                p.terminate()
        for p in self.children:
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()

    def start_varve(self):
        self.server = self.spawn([self.varve] + self.flags, stdout=self.log, stderr=self.log)
        begin = time.monotonic()
        while True:
            if self.server.poll() is not None:
                fail("varve did not start; its log is build/demo-varve.log:\n" + open("build/demo-varve.log").read()[-2000:])
            try:
                with urllib.request.urlopen(self.url + "/-/ready", timeout=1) as r:
                    if r.status == 200:
                        return time.monotonic() - begin
            except OSError:
                pass
            time.sleep(0.02)

    def start_minio(self):
        binary = shutil.which("minio") or fail("minio is not installed: make demo BUCKET=minio installs it")
        port, key, secret = free_port(), "varve-demo", "varve-demo-secret"
        root = "build/demo-minio"
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root + "/metrics")
        env = dict(os.environ, MINIO_ROOT_USER=key, MINIO_ROOT_PASSWORD=secret, MINIO_BROWSER="off", MINIO_UPDATE="off")
        self.spawn([binary, "server", "--quiet", "--address", f"127.0.0.1:{port}", root], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/minio/health/ready", timeout=1):
                    break
            except OSError:
                if time.monotonic() > deadline:
                    fail("MinIO did not start within 30 s")
                time.sleep(0.1)
        config = "build/demo-bucket.yaml"
        with open(config, "w") as f:
            f.write(f"type: S3\nconfig:\n  bucket: metrics\n  endpoint: 127.0.0.1:{port}\n  access_key: {key}\n  secret_key: {secret}\n  insecure: true\n")
        self.flags = [f"--objstore.config-file={config}"]
        say(f"   {DIM}MinIO on 127.0.0.1:{port}, bucket metrics; varve gets --objstore.config-file={config}{END}")

    def load(self):
        """What is sent, in the words of `varve bench write` and of the checker alike."""
        return [f"--url={self.url}", f"--series={SERIES}", f"--rounds={ROUNDS}", f"--step={STEP}s", f"--start={self.start_ms}", "--acks=build/demo-acks"]

    # ---- the story ----

    def send_with_a_kill(self):
        p = self.spawn([self.varve, "bench", "write", *self.load(), "--no-prebuild", "--progress=line", "--output=json"], stdout=subprocess.PIPE, text=True)
        killed = False
        result = None
        shown = 0.0
        for line in p.stdout:
            words = line.split()
            if words and words[0] == "progress":
                done, samples, rate = float(words[1]), int(words[3]), float(words[5])
                bar = "#" * int(done * 40)
                text = f"   [{bar:<40}] {done * 100:3.0f} %  {samples:>9,} samples acknowledged  {rate:>9,.0f}/s"
                if sys.stdout.isatty():
                    print("\r" + text, end="", flush=True)
                elif done >= shown:
                    say(text)
                    shown = done + 0.1
                if not killed and done >= 0.4:
                    killed = True
                    self.server.send_signal(signal.SIGKILL)
                    self.server.wait()
                    say(f"\n   {RED}kill -9{END} at {samples:,} acknowledged samples; the sender keeps trying ...")
                    took = self.start_varve()
                    say(f"   varve is back: log replayed and ready after {took:.2f} s")
            elif line.startswith("{"):
                result = json.loads(line)
        if p.wait() != 0 or result is None:
            fail("the sender failed")
        if not killed:
            fail("the load was over before the kill: this machine is too fast for the demo")
        if sys.stdout.isatty():
            say()
        return result

    def flush(self):
        begin = time.monotonic()
        with urllib.request.urlopen(urllib.request.Request(self.url + "/-/flush", data=b"", method="POST"), timeout=300) as r:
            return json.load(r)["blocks"], time.monotonic() - begin

    def compare(self):
        p = subprocess.run([self.check, *self.load()], capture_output=True, text=True)
        if not p.stdout:
            fail("reading back failed: " + p.stderr)
        return json.loads(p.stdout)

    def metric(self, name):
        with urllib.request.urlopen(self.url + "/metrics") as r:
            for line in r.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        return 0

    def run(self):
        begin = time.monotonic()
        if os.path.exists("data") and os.path.exists("data/format") and not os.path.exists("data/made-by-demo"):
            fail("./data holds a data directory that this demo did not make: move it away first")
        shutil.rmtree("data", ignore_errors=True)
        os.makedirs("data")
        open("data/made-by-demo", "w").close()
        if os.path.exists("build/demo-acks"):
            os.remove("build/demo-acks")

        step(1, "Start" + (" MinIO and varve" if self.args.bucket == "minio" else " build/varve, without flags: data under ./data, its bucket in ./data/bucket"))
        if self.args.bucket == "minio":
            self.start_minio()
        took = self.start_varve()
        say(f"   ready after {took:.2f} s on {self.url}")

        step(2, f"Send {HOURS} hours of metrics by remote write: {SERIES:,} series, a sample every {STEP} s, each acknowledged after fdatasync")
        sent = self.send_with_a_kill()
        say(f"   {sent['samples']:,} samples in {sent['requests']:,} requests, {sent['samples_per_second']:,.0f}/s (kill and restart included), {sent['retried']} attempts refused or broken off and sent again")
        say(f"   log: {self.metric('varve_wal_fsyncs_total'):,.0f} fdatasync calls and {size(self.metric('varve_wal_bytes_total'))} since the restart")

        step(3, "Flush: cut every window into a block, ship the blocks, wait until they are live")
        blocks, seconds = self.flush()
        total = sum(b["bytes"] for b in blocks)
        samples = sum(b["samples"] for b in blocks)
        say(f"   {len(blocks)} blocks in {seconds:.2f} s: {samples:,} samples, {size(total)}, {total / samples:.2f} bytes a sample")

        step(4, "The blocks, from the catalog:  build/varve bucket ls" + "".join(" " + f for f in self.flags))
        out = subprocess.run([self.varve, "bucket", "ls"] + self.flags, capture_output=True, text=True)
        for line in out.stdout.splitlines():
            say("   " + line[:150])

        step(5, "Read everything back through /api/v1/read and compare with what was acknowledged")
        got = self.compare()
        say(f"   acknowledged {got['acked_samples']:,}   found {got['found']:,}   {BOLD}lost {got['lost']}   wrong {got['wrong']}   never sent {got['phantom']}   twice {got['duplicate']}{END}   ({got['seconds']:.2f} s)")
        ok = not (got["lost"] or got["wrong"] or got["phantom"] or got["duplicate"]) and got["acked_samples"] == SERIES * ROUNDS
        self.server.terminate()
        self.server.wait(20)
        if not ok:
            fail("NOT ALL ACKNOWLEDGED SAMPLES ARE THERE. The log is build/demo-varve.log, the data is in ./data.")
        say(f"\n{GREEN}{BOLD}Nothing acknowledged was lost.{END} {time.monotonic() - begin:.0f} s in all.")
        say("\nWhere to look next")
        if self.args.bucket == "minio":
            say("   build/demo-minio/metrics            the bucket as MinIO keeps it on disk")
        else:
            say("   ls data/bucket                      blocks: promtool tsdb list data/bucket, or point a Thanos store at it")
        say("   build/varve                         start it again: http://127.0.0.1:19291/metrics, /-/ready")
        say("   build/varve wal inspect data        segments, frames and damage of the log")
        say("   README.md                           your Prometheus: remote_write, and remote_read for graphs")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bucket", choices=["directory", "minio"], default="directory")
    demo = Demo(parser.parse_args())
    try:
        demo.run()
    finally:
        demo.stop_all()


if __name__ == "__main__":
    main()
