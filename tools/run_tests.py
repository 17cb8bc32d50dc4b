#!/usr/bin/env python3
"""Runs cmocka programs and fuzz corpus replays in parallel, then pytest; ends with 'N passed, N failed'.

    tools/run_tests.py [--jobs N] [--results DIR] [--unit PROGRAM ...] [--replay PROGRAM=CORPUS ...] [--pytest ARG ...]

One line per program; the whole output of one that failed. A program that dies without its summary counts as one failure, and a
replay as one test. --pytest takes the command line behind it, and runs last and alone because it starts servers.
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

UNIT_TIMEOUT_S = int(os.environ.get("VARVE_UNIT_TIMEOUT", "600"))


def run(command):
    """Exit status (None: timed out), output, seconds."""
    began = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=UNIT_TIMEOUT_S)
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as e:
        status, output = None, e.stdout or b""
    return status, output.decode(errors="replace"), time.monotonic() - began


def run_unit(program):
    status, output, seconds = run([program])
    passed = sum(int(n) for n in re.findall(r"\[  PASSED  \] (\d+) test", output))
    failed = sum(int(n) for n in re.findall(r"\[  FAILED  \] (\d+) test", output))
    if status != 0 and failed == 0:
        failed = 1
    if status == 0 and passed == 0:
        failed, output = 1, output + "\nran no test\n"
    return os.path.basename(program), passed, failed, status, output, seconds


def run_replay(pair):
    program, corpus = pair.split("=", 1)
    files = sum(len(names) for _, _, names in os.walk(corpus))
    status, output, seconds = run([program, corpus])
    good = status == 0 and files > 0
    if files == 0:
        output += f"\nno files in {corpus}\n"
    return f"{os.path.basename(program)} ({files} files)", int(good), int(not good), status, output, seconds


def run_pytest(command, results):
    xml = os.path.join(results, "e2e.xml")
    if os.path.exists(xml):
        os.unlink(xml)
    status = subprocess.run(command + [f"--junitxml={xml}"], stdin=subprocess.DEVNULL).returncode
    passed = failed = 0
    try:
        for suite in ET.parse(xml).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            failed += bad
            passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
    except (OSError, ET.ParseError):
        failed = 1
    if status not in (0, 5) and failed == 0:
        failed = 1
    return passed, failed


def main():
    sys.stdout.reconfigure(line_buffering=True)
    p = argparse.ArgumentParser()
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--results", default="build/results")
    p.add_argument("--unit", nargs="*", default=[])
    p.add_argument("--replay", nargs="*", default=[])
    p.add_argument("--pytest", nargs=argparse.REMAINDER, default=[])
    args = p.parse_args()
    os.makedirs(args.results, exist_ok=True)
    counts = os.path.join(args.results, "counts")
    with open(counts, "w") as f:
        f.write("0 1\n")  # what an interrupted run amounts to

    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        work = [pool.submit(run_unit, u) for u in args.unit] + [pool.submit(run_replay, r) for r in args.replay]
        for one in concurrent.futures.as_completed(work):
            name, good, bad, status, output, seconds = one.result()
            passed, failed = passed + good, failed + bad
            if bad:
                why = "timed out" if status is None else f"signal {-status}" if status < 0 else f"status {status}"
                print(f"---- {name}: FAILED ({why}, {seconds:.1f} s)\n{output.rstrip()}\n----")
            else:
                print(f"  {name}: {good} passed, {seconds:.1f} s")
    if args.pytest:
        good, bad = run_pytest(args.pytest, args.results)
        passed, failed = passed + good, failed + bad

    with open(counts, "w") as f:
        f.write(f"{passed} {failed}\n")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


sys.exit(main())
