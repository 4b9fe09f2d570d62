"""`kill -9` in the middle of a build, fifty times."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_killed_build_leaves_a_store_that_opens_verifies_and_completes(tmp_path, hf_tokenizer):
    hf_tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "tests.engine.kill_builds", str(tmp_path), str(tmp_path / "tokenizer"), "50"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    report = json.loads(out.stdout)
    assert report["killed"] == 50
    assert len(set(report["packets"])) > 10  # the kills hit different moments
    assert set(report["problems"]) <= {"temporary", "orphan"}
    assert report["left"] == []
    assert report["complete"] == 40
