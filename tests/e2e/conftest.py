"""Fixtures of the end-to-end tests. A failing test shows the ends of its processes' logs; every process is stopped at the end of its test."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from lib import procs  # noqa: E402  (the path comes first)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and call.when in ("setup", "call"):
        for p in dict.fromkeys(procs.ALIVE + getattr(item, "ended_processes", [])):
            report.sections.append((f"log of {p.name} in {p.dir}", p.log_tail()))


@pytest.fixture(autouse=True)
def processes(request, tmp_path):  # tmp_path: servers end before their directory goes
    procs.raise_open_files()
    yield
    procs.stop_all()


@pytest.fixture
def spawn(request, tmp_path):
    """spawn(procs.MinIO, ...) in a directory of its own; not started. Names are given when one class runs twice."""
    request.node.ended_processes = []

    def make(cls, *args, name=None, **kw):
        p = cls(tmp_path / (name or cls.name), *args, **kw)
        request.node.ended_processes.append(p)
        return p

    return make


@pytest.fixture
def varve(spawn):
    """varve(**flags): a running server, dots as underscores where flags are given as keywords: varve(head_block_range="1m")."""

    def make(name=None, env=None, start=True, **flags):
        p = spawn(procs.Varve, name=name, env=env, flags={FLAGS.get(k, k.replace("_", ".")): v for k, v in flags.items()})
        return p.start() if start else p

    return make


# Flags with a dash in them, which keywords can't spell.
FLAGS = {k.replace(".", "_").replace("-", "_"): k for k in (
    "data-dir", "http.address", "web.config.file", "label", "objstore.config-file", "objstore.config", "wal.sync", "wal.sync-interval", "wal.max-size",
    "wal.segment-size", "head.block-range", "head.cut-delay", "head.max-age", "head.max-memory", "ingest.oldest", "ingest.future", "ingest.max-body",
    "ingest.created-timestamp-zero",
    "ingest.max-series-per-request", "ingest.max-samples-per-request", "ingest.max-inflight", "ingest.max-labels", "ingest.max-label-name",
    "ingest.max-label-value", "disk.reserve", "bucket.audit-interval", "cache.dir-size", "query.max-concurrency", "query.timeout", "query.max-samples",
    "query.max-memory", "exemplars.max", "metadata.max", "log.level", "log.format", "blocks.keep-local", "http.threads", "http.max-connections", "http.idle-timeout",
    "http.request-timeout", "shutdown.grace", "flush.timeout", "tenant.certificate-field", "tenant.default-id", "tenant.split-label", "tenant.delete-delay")}


@pytest.fixture
def golden():
    return procs.ROOT / "tests" / "golden"
