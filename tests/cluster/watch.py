#!/usr/bin/env python3
"""Asks every node twenty times a second whether it is ready, and adds up how long one was not.

    watch.py --nodes=FILE --out=FILE        the first: a line "NAME URL" for each node that has to be ready, read again when it changes

A node that is taken off the list (it was told to drain) counts no more; one that is put on it counts from its first answer on.
"""
import argparse
import http.client
import json
import pathlib
import signal
import sys
import threading
import time
from urllib.parse import urlsplit

PERIOD_S = 0.05


class Looker(threading.Thread):
    def __init__(self, name, url):
        super().__init__(daemon=True)
        self.node, self.at, self.left = name, urlsplit(url), threading.Event()
        self.polls, self.unready_s, self.first, self.slowest_s = 0, 0.0, None, 0.0

    def look(self, conn):
        """(connection or None, what is wrong or None)"""
        try:
            conn = conn or http.client.HTTPConnection(self.at.hostname, self.at.port, timeout=2)
            conn.request("GET", "/-/ready")
            r = conn.getresponse()
            text = r.read().decode("utf-8", "replace")
            return (None if r.will_close else conn), (None if r.status == 200 else f"{r.status} {text[:200].strip()}")
        except (OSError, http.client.HTTPException) as e:
            if conn:
                conn.close()
            return None, repr(e)

    def run(self):
        conn, last = None, time.monotonic()
        while not self.left.is_set():
            began = time.monotonic()
            conn, wrong = self.look(conn)
            now = time.monotonic()
            if self.left.is_set():
                return
            self.polls += 1
            self.slowest_s = max(self.slowest_s, now - began)
            if wrong:
                self.unready_s += now - last
                self.first = self.first or f"{time.time():.3f} {wrong}"
            last = now
            self.left.wait(max(0.0, began + PERIOD_S - now))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nodes", required=True)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    lookers, gone, path = {}, [], pathlib.Path(args.nodes)
    while not stop.wait(PERIOD_S):
        wanted = dict(line.split() for line in path.read_text("utf-8").splitlines())
        for name in [n for n in lookers if n not in wanted]:
            lookers[name].left.set()
            gone.append(lookers.pop(name))
        for name, url in wanted.items():
            if name not in lookers:
                lookers[name] = Looker(name, url)
                lookers[name].start()
    out = {"polls": 0, "unready_s": {}, "first": {}, "slowest_s": 0.0}
    for one in gone + list(lookers.values()):
        out["polls"] += one.polls
        out["slowest_s"] = max(out["slowest_s"], one.slowest_s)
        out["unready_s"][one.node] = out["unready_s"].get(one.node, 0) + one.unready_s
        if one.first:
            out["first"].setdefault(one.node, one.first)
    path = pathlib.Path(args.out)
    path.write_text(json.dumps(out), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
