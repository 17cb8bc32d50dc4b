"""What `promtool tsdb dump` prints, as data."""
import re

from . import procs

_LINE = re.compile(r"^\{(.*)\} (\S+) (-?\d+)$")
_PAIR = re.compile(r'([^=,\s]+)="((?:[^"\\]|\\.)*)"')
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unquote(s):
    """Go's %q."""
    def one(m):
        code = m[1]
        return chr(int(code[1:], 16)) if code[0] in "xuU" else _SIMPLE[code]

    return re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", one, s)


def lines(directory, newest=False):
    """Sorted lines of a dump; promtool wants a wal folder beside the blocks and says 0 for cut output, so callers compare counts and content."""
    r = procs.promtool("tsdb", "dump", directory, newest=newest)
    assert r.returncode == 0, r.stderr
    return sorted(r.stdout.splitlines())


def parse(dump_lines):
    """{labels: [(t, text of the value)]}"""
    out = {}
    for line in dump_lines:
        m = _LINE.match(line)
        assert m, line
        pairs = tuple((n, _unquote(v)) for n, v in _PAIR.findall(m[1]))
        out.setdefault(pairs, []).append((int(m[3]), m[2]))
    for samples in out.values():
        samples.sort()
    return out
