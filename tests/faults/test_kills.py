"""`kill -9` in the middle of a build, a removal, a collection and a repair."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.conftest import LONG, STORE_TESTS

ROOT = Path(__file__).parents[2]


def test_whatever_is_killed_whenever_no_packet_is_lost_and_none_is_wrong(tmp_path, kills):
    """See kills.py for what is checked after each."""
    command = [sys.executable, "-m", "tests.faults.kills", str(tmp_path / "store"), str(kills), "7"]
    path = os.pathsep.join([str(STORE_TESTS), *filter(None, sys.path)])
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    assert out.returncode == 0, out.stderr
    report = json.loads(out.stdout)
    sys.stdout.write(out.stdout)
    assert report["kills"] >= kills
    assert report["between file and row"] >= (10 if kills == LONG else 2)
    assert report["repairs"] > kills // 10
    if kills == LONG:
        assert len(report["points"]) == 17
        assert min(report[operation] for operation in ("build", "remove", "gc", "repair")) > 20
