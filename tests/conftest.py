"""Shared fixtures: a tiny synthetic corpus, and the real command line in a subprocess.

No test depends on the instruction set, the number of threads or the order of the tests. The suite passes in all of

    python -m pytest -n 2 --dist loadfile
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m pytest -n 2 --dist loadfile
    ATEN_CPU_CAPABILITY=default python -m pytest -n 2 --dist loadfile
    OMP_NUM_THREADS=4 python -m pytest -n 2 --dist loadfile          # without the variable: one thread
    pip install pytest-randomly && python -m pytest -n 2 --dist loadfile -p randomly
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

from lm.base.process import STOP_SIGNALS
from lm.train import configure, train
from tests import forks
from tests.faults import Faults
from tests.forks import Ended

torch.set_num_threads(int(forks.THREADS))
# How long an example takes says how busy the machine is, not whether the property holds.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
# A model that trains in milliseconds a step, small in every dimension and with all dropouts on.
TINY = ["--emsize=8", "--nhid=12", "--nlayers=2", "--batch-size=4", "--bptt=7", "--eval-batch-size=2", "--lr=5"]


def write_corpus(folder: Path, *, train: int = 600, held_out: int = 60, seed: int = 0) -> Path:
    """Three split files of random sentences over 40 words that follow each other with some regularity."""
    folder.mkdir(parents=True)
    generator = random.Random(seed)
    for split, lines in (("train", train), ("valid", held_out), ("test", held_out)):
        text = []
        for _ in range(lines):
            first = generator.randrange(40)
            text.append(" ".join(f"w{(first + i * generator.choice((1, 1, 1, 2))) % 40}" for i in range(5)))
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpora") / "tiny")


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a dozen updates an epoch."""
    return write_corpus(tmp_path_factory.mktemp("corpora") / "small", train=60, held_out=20)


@pytest.fixture(scope="session")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of the subprocesses, where `data/cache` and `runs/` land."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of the subprocesses."""
    return forks.environment()


@pytest.fixture(scope="session")
def faults():
    """Processes that are forked from one that has imported PyTorch, with faults if asked for."""
    with Faults() as faults:
        yield faults


@pytest.fixture(scope="session")
def cli(work_dir: Path, faults: Faults):
    """Run `python -m lm.MODULE ARGUMENTS` as a process of its own and return how it ended."""

    def run(module: str, *arguments: object, folder: Path = work_dir, processes: int = 1, **variables: str) -> Ended:
        return faults.run(module, *arguments, folder=folder, processes=processes, variables=variables)

    return run


@pytest.fixture(scope="session")
def tiny_run(cli, corpus_dir: Path, work_dir: Path) -> Path:
    """A finished run of two epochs."""
    run_dir = work_dir / "tiny_run"
    done = cli("train", "--data", corpus_dir, *TINY, "--epochs=2", "--log-interval=10", "--out-dir", run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture
def train_here(work_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Train in this process, which spares the start of another, and return the result."""
    monkeypatch.chdir(work_dir)

    def run(*arguments: object) -> dict:
        config, options = configure([str(argument) for argument in arguments])
        return train(config, options)

    return run


@pytest.fixture
def main_here(work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line `main` of a module in this process and return what it printed."""
    monkeypatch.chdir(work_dir)

    def run(module: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch):
    """Call it, and the disk takes three bytes more."""

    def fill() -> None:
        real, calls = os.write, []

        def half(descriptor, data):
            calls.append(data)
            if len(calls) > 1:
                raise OSError(28, os.strerror(28))
            return real(descriptor, data[:3])

        monkeypatch.setattr(os, "write", half)

    return fill


@pytest.fixture(autouse=True)
def _start() -> None:
    """Each test has the suite's seed and threads, whatever the one before it chose."""
    torch.set_num_threads(int(forks.THREADS))
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command ignores signals from its end on, which in this process is not the end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those of `-m gpu` (or `-m "gpu and ..."`).

    What the others promise, equal bits above all, is of CPUs. There Triton's kernels run in its interpreter, which it
    must know before a kernel is defined.

    Signals are as in a terminal: `nohup` and a shell's `&` have them ignored, and every child would inherit that.
    """
    for name, usual in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), usual)
    if not config.getoption("markexpr").startswith("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    corpora = os.environ.get("LM_CORPORA")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and -m gpu"))
        if item.get_closest_marker("corpora") and not (corpora and (Path(corpora) / "ptb").is_dir()):
            item.add_marker(pytest.mark.skip(reason="needs the real corpora under $LM_CORPORA"))
