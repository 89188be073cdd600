"""A study's page and table.csv, whatever its words are."""

import csv
import io

import pytest

from lm.study.specification import load_study
from lm.tables.analysis import analyse
from lm.tables.page import _inert, how_to_read, readme, table_csv
from lm.tables.text import aligned, markdown
from tests.ledgers import LOSSES, analysis_of, record, records_of

STUDY = '''title = """Two
lines"""
dataset = "ptb"
seeds = [1]
[flags]
data = "=cmd|' /C calc'!A0"
[[grid]]
lr = [1.5, 20]
finetune = [""]
[[quoted]]
label = """=1+1
@two"""
source = """a
b"""
test_ppl = 90
'''


@pytest.fixture
def analysis(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    return analyse(load_study(tmp_path), [])


def test_line_breaks_in_words_break_no_heading_row_or_list(analysis):
    page = readme(analysis, [])
    assert page.startswith("# Two lines\n")
    assert "| quoted | =1+1 @two [1] |" in page
    assert "- [1] quoted, not measured here: =1+1 @two, from a b" in page


def test_a_cell_is_one_line():
    rows = [["a\nb", "c\r\nd"]]
    assert markdown(["x", "y"], rows, 2).splitlines()[2] == "| a b | c d |"
    assert len(aligned(["x", "y"], rows, 2).splitlines()) == 3


def test_a_spreadsheet_computes_nothing_of_the_words_in_table_csv(analysis):
    rows = list(csv.DictReader(io.StringIO(table_csv(analysis))))
    assert rows[-1]["configuration"] == "'=1+1 @two"
    assert rows[-1]["test_ppl_mean"] == "90"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=A1", "'=A1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), ("\tx", "'\tx"), ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"), ("alpha 2", "alpha 2"), ("", ""), (-2, -2), (None, None), (True, True),
    ],
)  # fmt: skip
def test_only_text_that_would_be_computed_is_marked(value, cell):
    assert _inert(value) == cell


def test_the_legend_of_one_seed_speaks_of_no_sd_interval_or_seeds_of_the_baseline(tmp_path):
    lines = [line for line in records_of(LOSSES) if line["seed"] == 1]
    legend = how_to_read(analysis_of(tmp_path, lines, seeds=(1,), body="[[grid]]\nalpha = [0, 1, 2]\nbeta = [0]\n"))
    assert legend.startswith("- One seed; *train* is without dropout.\n- *Differences* are to the baseline, in nats")
    assert not any(word in legend for word in ("±", "interval", "*p*", "Unpaired", "all seeds", "exactly 0"))
    assert "*Chosen* is the configuration with the lowest difference on valid. Its difference on valid is" in legend


def test_the_legend_of_several_seeds_says_how_they_were_tested_and_unpaired_only_where_a_row_is(tmp_path):
    lines = records_of(LOSSES)
    legend = " ".join(how_to_read(analysis_of(tmp_path / "paired", lines)).split())
    assert legend.startswith("- *Perplexity* is the mean ± sd over n seeds; *train* is without dropout.")
    assert "The 95 % t-interval in brackets and *p*, adjusted by Holm's method" in legend
    assert "those that ran with all seeds of the baseline" in legend
    assert "flattered by that choice, its difference on test less so, since the same runs give both." in legend
    assert "Unpaired" not in legend
    for line in lines:
        line["versions"] = line["versions"] | {"device": "cuda" if line["config"]["alpha"] else "cpu"}
    legend = " ".join(how_to_read(analysis_of(tmp_path / "unpaired", lines)).split())
    assert "*Unpaired* ones are over the same seeds by Welch's t-test, because some ran on another kind of" in legend


def test_the_legend_explains_the_columns_that_the_table_has(tmp_path):
    sparse = {"rms": 0.3, "frac_zero": 0.5}
    legend = how_to_read(analysis_of(tmp_path, [record(1, 4.5, activation=sparse, seconds=None)], seeds=(1,), body=""))
    assert legend.endswith("activations h, *rms h* is the root mean square, *exactly 0* the share with h = 0.")
    assert not any(word in legend for word in ("*min*", "*rms dh*", "*mean abs h*", "*Differences*", "*Chosen*"))


def test_a_baseline_that_is_best_is_chosen_without_a_word_on_what_that_flatters(tmp_path):
    worse = {(0, 0): (4.4, 4.41, 4.42), (1, 0): (4.5, 4.52, 4.51)}
    legend = how_to_read(analysis_of(tmp_path, records_of(worse), body="[[grid]]\nalpha = [0, 1]\nbeta = [0]\n"))
    assert "*Chosen*" in legend
    assert "flattered" not in legend
