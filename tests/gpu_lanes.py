"""How fast full-size runs train side by side on one GPU, by kernel: `python3 -m tests.gpu_lanes --out DIR`.

Up to four runs of `awd-lstm-fast`, two on PTB's sizes and two on WikiText-2's, each in a process of its own under
NVIDIA's MPS daemon: for each kernel first two of them train, then three, then four. DIR/lanes.json gets the
milliseconds of an update of each run in each company, windows of 70 words. `--tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lm.base.device import pick_device
from lm.bench import endless_update, random_run
from lm.config.values import make_config
from lm.text.cards import known_corpora
from lm.training.run import Run
from tests.gpu_lstm import TINY
from tests.mps import mps

logger = logging.getLogger("gpu_lanes")
CORPORA = ["ptb", "ptb", "wikitext-2", "wikitext-2"]
COMPANIES = [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
KERNELS = ["triton", "native"]
MOMENT_S, TINY_MOMENT_S = 2.5, 0.5  # that a company trains for with a kernel
PAUSE_S = 0.3  # of it in which nothing runs, so that moments do not overlap
READY_S = 120.0  # to build two models, compile kernels and record graphs
STEPS = 5  # between two looks at the clock: less than PAUSE_S, at 30 to 45 ms an update of four runs side by side
END_S = 30.0  # beyond the last moment, for a lane to end


def steps(run: Run, count: int) -> None:
    """Some updates, and what they have a GPU do."""
    for _ in range(count):
        endless_update(run)
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Run, seconds: float) -> float:
    """Mean duration of an update over so many seconds."""
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not done:
        steps(run, STEPS)
        done += STEPS
    return 1e3 * spent / done


def lane(index: int, place: Path, *, tiny: bool) -> None:
    """Build a run for each kernel, say so, and train in those companies that the run is part of."""
    device = pick_device("cpu" if tiny else "cuda")
    kernels, lasting = (KERNELS[1:], TINY_MOMENT_S) if tiny else (KERNELS, MOMENT_S)
    vocabulary = 30 if tiny else known_corpora()[CORPORA[index]].vocab_size
    runs = {}
    for kernel in kernels:
        changes = {"kernel": kernel, "variable_bptt": False, **(TINY if tiny else {})}
        runs[kernel] = random_run(make_config("awd-lstm-fast", CORPORA[index], **changes), vocabulary, device)
        steps(runs[kernel], 3)
    (place / f"ready-{index}").touch()
    while not (place / "start").exists():
        time.sleep(0.01)
    moment = float((place / "start").read_text())
    for kernel in kernels:
        for company in COMPANIES:
            time.sleep(max(0.0, moment - time.time()))
            moment += lasting
            if index in company:
                row = {"kernel": kernel, "runs": [CORPORA[each] for each in company], "run": index}
                row["ms_an_update"] = round(milliseconds(runs[kernel], lasting - PAUSE_S), 2)
                sys.stdout.write(json.dumps(row) + "\n")
    time.sleep(max(0.0, moment - time.time()))  # whoever ends early under MPS could disturb the others


def measure(place: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """Start the lanes, give the sign once all are ready, and collect what they say."""
    command = [sys.executable, "-m", "tests.gpu_lanes", "--out", str(place), *["--tiny"] * tiny]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lanes = [
        subprocess.Popen([*command, "--lane", str(index)], stdout=subprocess.PIPE, text=True, env=environment)
        for index in range(len(CORPORA))
    ]
    end = time.monotonic() + READY_S
    while not all((place / f"ready-{index}").exists() for index in range(len(lanes))):
        if time.monotonic() > end or any(process.poll() is not None for process in lanes):
            for process in lanes:
                process.kill()
            raise SystemExit("a lane failed before it was ready; it says above why")
        time.sleep(0.05)
    (place / "new").write_text(str(time.time() + PAUSE_S))
    (place / "new").rename(place / "start")
    limit = len(KERNELS) * len(COMPANIES) * MOMENT_S + END_S
    try:
        return [json.loads(line) for process in lanes for line in process.communicate(timeout=limit)[0].splitlines()]
    except subprocess.TimeoutExpired:
        raise SystemExit("a lane hangs; nothing was measured") from None
    finally:
        for process in lanes:
            process.kill()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, PyTorch's kernel alone")
    parser.add_argument("--lane", type=int, metavar="N", help="be this one of the runs; the program calls itself so")
    arguments = parser.parse_args()
    if arguments.lane is not None:
        lane(arguments.lane, arguments.out, tiny=arguments.tiny)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for left in (*arguments.out.glob("ready-*"), *arguments.out.glob("start")):
        left.unlink()
    with mps() as device:
        rows = measure(arguments.out, tiny=arguments.tiny)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    found = {"gpu": gpu, "torch": torch.__version__, "lanes": rows}
    (arguments.out / "lanes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
