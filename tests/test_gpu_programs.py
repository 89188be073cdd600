"""The programs for a GPU, tests.gpu_lstm and tests.gpu_lanes, in tiny sizes on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.gpu_lanes import COMPANIES
from tests.gpu_lstm import STAGES

pytest.importorskip("triton", minversion="3.6")


def run_tiny(program, out, *flags):
    command = [sys.executable, "-m", f"tests.{program}", "--tiny", "--out", str(out), *flags]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_checked_compared_profiled_and_tuned_stage_by_stage(tmp_path):
    run_tiny("gpu_lstm", tmp_path)
    found = json.loads((tmp_path / "gpu_lstm.json").read_text())
    assert not [name for name in found if "failed" in name]
    names = [name for name in found if name.partition(",")[0] in STAGES]
    assert names == [
        "check", "compare", "profile", "tune", "check, fastest tiles", "compare, fastest tiles",
        "profile, fastest tiles", "loss", "tune, overlap", "check, overlap", "compare, overlap", "profile, overlap",
    ]  # fmt: skip
    assert all(row["passed"] and row["repeats"] for row in found["check"] + found["check, fastest tiles"])
    assert all(row["us_a_step"] > 0 for row in found["tune"])
    # A problem of one tile ends nothing: the interpreter does not know what overlapping steps take.
    assert all("_semantic" in row["problem"] for row in found["tune, overlap"])
    assert all(found["loss"][0][name] > 0 for name in ("as it is", "rows not aligned", "Triton softmax"))
    assert "fastest tiles" in (tmp_path / "gpu_lstm.txt").read_text()


def test_stages_are_done_alone(tmp_path):
    run_tiny("gpu_lstm", tmp_path, "--stages", "check")
    assert json.loads((tmp_path / "gpu_lstm.json").read_text()).keys() == {"gpu", "torch", "triton", "check"}


def test_runs_train_side_by_side(tmp_path):
    run_tiny("gpu_lanes", tmp_path)
    rows = json.loads((tmp_path / "lanes.json").read_text())["lanes"]
    assert len(rows) == sum(map(len, COMPANIES))
    assert all(row["ms_an_update"] > 0 for row in rows)
