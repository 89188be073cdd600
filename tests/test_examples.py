"""Every example prints what its first lines promise."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted(path.stem for path in (Path(__file__).parent.parent / "examples").glob("[!_]*.py"))


@pytest.fixture
def rows(capsys):
    """Run `python -m examples.NAME` in this process; returns the numbers of each line that it prints."""

    def run(name):
        runpy.run_module(f"examples.{name}", run_name="__main__")
        lines = [re.findall(r"\d+(?:\.\d+)?", line) for line in capsys.readouterr().out.splitlines()]
        return [[float(number) for number in line] for line in lines]

    return run


def test_ar_and_tar_make_a_strangers_lstm_small_and_slow(rows):
    _, (*_, free_loss, free_rms, free_change), (*_, loss, rms, change) = rows("ar_tar")
    assert rms < 0.7 * free_rms
    assert change < 0.7 * free_change
    assert loss < free_loss + 0.3


def test_an_l1_penalty_makes_an_autoencoder_sparse_at_a_small_cost(rows):
    _, (_, free_error, free_zeros), (_, error, zeros) = rows("sparse_autoencoder")
    assert zeros > 0.6 > free_zeros
    assert free_error < error < 0.02  # the images' variance is 0.073


def test_the_loop_of_ones_own_learns(rows):
    perplexities = [perplexity for _, perplexity, *_ in rows("own_loop")]
    assert len(perplexities) > 1
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 15  # of about 90 characters


def test_every_example_is_run_here():
    assert EXAMPLES == sorted(re.findall(r'rows\("(\w+)"\)', Path(__file__).read_text()))
