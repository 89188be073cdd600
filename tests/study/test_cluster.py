"""A sweep on a real Ray cluster of three nodes on this machine, one worker and one node of which are killed."""

import json
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from lm.study.ledger import read_ledger
from tests.test_sweep import RUNS, corpus, end, figures, lines, start, undisturbed, wait_for, write_study  # noqa: F401

# Before a fixture sweeps for nothing.
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")]


@pytest.fixture
def cluster(monkeypatch, environment):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster, nodes
    cluster.shutdown()


def run_processes(runs: Path) -> dict[int, str]:
    """Process of the Ray worker -> run directory, of the runs that are on."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text().split("\0")
        except OSError:
            continue
        if "lm.study.executors" in words and words[4].startswith(str(runs)):
            found[int(words[3])] = words[4]
    return found


def test_the_sweep_completes_with_the_same_figures_though_a_worker_and_a_node_die(
    cluster, start, corpus, undisturbed, tmp_path  # noqa: F811
):  # fmt: skip
    ray_cluster, nodes = cluster
    study = write_study(tmp_path / "results" / "s", corpus)
    process = start(tmp_path, study, "--executor=ray", f"--ray-address={ray_cluster.address}", "--no-report", "--json")
    wait_for(lambda: len(run_processes(tmp_path)) == 2, process)
    worker = next(iter(run_processes(tmp_path)))
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(lines(study)) >= 2, process)
    ray_cluster.remove_node(nodes[1], allow_graceful=False)
    out, _ = end(process)
    assert json.loads(out)["started"] == len(lines(study)) == RUNS
    assert figures(study) == figures(undisturbed)


def test_a_stop_signal_lets_the_tasks_save(cluster, start, corpus, tmp_path):  # noqa: F811
    study = write_study(tmp_path / "results" / "s", corpus, "", seeds=(1,), epochs=500)
    process = start(tmp_path, study, "--executor=ray", f"--ray-address={cluster[0].address}", "--no-report")
    wait_for(lambda: list(tmp_path.glob("runs/s/*/ckpt/last.pt")), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = end(process, 143)
    assert "the same command continues" in stderr
    (result,) = tmp_path.glob("runs/s/*/result.json")
    assert json.loads(result.read_text())["status"] == "interrupted"
    deadline = time.monotonic() + 30
    while run_processes(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not read_ledger(study / "runs.jsonl")


def test_an_address_where_no_cluster_listens_is_one_message(start, corpus, tmp_path):  # noqa: F811
    study = write_study(tmp_path / "results" / "s", corpus, "", seeds=(1,))
    _, stderr = end(start(tmp_path, study, "--executor=ray", "--ray-address=127.0.0.1:9"), 2)
    assert "--ray-address 127.0.0.1:9" in stderr
    assert "Traceback" not in stderr
