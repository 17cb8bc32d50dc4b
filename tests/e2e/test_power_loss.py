"""The power goes, anywhere: a short run of tests/crash/power.py (`make power STATES=2400` for a long one, which VARVE_FULL=1 takes here)."""
import pathlib
import sys

import pytest
from lib.faults import FULL
from lib.ledger import seeded

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "crash"))


@pytest.mark.timeout(2 * 3600 if FULL else 300)
def test_nothing_acknowledged_is_lost_by_a_power_cut(tmp_path):
    import power

    states = 2400 if FULL else 40
    assert power.power_cuts(tmp_path, states, seeded("power").randrange(1 << 32)) >= states
