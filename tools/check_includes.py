#!/usr/bin/env python3
"""Holds the house's plan: who may include whom (the table of docs/architecture.md), and how files are named.

- A folder includes the public headers of the folders in its row, never their *_int.h, and nothing back up the picture.
- A library is known to the folders in its row only.
- File names are unique in the tree and begin with their folder's noun, so that a stack trace reads alone. (Public headers are named
  for what they declare.)
"""
import collections
import os
import re
import sys

MAY_INCLUDE = {
    "base": "",
    "proto": "base",
    "net": "base",
    "wal": "base",
    "block": "base",
    "head": "base block wal",
    "bucket": "base net block",
    "shipper": "base block bucket",
    "compactor": "base block bucket",
    "cluster": "base proto net wal",
    "ingest": "base proto net wal head cluster",
    "query": "base proto net head block bucket cluster",
    "ui": "base net",
    "cmd": "base proto net wal block head bucket shipper compactor cluster ingest query ui",
}
LIBRARIES = {  # header's beginning -> folders that know the library
    "curl/": "net",
    "microhttpd.h": "net",
    "gnutls/": "net",
    "zlib.h": "net",
    "crypt.h": "net",
    "nghttp2/": "net",
    "openssl/": "net block bucket cluster",
    "snappy": "proto",
    "protobuf-c/": "proto",
    "lz4": "wal cluster bucket",
    "re2/": "block",
    "jansson.h": "block bucket cluster query cmd",
    "sqlite3.h": "bucket",
    "expat.h": "bucket",
    "yaml.h": "base",
    "isa-l": "base",
}
TESTS = {"unit", "support", "fuzz", "bench", "crash"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)


def tree():
    for folder in list(MAY_INCLUDE) + [f"tests/{t}" for t in sorted(TESTS)]:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.endswith((".c", ".h", ".cc")):
                yield folder, name


def main():
    faults = []
    names = collections.defaultdict(list)
    for folder, name in tree():
        path = f"{folder}/{name}"
        names[name].append(path)
        test = folder.startswith("tests/")
        noun = f"{folder}_"
        if not test and not name.startswith((noun, f"{folder}.")) and (not name.endswith(".h") or name.endswith("_int.h")):
            faults.append(f"{path}: the name must begin with {noun}")
        if folder == "tests/unit" and name.endswith(".c") and not (name.split("_")[0] in {*MAY_INCLUDE, "all"} and name.endswith("_test.c")):
            faults.append(f"{path}: must be <folder>_<what>_test.c")
        allowed = set(MAY_INCLUDE) if test else {folder, *MAY_INCLUDE[folder].split()}
        text = open(path, encoding="utf-8").read()
        for m in INCLUDE.finditer(text):
            kind, what = m[1], m[2]
            where = f"{path}:{text.count(chr(10), 0, m.start()) + 1}"
            if kind == "<":
                for library, folders in LIBRARIES.items():
                    if what.startswith(library) and not test and folder not in folders.split():
                        faults.append(f"{where}: <{what}> belongs to {folders}")
                continue
            if what.endswith((".pb-c.h", ".inc")):  # generated
                continue
            if "/" not in what:
                faults.append(f'{where}: "{what}" must be written with its folder')
                continue
            other = os.path.dirname(what)
            if not os.path.exists(what):
                faults.append(f'{where}: "{what}" is not there')
            elif other.startswith("tests/"):
                if not test:
                    faults.append(f'{where}: "{what}" belongs to the tests')
            elif other not in allowed:
                faults.append(f"{where}: {folder} must not include {other} (it may: {MAY_INCLUDE[folder] or 'nothing'})")
            elif what.endswith("_int.h") and other != folder and not test:
                faults.append(f'{where}: "{what}" is private to {other}')
    for name, paths in names.items():
        if len(paths) > 1 and name != "README.md":
            faults.append(f"{' and '.join(paths)}: names must be unique")
    for f in faults:
        print(f)
    return bool(faults)


sys.exit(main())
