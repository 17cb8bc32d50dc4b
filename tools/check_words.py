#!/usr/bin/env python3
"""Holds words and lists against each other.

- docs/errors.md lists exactly the ids of base/errid.h, docs/metrics.md exactly the varve_ metrics that the sources name.
- A file above 800 lines says in its opening comment why ("One file because ...").
- No debt notes in the sources: finish it, or write in the docs that it is not there.
"""
import os
import re
import sys

FOLDERS = "base proto net wal block head bucket shipper compactor cluster ingest query ui cmd".split()
LINES_MAX = 800
DEBT = re.compile(r"\b(TODO|FIXME|XXX|HACK|for now|temporary solution|workaround until)\b", re.I)
faults = []


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def sources():
    for folder in FOLDERS + [f"tests/{t}" for t in ("unit", "support", "fuzz", "bench", "crash", "e2e", "e2e/lib", "cluster")] + ["tools"]:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.endswith((".c", ".h", ".cc", ".py", ".sh", ".sql")):
                yield f"{folder}/{name}"


def compare(doc, listed, real, what):
    if not os.path.exists(doc):
        faults.append(f"{doc}: missing, must list {len(real)} {what}")
        return
    for one in sorted(real - listed):
        faults.append(f"{doc}: {one} is missing")
    for one in sorted(listed - real):
        faults.append(f"{doc}: {one} is not in the sources")


def main():
    ids = {f"err-varve-{t}" for t in re.findall(r'ERRID\(\w+,\s*\d+,\s*"([^"]+)"\)', read("base/errid.h"))}
    metrics = set()
    for path in sources():
        text = read(path)
        if not path.startswith(("tests/", "tools/")) and path.endswith(".c"):
            metrics |= set(re.findall(r'"(varve_[a-z0-9_]+)"', text))
        lines = text.count("\n")
        if lines > LINES_MAX and "One file because" not in text[:3000]:
            faults.append(f"{path}: {lines} lines, above {LINES_MAX} its opening comment must say \"One file because ...\", or split it")
        if path != "tools/check_words.py":
            for m in DEBT.finditer(text):
                faults.append(f"{path}:{text.count(chr(10), 0, m.start()) + 1}: \"{m[0]}\": finish it or leave it out")

    def listed(doc, pattern):
        return set(re.findall(pattern, read(doc))) if os.path.exists(doc) else set()

    compare("docs/errors.md", listed("docs/errors.md", r"`(err-varve-[a-z0-9-]+)`"), ids, "error ids")
    compare("docs/metrics.md", listed("docs/metrics.md", r"`(varve_[a-z0-9_]+)`"), metrics, "metrics")
    for f in faults:
        print(f)
    return bool(faults)


sys.exit(main())
