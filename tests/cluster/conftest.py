"""Fixtures: fleets of real processes. A failing test shows the ends of their logs; everything is stopped by its own id at the end of its test."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import fleet as fleets  # noqa: E402  (the path comes first)
from lib import procs  # noqa: E402


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and call.when in ("setup", "call"):
        every = [n for f in getattr(item, "fleets", []) for n in f.everybody() + f.left]
        for p in dict.fromkeys(procs.ALIVE + every):
            report.sections.append((f"log of {p.name} in {p.dir}", p.log_tail(40)))


@pytest.fixture
def fleet(request, tmp_path):
    """fleet(factor=3, **{"head.block-range": "1m"}): a fleets.Fleet without nodes, its flags those of every process."""
    procs.raise_open_files()
    made = request.node.fleets = []

    def make(factor=3, algorithm="ketama", **flags):
        f = fleets.Fleet(tmp_path / f"fleet-{len(made) + 1}", factor, algorithm, **flags)
        made.append(f)
        return f

    yield make
    procs.stop_all()
    for f in made:
        f.stop()
