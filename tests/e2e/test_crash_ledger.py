"""kill -9 under load, read back, compare: a short run of tests/crash/crash.py (`make crash N=200` for a long one)."""
import pathlib
import sys

from lib.ledger import seeded

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "crash"))


def test_nothing_acknowledged_is_lost_by_kill_dash_nine(tmp_path):
    import crash

    crash.Run(tmp_path, kills=20, seed=seeded("crash").randrange(1 << 32), snapshots=True).go()
